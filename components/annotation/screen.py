"""Images of a product that has no model yet, put before a person: most suspicious first, with heat maps and masks.

CLIP judges by text alone; where the key has a champion, its own map can. The page hands out a decision file, and
:func:`accept_images` makes a lot of the accepted images, with its manifest, in the landing zone: the first night.
"""

import datetime as dt
import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from components.adapters.landing import deliver, lot_manifest, open_landing
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
from components.core.contracts import Contract, ModelKey, ModelRef, RunRef
from components.core.errors import InputError
from components.rendering.pictures import ThumbnailEncoder
from components.zero_shot import Scorer

__all__ = ["AcceptedLot", "ScreenInputs", "accept_images", "screen"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreenInputs(Contract):
    """Which images, for which night, and who judges them."""

    run: RunRef
    """The night that the accepted images are meant for."""
    folder: str
    """Images, or lots of images in sub-folders."""
    mlflow: MlflowSettings
    map: MapOf = "auto"
    settings: ZeroShotSettings = field(default_factory=ZeroShotSettings)
    max_pixels: int = 50_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedLot(Contract):
    """The lot that a person's decisions became."""

    lot: str
    place: str
    num_accepted: int
    num_rejected: int
    num_undecided: int


def screen(inputs: ScreenInputs) -> Review:
    """Score a folder, sort it by suspicion, write heat maps, masks and the page to decide on.

    Args:
        inputs: The folder and its judge.

    Returns:
        Where the page is; the same for the same images and judge.

    Raises:
        InputError: No image can be judged, or there is no judge: no CLIP is configured and no champion is there.
        TransientError: MLflow cannot be reached.
    """
    folder = Path(inputs.folder)
    listed = list_images(folder, max_pixels=inputs.max_pixels)
    champion = find_champion(inputs.map, inputs.run.key, inputs.run.work_dir, inputs.mlflow)
    pinned = {
        "inputs": inputs,
        "images": listed,
        "champion": champion,
        "texts": texts_digest(inputs.settings, inputs.run.key.product),
    }

    def body(into: Path) -> ReviewRecord:
        return _screen(inputs, listed, champion, into)

    return review(inputs.run.work_dir, inputs.run.key, "screen", pinned, body)


def _screen(
    inputs: ScreenInputs, listed: tuple[SourceImage, ...], champion: ModelRef | None, into: Path
) -> ReviewRecord:
    settings, folder = inputs.settings, Path(inputs.folder)
    judge, artist = open_judge(champion, settings, inputs.run.key.product, inputs.run.work_dir)
    listed = refuse_small(listed, folder, judge.min_side_px)

    def wanted(rank: int, entry: ReviewItem) -> bool:
        return rank < settings.max_masks and _is_suspicious(judge, entry)

    judged = draw_masks(folder, judge_images(folder, listed, judge), judge, artist, into, wanted)
    record = ReviewRecord(
        kind="screen",
        key=inputs.run.key.slug,
        night=inputs.run.partition,
        folder=str(folder),
        judged_by=judge.name,
        threshold=judge.threshold,
        masks_by=artist.name,
        entries=all_entries((item.entry for item in judged), listed),
    )
    album = ThumbnailEncoder(max_bytes=MAX_PAGE_BYTES)
    cards = make_cards(folder, judged, into, album, threshold=judge.threshold, needs_mask=False)
    command = f"stlm screen --key {record.key} --accept decisions-screen-{record.key}.json"
    write_page(into / "page.html", record, cards, command)
    return record


def _is_suspicious(judge: Scorer, entry: ReviewItem) -> bool:
    return judge.threshold is None or (entry.score is not None and entry.score > judge.threshold)


def accept_images(
    decisions_path: Path,
    *,
    work_dir: str,
    key: ModelKey,
    landing: str,
    night: str = "",
    lot: str = "",
    s3_endpoint_url: str = "",
) -> AcceptedLot:
    """Deliver the accepted images as one lot; undecided and rejected ones stay where they are.

    Args:
        decisions_path: What the page handed out.
        work_dir: Where the review was made.
        key: Whose images.
        landing: The landing zone.
        night: ``YYYY-MM-DD``, the lot's date; empty for the night that was screened for.
        lot: Its name; empty for ``<night>-screened`` without hyphens in the date.
        s3_endpoint_url: Server of an ``s3://`` landing zone that is not AWS.

    Returns:
        The lot; the same decisions again change nothing.

    Raises:
        InputError: The decisions belong to another key or review, an image is not what was shown, or there is another
            lot of this name.
    """
    decisions = read_decisions(decisions_path, "screen", key)
    record, _ = find_record(work_dir, decisions)
    try:
        date = dt.date.fromisoformat(night or record.night).isoformat()
    except ValueError as error:
        raise InputError(f"night {night!r}: expected YYYY-MM-DD") from error
    accepted = accepted_entries(record, decisions)
    images = _named(record, accepted)
    lot = lot or f"{date.replace('-', '')}-screened"
    manifest = lot_manifest(images, key, lot, date).encode()
    storage, place = open_landing(landing, s3_endpoint_url), f"{key.path}/{lot}"
    deliver(storage, place, images, manifest)
    said = list(decisions.decisions.values())
    logger.info("screen lot=%s accepted=%d", lot, len(accepted))
    return AcceptedLot(
        lot=lot,
        place=f"{storage.uri}/{place}",
        num_accepted=len(accepted),
        num_rejected=said.count("reject"),
        num_undecided=sum(not entry.refused for entry in record.entries) - len(said),
    )


def _named(record: ReviewRecord, accepted: tuple[ReviewItem, ...]) -> dict[str, Path]:
    """Plain names for the lot, and the files, which must still be what was shown."""
    images: dict[str, Path] = {}
    for entry in accepted:
        path = Path(record.folder) / entry.name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
            raise InputError(f"{path} is not the image that was shown: expected sha256 {entry.sha256}")
        images[entry.name.replace("/", "-")] = path
    if len({name.casefold() for name in images}) < len(accepted):
        raise InputError(f"accepted images of {record.folder} would have the same name in one lot; rename them")
    return images
