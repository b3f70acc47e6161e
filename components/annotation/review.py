"""Review records: what was put before a person, and what the person decided, bound to each other by a digest.

``<work_dir>/reviews/<key>/<kind>-<digest of the inputs>/`` keeps ``record.json``, ``page.html``, ``heat_maps/`` and
``masks/``. The page hands out ``decisions.json``, which names the digest of the record.
"""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from components.annotation.images import SourceImage
from components.core.atomic_files import write_json
from components.core.contracts import Contract, ModelKey, digest_of, from_json
from components.core.errors import InputError

__all__ = [
    "Decisions",
    "Kind",
    "Review",
    "ReviewItem",
    "ReviewRecord",
    "accepted_entries",
    "all_entries",
    "find_record",
    "read_decisions",
    "review",
]

logger = logging.getLogger(__name__)

Kind = Literal["screen", "masks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewItem(Contract):
    """One image of a review."""

    name: str
    """Relative to the reviewed folder."""
    bytes: int
    sha256: str
    refused: str = ""
    """Why it was not judged; then the rest is empty."""
    score: float | None = None
    remark: str = ""
    """What it looks like, where the judge has words for it."""
    mask: str = ""
    """Its mask, relative to the review; empty for none."""
    mask_sha256: str = ""
    mask_source: str = ""
    """Which pass of the cascade the mask is of; ``region`` for the thresholded map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewRecord(Contract):
    """What a person was shown."""

    kind: Kind
    key: str
    folder: str
    judged_by: str
    threshold: float | None
    masks_by: str
    entries: tuple[ReviewItem, ...]
    """Most suspicious first; then those that were refused."""
    night: str = ""
    """The night that the images are meant for, where one was named."""
    defect: str = ""
    """Class of the confirmed defects, for masks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Review(Contract):
    """Where everything is."""

    folder: str
    page_path: str
    digest: str
    """Of the record: what the decisions are bound to."""
    judged_by: str
    masks_by: str
    num_images: int
    num_masks: int
    refused: tuple[str, ...]
    """``name: why`` for each image that was not judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions(Contract):
    """What the page hands out."""

    kind: Kind
    key: str
    review: str
    """Digest of the record."""
    decisions: dict[str, Literal["accept", "reject"]]
    """Name -> decision; an image that is not named is undecided."""


def review(work_dir: str, key: ModelKey, kind: Kind, inputs: Any, body: Callable[[Path], ReviewRecord]) -> Review:
    """Make a review once for the same inputs.

    Args:
        work_dir: Folder that every worker sees.
        key: Whose images.
        kind: What is decided.
        inputs: Everything the review depends on, the images' digests included.
        body: Judges, writes masks and page into the folder, and returns the record.

    Returns:
        The review, fresh or remembered.
    """
    folder = Path(work_dir) / "reviews" / key.slug / f"{kind}-{digest_of(inputs)[:16]}"
    done = folder / "review.json"
    if done.exists():
        logger.info("%s remembered review=%s", kind, folder)
        return from_json(Review, json.loads(done.read_text(encoding="utf-8")), where=str(done))
    record = body(folder)
    write_json(folder / "record.json", record)
    found = Review(
        folder=str(folder),
        page_path=str(folder / "page.html"),
        digest=digest_of(record),
        judged_by=record.judged_by,
        masks_by=record.masks_by,
        num_images=sum(not entry.refused for entry in record.entries),
        num_masks=sum(bool(entry.mask) for entry in record.entries),
        refused=tuple(f"{entry.name}: {entry.refused}" for entry in record.entries if entry.refused),
    )
    write_json(done, found)
    return found


def all_entries(judged: Iterable[ReviewItem], listed: Iterable[SourceImage]) -> tuple[ReviewItem, ...]:
    """The entries of a record.

    Args:
        judged: What was judged, most suspicious first.
        listed: All images of the folder.

    Returns:
        What was judged, then what was refused.
    """
    refused = (
        ReviewItem(name=image.name, bytes=image.bytes, sha256=image.sha256, refused=image.refused)
        for image in listed
        if image.refused
    )
    return (*judged, *refused)


def read_decisions(path: Path, kind: Kind, key: ModelKey) -> Decisions:
    """Read a person's decisions.

    Args:
        path: The file that the page handed out.
        kind: What they must be about.
        key: Whose images they must be about.

    Returns:
        The checked decisions.

    Raises:
        InputError: The file is missing, damaged, or about something else.
    """
    try:
        decisions = from_json(Decisions, json.loads(path.read_text(encoding="utf-8")), where=path.name)
    except (OSError, ValueError) as error:
        raise InputError(f"decisions {path}: {error}") from error
    if decisions.kind != kind:
        raise InputError(f"decisions {path}: expected decisions of `stlm {kind}`, got those of `stlm {decisions.kind}`")
    if decisions.key != key.slug:
        raise InputError(f"decisions {path} are about {decisions.key}, not {key.slug}")
    return decisions


def find_record(work_dir: str, decisions: Decisions) -> tuple[ReviewRecord, Path]:
    """The record that decisions are about.

    Args:
        work_dir: Where reviews are kept.
        decisions: A person's.

    Returns:
        The record and its folder.

    Raises:
        InputError: There is no such review, or its record was altered.
    """
    folder = Path(work_dir) / "reviews" / decisions.key
    for path in sorted(folder.glob(f"{decisions.kind}-*/review.json")):
        if json.loads(path.read_text(encoding="utf-8")).get("digest") == decisions.review:
            raw = json.loads((path.parent / "record.json").read_text(encoding="utf-8"))
            record = from_json(ReviewRecord, raw, where=str(path.parent / "record.json"))
            if digest_of(record) != decisions.review:
                raise InputError(f"{path.parent / 'record.json'} is not what was shown: its digest has changed")
            return record, path.parent
    raise InputError(
        f"no review {decisions.review[:16]} of {decisions.key} in {folder}: was it made with this work_dir?"
    )


def accepted_entries(record: ReviewRecord, decisions: Decisions) -> tuple[ReviewItem, ...]:
    """The entries that were accepted, sorted by name.

    Args:
        record: What was shown.
        decisions: What was decided.

    Returns:
        At least one.

    Raises:
        InputError: A decision is about no image that could be decided, or none was accepted.
    """
    decidable = {entry.name: entry for entry in record.entries if not entry.refused}
    unknown = sorted(set(decisions.decisions) - set(decidable))
    if unknown:
        raise InputError(f"decisions name {unknown[0]!r}, which is no image of the review that could be decided")
    accepted = tuple(decidable[name] for name, said in sorted(decisions.decisions.items()) if said == "accept")
    if not accepted:
        raise InputError(f"none of the {len(decidable)} images was accepted; nothing was written")
    return accepted
