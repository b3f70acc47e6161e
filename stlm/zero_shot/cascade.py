"""From an anomaly map to a mask: SAM's light decoder three times, each time with tighter prompts.

Any map will do, CLIP's or a trained model's. The image is encoded once; the three passes see points, then points and
the first answer, then points, the second answer and the box of its most anomalous part.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from stlm.errors import DataError
from stlm.zero_shot.config import CascadeConfig
from stlm.zero_shot.points import find_region, map_on_grid, negative_points, positive_points, ring_around
from stlm.zero_shot.segmenter import Embedding, Prompts, Segmenter

__all__ = ["Refinement", "image_features", "refine_mask", "region_mask"]

Source = Literal["pass 3", "pass 2", "pass 1", "region", "nothing"]
_PASSES: tuple[Source, ...] = ("pass 1", "pass 2", "pass 3")
_EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Refinement:
    """A refined mask and how it came about."""

    mask: NDArray[np.bool_]
    """``(H, W)`` at the image's size."""
    source: Source
    """Whose mask it is: an empty answer never replaces one that is not. ``nothing``: the region was empty."""
    region: NDArray[np.bool_]
    """``(H, W)`` at the image's size: the thresholded map."""
    points: NDArray[np.float64]
    """``(N, 2)`` as (x, y) in pixels of the image."""
    labels: NDArray[np.int64]
    """``(N,)``: 1 inside the region, 0 in the ring around it."""
    box: tuple[float, float, float, float] | None
    """Left, top, right, bottom in pixels of the image; what the third pass was told."""
    logits: tuple[Tensor, ...]
    """``(4h, 4w)`` of each pass, over SAM's padded square."""


def refine_mask(
    anomaly_map: NDArray[np.float32],
    segmenter: Segmenter,
    embedding: Embedding,
    config: CascadeConfig,
    *,
    threshold: float | None = None,
) -> Refinement:
    """Refine a map to a mask.

    Args:
        anomaly_map: ``(h, w)`` finite float over the whole image; larger is more anomalous, any scale.
        segmenter: Whose decoder is asked.
        embedding: The image, encoded by ``segmenter``.
        config: The constants.
        threshold: Value of the map above which a pixel is anomalous, where one is known.

    Returns:
        The mask: empty only where the region is.

    Raises:
        DataError: The map is no finite ``(h, w)`` array.
    """
    _check(anomaly_map)
    size = embedding.image_size
    values = map_on_grid(anomaly_map, size, config.frame_px)
    region = find_region(values, config.region_level, threshold)
    if not region.any():
        return _unrefined(region, size)
    side = max(region.shape)
    inside = positive_points(values, region, number=config.num_positives, spacing=config.positive_spacing * side)
    ring = ring_around(region, round(config.ring_kernel * side))
    outside = negative_points(
        image_features(embedding), region, ring,
        number=config.num_negatives, spacing=config.negative_spacing * side,
    )  # fmt: skip
    points = _to_pixels(np.concatenate([inside, outside]), region.shape, size)
    labels = np.array([1] * len(inside) + [0] * len(outside), dtype=np.int64)

    first = segmenter.decode(embedding, Prompts(points=points, labels=labels))
    second = segmenter.decode(embedding, Prompts(points=points, labels=labels, logits=first))
    answers = [first, second]
    box = _box(values, _mask(second, embedding, region.shape), size)
    if box is not None:
        answers.append(segmenter.decode(embedding, Prompts(points=points, labels=labels, box=box, logits=second)))
    mask, source = _last_that_says_something(answers, embedding, region)
    return Refinement(
        mask=mask,
        source=source,
        region=_enlarged(region, size),
        points=points,
        labels=labels,
        box=box,
        logits=tuple(answers),
    )


