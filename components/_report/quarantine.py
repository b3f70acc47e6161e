"""The night's lots and the images that were kept out of training."""

import json
import os
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from components._report.night import ReportInputs, why_missing
from components._report.pictures import Album, Picture
from components._report.story import Fact

__all__ = [
    "Images",
    "Lot",
    "Quarantine",
    "gather_images",
    "gather_quarantine",
    "read_table",
]

_THUMBNAIL_PX = 128
_PICTURES_PER_GALLERY = 4
"""Thumbnails are small: the quarantine shows this many for every heat map that a gallery would."""
_MAX_SENTENCES = 50
_COLUMNS = ("lot", "name", "accepted", "reasons")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lot:
    """One lot of the night; empty strings where validation did not speak."""

    name: str
    date: str
    images: int
    accepted: str = ""
    quarantined: str = ""
    rejected: str = ""
    remark: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What arrived and what is still waiting."""

    lots: list[Lot] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    docs_href: str = ""
    table: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """One image with its reasons."""

    name: str
    reasons: list[str]
    picture: Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantine:
    """The section of the page."""

    reasons: list[Fact] = field(default_factory=list)
    pictures: list[Quarantined] = field(default_factory=list)
    more: str = ""
    note: str = ""


def read_table(inputs: ReportInputs) -> pd.DataFrame | None:
    """Validation's table, or ``None`` when there is none to read."""
    if inputs.validation is None:
        return None
    try:
        return pd.read_parquet(inputs.validation.table_path, columns=list(_COLUMNS))
    except (OSError, ValueError):
        return None


def _manifest_lots(inputs: ReportInputs) -> list[dict[str, Any]]:
    batch = (inputs.collect or {}).get("batch") or {}
    try:
        manifest = json.loads(Path(str(batch.get("manifest_path", ""))).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    lots = manifest.get("lots", []) if isinstance(manifest, dict) else []
    return [lot for lot in lots if isinstance(lot, dict)]


def gather_images(inputs: ReportInputs, table: pd.DataFrame | None, page_folder: Path) -> Images:
    """Lots with their counts, and whatever was left in the landing zone.

    Args:
        inputs: The night.
        table: Validation's table, if there is one.
        page_folder: Where the page will lie; the link to the data docs is relative to it.
    """
    if inputs.collect is None:
        return Images(note=why_missing(inputs, "collect"))
    validation = inputs.validation
    rejected_lots = set(validation.rejected_lots) if validation is not None else set()
    lots = []
    for lot in _manifest_lots(inputs):
        name = str(lot.get("lot", ""))
        rows = table[table["lot"].astype(str) == name] if table is not None else None
        counts: dict[str, str] = {}
        if rows is not None:
            accepted = int(rows["accepted"].astype(bool).sum())
            left = len(rows) - accepted
            whole = name in rejected_lots
            counts = {
                "accepted": str(accepted),
                "quarantined": str(0 if whole else left),
                "rejected": str(left if whole else 0),
            }
        remarks = ["late"] if lot.get("late") else []
        remarks += ["rejected as a whole"] if name in rejected_lots else []
        images = lot.get("images") or []
        lots.append(
            Lot(
                name=name,
                date=str(lot.get("date", "")),
                images=len(images),
                remark=", ".join(remarks),
                **counts,
            )
        )
    waiting = [str(sentence) for sentence in inputs.collect.get("waiting") or ()]
    if len(waiting) > _MAX_SENTENCES:
        waiting = [
            *waiting[:_MAX_SENTENCES],
            f"and {len(waiting) - _MAX_SENTENCES} more",
        ]
    note = "" if lots else "No image was taken from the landing zone this night."
    docs_href = ""
    if validation is not None and validation.docs_path:
        docs_href = urllib.parse.quote(os.path.relpath(validation.docs_path, page_folder).replace(os.sep, "/"))
    return Images(
        lots=lots,
        waiting=waiting,
        docs_href=docs_href,
        table=Path(validation.table_path).name if validation is not None else "",
        note=note,
    )


def gather_quarantine(inputs: ReportInputs, table: pd.DataFrame | None, album: Album) -> Quarantine:
    """Reasons with their counts, and thumbnails that cover every reason before any is shown twice.

    Args:
        inputs: The night.
        table: Validation's table, if there is one.
        album: Encodes the thumbnails.
    """
    validation = inputs.validation
    if validation is None:
        return Quarantine(note=why_missing(inputs, "validate"))
    by_count = sorted(validation.reasons.items(), key=lambda item: (-item[1], item[0]))
    reasons = [Fact(label=reason, value=str(count)) for reason, count in by_count]
    if table is None:
        name = Path(validation.table_path).name
        return Quarantine(
            reasons=reasons,
            note=f"The table {name} cannot be read, so no picture is shown.",
        )
    left_out = table[~table["accepted"].astype(bool)]
    if left_out.empty:
        return Quarantine(reasons=reasons, note="Every image of the night was accepted.")
    limit = _PICTURES_PER_GALLERY * inputs.settings.max_pictures
    chosen = _covering(left_out, limit)
    image_dir = Path(str(((inputs.collect or {}).get("batch") or {}).get("image_dir", "")))
    pictures = [
        Quarantined(
            name=f"{row.lot}/{row.name}",
            reasons=_reasons(row.reasons),
            picture=album.add_file(image_dir / row.lot / row.name, f"{row.lot}/{row.name}", _THUMBNAIL_PX),
        )
        for row in chosen
    ]
    hidden = len(left_out) - len(pictures)
    more = f"{hidden} more are in the table {Path(validation.table_path).name}." if hidden else ""
    return Quarantine(reasons=reasons, pictures=pictures, more=more)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    lot: str
    name: str
    reasons: str


def _reasons(text: str) -> list[str]:
    return [reason.strip() for reason in text.split(";") if reason.strip()]


def _covering(table: pd.DataFrame, limit: int) -> list[_Row]:
    """Rows taken in turn from each reason's images, in order of lot and name."""
    rows = [
        _Row(lot=str(lot), name=str(name), reasons=str(reasons or ""))
        for lot, name, reasons in zip(table["lot"], table["name"], table["reasons"], strict=True)
    ]
    rows.sort(key=lambda row: (row.lot, row.name))
    queues: dict[str, list[_Row]] = {}
    for row in rows:
        queues.setdefault(row.reasons, []).append(row)
    turns = sorted(
        ((turn, reasons, row) for reasons, queue in queues.items() for turn, row in enumerate(queue)),
        key=lambda item: (item[0], item[1]),
    )
    chosen = [row for _, _, row in turns[:limit]]
    return sorted(chosen, key=lambda row: (row.reasons, row.lot, row.name))
