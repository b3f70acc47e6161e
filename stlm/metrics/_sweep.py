"""One sort of the pixels, read by every pixel metric.

A pixel metric changes its value only at the scores of defect pixels: between two of them the curves run level. So the
normal pixels are sorted once, and everything is read off at the distinct scores of the (few) defect pixels. This is
exact, ties included, and for 250 maps of 256 x 256 costs one sort of 16 million floats.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stlm.errors import MetricUndefinedError
from stlm.metrics.regions import Regions, label_regions

__all__ = ["Sweep", "area_up_to", "checked_stack", "sweep"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What lies at or above each distinct score of a defect pixel, highest first (``K`` of them)."""

    found: npt.NDArray[np.int64]
    """``(K,)`` defect pixels at or above."""
    overlap: Floats
    """``(K,)`` mean over the regions of their share at or above."""
    alarms_above: npt.NDArray[np.int64]
    """``(K,)`` normal pixels strictly above."""
    alarms_from: npt.NDArray[np.int64]
    """``(K,)`` normal pixels at or above."""
    num_normal: int
    num_defect: int
    normal: npt.NDArray[Any]
    """``(num_normal,)`` scores of the normal pixels, rising."""
    defect: npt.NDArray[Any]
    """``(num_defect,)`` scores of the defect pixels in the order of ``masks[masks]``."""
    regions: Regions


def checked_stack(anomaly_maps: npt.ArrayLike, masks: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Check a stack of maps and masks.

    Args:
        anomaly_maps: ``(N, H, W)`` real.
        masks: ``(N, H, W)``; true on defect pixels.

    Returns:
        Both as arrays, floating and bool.

    Raises:
        MetricUndefinedError: Shapes differ or are not ``(N, H, W)``, or a value is not finite.
    """
    maps = np.asarray(anomaly_maps)
    if not np.issubdtype(maps.dtype, np.floating):
        maps = maps.astype(np.float64)
    stack = np.asarray(masks).astype(bool, copy=False)
    if maps.ndim != 3 or maps.shape != stack.shape:
        raise MetricUndefinedError(f"maps are {maps.shape}, masks are {stack.shape}; both must be (N, H, W)")
    if not np.isfinite(maps).all():
        raise MetricUndefinedError(f"{np.count_nonzero(~np.isfinite(maps))} of {maps.size} map values are not finite")
    return maps, stack


def sweep(maps: npt.NDArray[Any], masks: npt.NDArray[np.bool_]) -> Sweep:
    """Sort the pixels once and count along the defect pixels' scores.

    Args:
        maps: ``(N, H, W)`` floating, checked.
        masks: ``(N, H, W)`` bool.

    Returns:
        The counts.

    Raises:
        MetricUndefinedError: There is no defect pixel or no normal pixel.
    """
    defect = maps[masks]
    if defect.size == 0:
        raise MetricUndefinedError(f"no defect pixel in {len(masks)} masks")
    if defect.size == masks.size:
        raise MetricUndefinedError(f"no normal pixel in {len(masks)} masks")
    normal = maps[~masks]
    normal.sort()
    regions = label_regions(masks)

    order = np.argsort(-defect, kind="stable")
    ordered = defect[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    thresholds = ordered[ends]
    weight = 1.0 / (regions.size_px[regions.pixel_region[order]] * regions.num_regions)
    return Sweep(
        found=ends.astype(np.int64) + 1,
        overlap=np.cumsum(weight, dtype=np.float64)[ends],
        alarms_above=normal.size - np.searchsorted(normal, thresholds, side="right").astype(np.int64),
        alarms_from=normal.size - np.searchsorted(normal, thresholds, side="left").astype(np.int64),
        num_normal=normal.size,
        num_defect=defect.size,
        normal=normal,
        defect=defect,
        regions=regions,
    )


def area_up_to(x: Floats, y: Floats, limit: float) -> Floats:
    """Area under piecewise linear curves from ``x = 0`` to ``limit``, cut by linear interpolation.

    Args:
        x: ``(..., K)`` rising, first 0, last at least ``limit``; equal neighbours are a vertical step.
        y: ``(..., K)`` values at ``x``.
        limit: Where to stop.

    Returns:
        ``(...)`` areas.
    """
    step = np.diff(x, axis=-1)
    width = np.clip(limit - x[..., :-1], 0.0, step)
    slope = np.divide(np.diff(y, axis=-1), step, out=np.zeros_like(step), where=step > 0)
    return np.asarray((width * (y[..., :-1] + 0.5 * slope * width)).sum(axis=-1), dtype=np.float64)
