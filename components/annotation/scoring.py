"""Scoring of a folder's images, with masks for some, and both written down as pictures."""

import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from components.annotation.images import SourceImage
from components.annotation.review import ReviewItem
from components.core.atomic_files import write_file
from components.core.errors import InputError
from components.rendering.pictures import Picture, ThumbnailEncoder, open_picture, outlined, overlay
from components.zero_shot import MaskProposer, Scorer
from stlm.data.image_files import read_image
from stlm.errors import StlmError

__all__ = ["ImageCard", "Judged", "draw_masks", "judge_images", "make_cards"]

logger = logging.getLogger(__name__)

_CHUNK = 8
_KEPT_PX = 96
"""Longer side of the maps that are kept for painting: hundreds of them must fit into memory."""
_HEAT_MAP_PX = 1024
_PANEL_PX = 196
_SPAN = 0.95


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """One image with its score and a small copy of its map."""

    entry: ReviewItem
    small_map: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCard:
    """One image on the page."""

    name: str
    score: str
    remark: str
    mask: str
    """Where its mask comes from; empty for none, and where it goes without saying."""
    decidable: bool
    suspicious: bool
    panels: tuple[tuple[str, Picture], ...]


def judge_images(folder: Path, listed: tuple[SourceImage, ...], judge: Scorer) -> list[Judged]:
    """Score every image that is not refused.

    Args:
        folder: Whose images.
        listed: The images.
        judge: Who judges.

    Returns:
        Most suspicious first; by name where equal.

    Raises:
        InputError: An image cannot be read any more, or the judge refuses it.
    """
    images = [image for image in listed if not image.refused]
    judged: list[Judged] = []
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        pictures = [_read(folder / image.name) for image in part]
        try:
            found = judge.judge(pictures)
        except StlmError as error:
            raise InputError(f"{folder}: {error}") from error
        judged += [
            Judged(
                entry=ReviewItem(
                    name=image.name, bytes=image.bytes, sha256=image.sha256, score=said.score, remark=said.remark
                ),
                small_map=_small(said.anomaly_map),
            )
            for image, said in zip(part, found, strict=True)
        ]
        logger.info("judged images=%d of=%d by=%s", len(judged), len(images), judge.name)
    return sorted(judged, key=lambda item: (-(item.entry.score or 0.0), item.entry.name))


def draw_masks(
    folder: Path,
    judged: list[Judged],
    judge: Scorer,
    artist: MaskProposer,
    into: Path,
    wanted: Callable[[int, ReviewItem], bool],
) -> list[Judged]:
    """Draw the masks that are wanted and write them as ``<into>/masks/<name>.png``, 0 and 255.

    Args:
        folder: Whose images.
        judged: Of :func:`judge_images`.
        judge: Who judged.
        artist: Who draws.
        into: The review's folder.
        wanted: Rank and entry -> whether it gets a mask.

    Returns:
        The same images, with their masks where there are any.

    Raises:
        InputError: An image cannot be read any more.
    """
    drawn = []
    for rank, item in enumerate(judged):
        if not wanted(rank, item.entry):
            drawn.append(item)
            continue
        image = _read(folder / item.entry.name)
        # Judged again, because only small copies of hundreds of maps are kept.
        found = artist.draw(image, judge.judge([image])[0].anomaly_map)
        if not found.mask.any():
            drawn.append(item)
            continue
        name = f"masks/{item.entry.name}.png"
        content = _png(Image.fromarray(found.mask.astype(np.uint8) * 255))
        write_file(into / name, content)
        digest = hashlib.sha256(content).hexdigest()
        entry = replace(item.entry, mask=name, mask_sha256=digest, mask_source=found.source)
        drawn.append(replace(item, entry=entry))
        logger.info("mask rank=%d image=%s source=%s", rank, item.entry.name, found.source)
    return drawn


def make_cards(
    folder: Path,
    judged: list[Judged],
    into: Path,
    album: ThumbnailEncoder,
    *,
    threshold: float | None,
    needs_mask: bool,
) -> list[ImageCard]:
    """Paint the heat maps, as ``<into>/heat_maps/<name>.png`` and small for the page.

    Args:
        folder: Whose images.
        judged: Most suspicious first.
        into: The review's folder, which holds the masks.
        album: Encodes the page's pictures.
        threshold: Scores above it are anomalous, where that is known.
        needs_mask: Whether an image without a mask cannot be decided.

    Returns:
        One per image, in order.
    """
    scale = _scale([item.small_map for item in judged])
    # Without SAM every mask is the thresholded map; the page says so once.
    refined = any(item.entry.mask_source not in ("", "region") for item in judged)
    cards = []
    for item in judged:
        entry = item.entry
        image = open_picture(folder / entry.name)
        mask = open_picture(into / entry.mask) if entry.mask else None
        large = image.copy()
        large.thumbnail((_HEAT_MAP_PX, _HEAT_MAP_PX))
        write_file(into / f"heat_maps/{entry.name}.png", _png(overlay(large, item.small_map, scale, mask)))
        thumbnail = album.fit(image, _PANEL_PX)
        panels = [("image", thumbnail), ("heat map", overlay(thumbnail, item.small_map, scale))]
        if mask is not None:
            panels.append(("mask", outlined(thumbnail, mask)))
        cards.append(
            ImageCard(
                name=entry.name,
                score=f"{entry.score:.4g}",
                remark=entry.remark,
                mask=_words(entry.mask_source) if entry.mask and refined else "",
                decidable=bool(entry.mask) or not needs_mask,
                suspicious=threshold is not None and entry.score is not None and entry.score > threshold,
                panels=tuple((view, album.add(picture, f"{view} of {entry.name}")) for view, picture in panels),
            )
        )
    return cards


def _words(source: str) -> str:
    return "the thresholded map" if source == "region" else source


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return read_image(path)
    except StlmError as error:
        raise InputError(str(error)) from error


def _small(anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = anomaly_map.shape
    factor = min(1.0, _KEPT_PX / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    values = torch.from_numpy(np.ascontiguousarray(anomaly_map))[None, None]
    # The mean of what is under a cell would dim a small defect.
    small: NDArray[np.float32] = F.adaptive_max_pool2d(values, size)[0, 0].numpy()
    return small


def _scale(maps: list[NDArray[np.float32]]) -> tuple[float, float]:
    """From the usual pixel of the folder to nearly its highest peak, the same for all of its pictures."""
    low = float(np.median([np.median(values) for values in maps]))
    high = float(np.quantile([values.max() for values in maps], _SPAN))
    return low, high if high > low else low + 1e-6


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
