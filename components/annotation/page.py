"""Annotation page: a person accepts or rejects on it; it works from a file, without any server."""

import json
from pathlib import Path

from markupsafe import Markup

from components.annotation.review import ReviewRecord
from components.annotation.scoring import ImageCard
from components.core.atomic_files import write_file
from components.core.contracts import digest_of
from components.rendering.facts import LabelledValue
from components.rendering.page import render
from components.rendering.pictures import colour_scale_uri

__all__ = ["MAX_PAGE_BYTES", "write_page"]

_TEMPLATE = Path(__file__).with_name("review.html.j2")
MAX_PAGE_BYTES = 24_000_000
"""Of pictures: about a thousand images."""
_TITLES = {"screen": "Screening", "masks": "Proposed masks"}


def write_page(path: Path, record: ReviewRecord, cards: list[ImageCard], next_command: str) -> None:
    """Write the page of a record.

    Args:
        path: The page.
        record: What is shown.
        cards: Its images, most suspicious first.
        next_command: What to do with the decisions.
    """
    kind = record.kind
    refused = [LabelledValue(label=entry.name, value=entry.refused) for entry in record.entries if entry.refused]
    with_mask = sum(bool(entry.mask) for entry in record.entries)
    suspicious = sum(card.suspicious for card in cards)
    figures = [
        LabelledValue(label="Images", value=str(len(cards)), note="most suspicious first"),
        LabelledValue(label="Masks", value=str(with_mask), note=record.masks_by),
        LabelledValue(
            label="Left out", value=str(len(refused)), note="cannot be judged, listed below" if refused else ""
        ),
    ]
    if record.threshold is not None:
        note = f"score above {record.threshold:.4g}"
        figures.insert(1, LabelledValue(label="Called anomalous", value=str(suspicious), note=note))
    binding = {"kind": kind, "key": record.key, "review": digest_of(record)}
    text = render(
        {
            "title": _TITLES[kind],
            "key": record.key,
            "where": _where(record),
            "sentence": _sentence(record),
            "figures": figures,
            "cards": cards,
            "refused": refused,
            "has_masks": with_mask > 0,
            "scale_uri": colour_scale_uri(),
            "next_command": next_command,
            "file_name": f"decisions-{kind}-{record.key}.json",
            # A script ends at the first "</", whatever it stands in.
            "binding": Markup(json.dumps(binding).replace("<", "\\u003c")),
            "style": Markup(_TEMPLATE.with_name("review.css").read_text(encoding="utf-8")),
            "script": Markup(_TEMPLATE.with_name("review.js").read_text(encoding="utf-8")),
        },
        _TEMPLATE,
    )
    write_file(path, text.encode())


def _where(record: ReviewRecord) -> str:
    if record.kind == "masks":
        return f"defects of class {record.defect}" if record.defect else "defects of several classes"
    return f"for the night of {record.night}" if record.night else "before the first night"


def _sentence(record: ReviewRecord) -> str:
    judged = f"Judged by {record.judged_by}."
    if record.kind == "masks":
        return f"Accept a mask that covers the defect and nothing else; it goes into the golden set. {judged}"
    return f"Accept the images of good parts: they become the lot of a night. {judged}"
