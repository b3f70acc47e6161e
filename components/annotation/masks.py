"""Mask annotation: masks of confirmed defects, proposed from a map, saved in the golden set after a person's yes."""

import hashlib
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from components.annotation.images import SourceImage, list_images, refuse_small
from components.annotation.page import MAX_PAGE_BYTES, write_page
from components.annotation.review import (
    Review,
    ReviewItem,
    ReviewRecord,
    accepted_entries,
    all_entries,
    find_record,
    read_decisions,
    review,
)
from components.annotation.scorers import MapOf, find_champion, open_judge, texts_digest
from components.annotation.scoring import draw_masks, judge_images, make_cards
from components.config import MlflowSettings
from components.config.zero_shot import ZeroShotSettings
from components.core.atomic_files import write_file
from components.core.contracts import Contract, ModelKey, ModelRef
from components.core.errors import InputError
from components.rendering.pictures import ThumbnailEncoder
from stlm.constants import GOOD
from stlm.data.layout import read_golden_set
from stlm.errors import DataError

__all__ = ["AcceptedMasks", "MasksInputs", "accept_masks", "masks"]

logger = logging.getLogger(__name__)

_CLASS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MasksInputs(Contract):
    """Which images, of which defect, and whose map."""

    key: ModelKey
    work_dir: str
    folder: str
    mlflow: MlflowSettings
    defect: str = ""
    """Class of the defects, as its folder in the golden set is named; empty: the folder has a sub-folder per class,
    as ``test`` of a golden set."""
    map: MapOf = "auto"
    settings: ZeroShotSettings = field(default_factory=ZeroShotSettings)
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if self.defect and (not _CLASS.fullmatch(self.defect) or self.defect == GOOD):
            raise ValueError(f"defect must be letters, digits, '-' or '_', and not {GOOD!r}; got {self.defect!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedMasks(Contract):
    """What was added to the golden set."""

    golden: str
    num_masks: int
    num_images: int
    """Images that were not in the golden set before."""
    golden_digest: str


def masks(inputs: MasksInputs) -> Review:
    """Propose a mask for every image of a folder, and write the page to decide on.

    Args:
        inputs: The folder and whose map.

    Returns:
        Where the page is; the same for the same images and map.

    Raises:
        InputError: No image can be judged, or there is no judge: no CLIP is configured and no champion is there.
        TransientError: MLflow cannot be reached.
    """
    listed = list_images(Path(inputs.folder), max_pixels=inputs.max_pixels)
    if not inputs.defect:
        listed = _with_classes(Path(inputs.folder), listed)
    champion = find_champion(inputs.map, inputs.key, inputs.work_dir, inputs.mlflow)

    def body(into: Path) -> ReviewRecord:
        return _propose(inputs, listed, champion, into)

    pinned = {
        "inputs": inputs,
        "images": listed,
        "champion": champion,
        "texts": texts_digest(inputs.settings, inputs.key.product),
    }
    return review(inputs.work_dir, inputs.key, "masks", pinned, body)


def _with_classes(folder: Path, listed: tuple[SourceImage, ...]) -> tuple[SourceImage, ...]:
    """Only images in the sub-folder of a defect class."""
    defective = []
    for image in listed:
        name = image.name.split("/")[0] if "/" in image.name else ""
        if not _CLASS.fullmatch(name):
            raise InputError(f"{folder / image.name} lies in no folder of a defect class; name the class with --defect")
        if name != GOOD:
            defective.append(image)
    if not defective:
        raise InputError(f"folder {folder} has no image of a defect class")
    return tuple(defective)


def _propose(
    inputs: MasksInputs, listed: tuple[SourceImage, ...], champion: ModelRef | None, into: Path
) -> ReviewRecord:
    settings, folder = inputs.settings, Path(inputs.folder)
    judge, artist = open_judge(champion, settings, inputs.key.product, inputs.work_dir)
    listed = refuse_small(listed, folder, judge.min_side_px)
    judged = judge_images(folder, listed, judge)
    drawn = draw_masks(folder, judged, judge, artist, into, lambda _rank, _entry: True)
    record = ReviewRecord(
        kind="masks",
        key=inputs.key.slug,
        defect=inputs.defect,
        folder=str(folder),
        judged_by=judge.name,
        threshold=judge.threshold,
        masks_by=artist.name,
        entries=all_entries((item.entry for item in drawn), listed),
    )
    album = ThumbnailEncoder(max_bytes=MAX_PAGE_BYTES)
    cards = make_cards(folder, drawn, into, album, threshold=judge.threshold, needs_mask=True)
    command = f"stlm masks --key {record.key} --accept decisions-masks-{record.key}.json"
    write_page(into / "page.html", record, cards, command)
    return record


@dataclass(frozen=True, kw_only=True, slots=True)
class _Addition:
    image: Path
    content: bytes
    mask: Path
    mask_content: bytes


def accept_masks(decisions_path: Path, *, work_dir: str, key: ModelKey, golden: str) -> AcceptedMasks:
    """Save the accepted masks, and their images where they are new, in MVTec layout.

    Args:
        decisions_path: What the page handed out.
        work_dir: Where the review was made.
        key: Whose images.
        golden: The golden set; made where it is missing.

    Returns:
        What was added; the same decisions again change nothing.

    Raises:
        InputError: The decisions belong to another key or review, an image or mask is not what was shown, the golden
            set has another file of that name, or it would be left with masks for only some of its defects.
    """
    decisions = read_decisions(decisions_path, "masks", key)
    record, folder = find_record(work_dir, decisions)
    root = Path(golden)
    additions = [_addition(record, folder, entry, root) for entry in accepted_entries(record, decisions)]
    _check_additions(root, additions)
    num_images = sum(not addition.image.exists() for addition in additions)
    for addition in additions:
        write_file(addition.mask, addition.mask_content)
        if not addition.image.exists():
            write_file(addition.image, addition.content)
    try:
        digest = read_golden_set(root).digest
    except DataError as error:
        raise InputError(str(error)) from error
    logger.info("masks golden=%s masks=%d images=%d", root, len(additions), num_images)
    return AcceptedMasks(golden=str(root), num_masks=len(additions), num_images=num_images, golden_digest=digest)


def _addition(record: ReviewRecord, folder: Path, entry: ReviewItem, root: Path) -> _Addition:
    if not entry.mask:
        raise InputError(f"{entry.name} was accepted, but no mask was proposed for it")
    source = Path(record.folder) / entry.name
    defect = record.defect or entry.name.split("/")[0]
    return _Addition(
        image=root / "test" / defect / source.name,
        content=_as_shown(source, entry.sha256),
        mask=root / "ground_truth" / defect / f"{source.stem}_mask.png",
        mask_content=_as_shown(folder / entry.mask, entry.mask_sha256),
    )


def _as_shown(path: Path, sha256: str) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{path} is not what was shown: expected sha256 {sha256}")
    return content


def _check_additions(root: Path, additions: list[_Addition]) -> None:
    """Refuse what would leave a golden set that the next night cannot read; nothing is written before."""
    stems = [addition.mask for addition in additions]
    twice = sorted({mask.name for mask in stems if stems.count(mask) > 1})
    if twice:
        raise InputError(f"accepted images would share the mask {twice[0]}; rename them")
    for addition in additions:
        for path, content in ((addition.image, addition.content), (addition.mask, addition.mask_content)):
            if path.exists() and path.read_bytes() != content:
                raise InputError(f"{path} is there already and differs; remove it, or rename the image")
        others = [path for path in addition.image.parent.glob("*") if path.stem == addition.image.stem]
        if any(path != addition.image for path in others):
            raise InputError(f"{addition.image} and {others[0]} would share a mask; rename the image")
    have = {path for path in root.glob("ground_truth/*/*") if path.is_file()} | set(stems)
    defective = [path for path in root.glob("test/*/*") if path.parent.name != GOOD and not path.name.startswith(".")]
    bare = sorted(
        path.relative_to(root).as_posix()
        for path in defective
        if root / "ground_truth" / path.parent.name / f"{path.stem}_mask.png" not in have
    )
    if bare:
        raise InputError(
            f"golden set {root} would have masks for some defects and none for {len(bare)} others, such as {bare[0]}; "
            "propose masks for all of its folder `test` and accept them in one go"
        )
