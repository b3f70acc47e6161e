"""Quarantine on the page: the night's lots and the images that were kept out of training."""

import json
import os
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from components.rendering.facts import LabelledValue
from components.rendering.pictures import Picture, ThumbnailEncoder
from components.steps.report.inputs import ReportInputs, failure_of, why_missing

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
_COLUMNS = ("lot", "name", "accepted", "rejected", "reasons")
_WHOLE_LOT = "lot rejected"
"""How validation begins the reason that an image shares with its whole lot."""


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

    reasons: list[LabelledValue] = field(default_factory=list)
    pictures: list[Quarantined] = field(default_factory=list)
    more: str = ""
    note: str = ""


def read_table(inputs: ReportInputs) -> tuple[Path | None, pd.DataFrame | None]:
    """Validation's table and where it lies; a validation that refused the whole night has left one as well."""
    if inputs.validation is not None:
        path = Path(inputs.validation.table_path)
    elif failure_of(inputs, "validate") is not None:
        tables = list((inputs.run.run_dir / "validate").glob("*/images.parquet"))
        if not tables:
            return None, None
        path = max(tables, key=lambda table: (table.stat().st_mtime_ns, table))
    else:
        return None, None
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError):
        return path, None
    return path, (table if set(_COLUMNS) <= set(table.columns) else None)


def _manifest_lots(inputs: ReportInputs) -> list[dict[str, Any]]:
    batch = (inputs.collect or {}).get("batch") or {}
    try:
        manifest = json.loads(Path(str(batch.get("manifest_path", ""))).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    lots = manifest.get("lots", []) if isinstance(manifest, dict) else []
    return [lot for lot in lots if isinstance(lot, dict)]


def gather_images(inputs: ReportInputs, table: pd.DataFrame | None, table_path: Path | None, folder: Path) -> Images:
    """Lots with their counts, and whatever was left in the landing zone.

    Args:
        inputs: The night.
        table: Validation's table, if there is one.
        table_path: Where it lies; the data docs lie beside it.
        folder: Where the page will lie; the link to the data docs is relative to it.

    Returns:
        The section.
    """
    if inputs.collect is None:
        return Images(note=why_missing(inputs, "collect"))
    waiting = [str(sentence) for sentence in inputs.collect.get("waiting") or ()]
    if len(waiting) > _MAX_SENTENCES:
        waiting = [*waiting[:_MAX_SENTENCES], f"and {len(waiting) - _MAX_SENTENCES} more"]
    lots = [_lot(lot, table) for lot in _manifest_lots(inputs)]
    docs = inputs.validation.docs_path if inputs.validation is not None else ""
    if not docs and table_path is not None:
        docs = str(table_path.parent / "data_docs" / "index.html")
    return Images(
        lots=lots,
        waiting=waiting,
        docs_href=urllib.parse.quote(os.path.relpath(docs, folder).replace(os.sep, "/")) if docs else "",
        table=table_path.name if table_path is not None else "",
        note="" if lots else "No image was taken from the landing zone this night.",
    )


def _lot(lot: dict[str, Any], table: pd.DataFrame | None) -> Lot:
    name = str(lot.get("lot", ""))
    remarks = ["late"] if lot.get("late") else []
    counts: dict[str, str] = {}
    if table is not None:
        rows = table[table["lot"].astype(str) == name]
        accepted, rejected = int(rows["accepted"].sum()), int(rows["rejected"].sum())
        counts = {
            "accepted": str(accepted),
            "quarantined": str(len(rows) - accepted - rejected),
            "rejected": str(rejected),
        }
        whole = {reason for text in rows["reasons"] for reason in _reasons(str(text)) if reason.startswith(_WHOLE_LOT)}
        remarks += sorted(whole)
    return Lot(
        name=name,
        date=str(lot.get("date", "")),
        images=len(lot.get("images") or []),
        remark="; ".join(remarks),
        **counts,
    )


def gather_quarantine(
    inputs: ReportInputs, table: pd.DataFrame | None, table_path: Path | None, album: ThumbnailEncoder
) -> Quarantine:
    """Reasons with their counts, and thumbnails that cover every reason before any is shown twice.

    Args:
        inputs: The night.
        table: Validation's table, if there is one.
        table_path: Where it lies.
        album: Encodes the thumbnails.

    Returns:
        The section; its note says why something is missing.
    """
    if table_path is None:
        return Quarantine(note=why_missing(inputs, "validate"))
    if table is None:
        return Quarantine(note=f"The table {table_path.name} cannot be read, so no picture is shown.")
    left_out = table[~table["accepted"].astype(bool)]
    if left_out.empty:
        return Quarantine(note="Every image of the night was accepted.")
    counts = Counter(reason for text in left_out["reasons"] for reason in _reasons(str(text)))
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    chosen = _covering(left_out, _PICTURES_PER_GALLERY * inputs.settings.max_pictures)
    image_dir = Path(str(((inputs.collect or {}).get("batch") or {}).get("image_dir", "")))
    pictures = [
        Quarantined(
            name=f"{row.lot}/{row.name}",
            reasons=_reasons(row.reasons) + ([f"of {row.double_of}"] if row.double_of else []),
            picture=album.add_file(image_dir / row.lot / row.name, f"{row.lot}/{row.name}", _THUMBNAIL_PX),
        )
        for row in chosen
    ]
    hidden = len(left_out) - len(pictures)
    return Quarantine(
        reasons=[LabelledValue(label=reason, value=str(count)) for reason, count in by_count],
        pictures=pictures,
        more=f"{hidden} more are in the table {table_path.name}." if hidden else "",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    lot: str
    name: str
    reasons: str
    double_of: str


def _reasons(text: str) -> list[str]:
    return [reason.strip() for reason in text.split(";") if reason.strip()]


def _covering(table: pd.DataFrame, limit: int) -> list[_Row]:
    """Rows taken in turn from each reason's images, in order of lot and name."""
    doubles = table["double_of"].fillna("") if "double_of" in table else pd.Series("", index=table.index)
    rows = [
        _Row(lot=str(lot), name=str(name), reasons=str(reasons), double_of=str(double))
        for lot, name, reasons, double in zip(table["lot"], table["name"], table["reasons"], doubles, strict=True)
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