def region_mask(
    anomaly_map: NDArray[np.float32],
    image_size: tuple[int, int],
    config: CascadeConfig,
    *,
    threshold: float | None = None,
) -> Refinement:
    """The thresholded map as it is, for who has no SAM.

    Args:
        anomaly_map: ``(h, w)`` finite float over the whole image.
        image_size: ``(height, width)`` of the image.
        config: The constants.
        threshold: Value of the map above which a pixel is anomalous, where one is known.

    Returns:
        The region as mask, without points and passes.

    Raises:
        DataError: The map is no finite ``(h, w)`` array.
    """
    _check(anomaly_map)
    values = map_on_grid(anomaly_map, image_size, config.frame_px)
    return _unrefined(find_region(values, config.region_level, threshold), image_size)


def image_features(embedding: Embedding) -> Tensor:
    """The features that lie on the image, without those of the padding: ``(C, h, w)``."""
    _, height, width = embedding.features.shape
    rows = max(1, round(height * embedding.input_size[0] / embedding.square_px))
    columns = max(1, round(width * embedding.input_size[1] / embedding.square_px))
    return embedding.features[:, :rows, :columns]


def _check(anomaly_map: NDArray[np.float32]) -> None:
    if anomaly_map.ndim != 2 or 0 in anomaly_map.shape or not np.isfinite(anomaly_map).all():
        raise DataError(f"anomaly map: expected a finite (h, w) array, got {anomaly_map.dtype} {anomaly_map.shape}")


def _unrefined(region: NDArray[np.bool_], size: tuple[int, int]) -> Refinement:
    mask = _enlarged(region, size)
    return Refinement(
        mask=mask,
        source="region" if region.any() else "nothing",
        region=mask,
        points=np.empty((0, 2)),
        labels=np.empty(0, dtype=np.int64),
        box=None,
        logits=(),
    )


def _to_pixels(cells: NDArray[np.int64], grid: tuple[int, ...], size: tuple[int, int]) -> NDArray[np.float64]:
    """Centres of grid cells (row, column) as pixels (x, y), pixel centres at whole numbers."""
    scale = np.array([size[1] / grid[1], size[0] / grid[0]])
    pixels: NDArray[np.float64] = (cells[:, ::-1] + 0.5) * scale - 0.5
    return pixels.clip(0.0, np.array([size[1], size[0]]) - 1.0)


def _enlarged(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    values = torch.from_numpy(mask[None, None].astype(np.uint8))
    enlarged: NDArray[np.bool_] = F.interpolate(values, size=size, mode="nearest-exact")[0, 0].numpy().astype(bool)
    return enlarged


def _mask(logits: Tensor, embedding: Embedding, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Logits above 0 at ``(height, width)``, as segment-anything does it: to the square, cropped, to the size."""
    square = (embedding.square_px, embedding.square_px)
    whole = F.interpolate(logits[None, None], size=square, mode="bilinear", align_corners=False)
    cropped = whole[..., : embedding.input_size[0], : embedding.input_size[1]]
    values = F.interpolate(cropped, size=size, mode="bilinear", align_corners=False)[0, 0]
    mask: NDArray[np.bool_] = (values > 0).cpu().numpy()
    return mask


def _box(
    values: NDArray[np.float32], mask: NDArray[np.bool_], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Box, in pixels, of the 8-connected part of ``mask`` with the highest mean of ``values``; None where empty."""
    labelled, number = ndimage.label(mask, structure=_EIGHT)
    if number == 0:
        return None
    means = ndimage.mean(values, labelled, index=np.arange(1, number + 1))
    rows, columns = ndimage.find_objects(labelled)[int(np.argmax(means))]
    high, wide = size[0] / mask.shape[0], size[1] / mask.shape[1]
    return (columns.start * wide, rows.start * high, columns.stop * wide - 1.0, rows.stop * high - 1.0)


def _last_that_says_something(
    answers: list[Tensor], embedding: Embedding, region: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], Source]:
    for name, logits in reversed(list(zip(_PASSES, answers, strict=False))):
        mask = _mask(logits, embedding, embedding.image_size)
        if mask.any():
            return mask, name
    return _enlarged(region, embedding.image_size), "region"
