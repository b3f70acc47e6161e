"""Per-region overlap (PRO): every defect weighs the same, whatever its size."""

import numpy as np
import numpy.typing as npt

from stlm.metrics._sweep import Sweep, area_up_to, checked_stack, sweep

__all__ = ["PRO_FPR_LIMIT", "per_region_overlap", "pro_of_sweep"]

PRO_FPR_LIMIT = 0.3
"""The field's false-positive limit (Bergmann et al., MVTec AD)."""


def pro_of_sweep(pixels: Sweep, *, fpr_limit: float) -> float:
    """PRO of sorted pixels; see :func:`per_region_overlap`."""
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit must be within (0, 1], got {fpr_limit}")
    # Up to a threshold the curve runs level, at it it rises: straight up, or slanted over tied normal pixels.
    before = np.r_[0.0, pixels.overlap[:-1]]
    x = np.r_[
        0.0,
        np.stack([pixels.alarms_above, pixels.alarms_from], axis=1).ravel() / pixels.num_normal,
        1.0,
    ]
    y = np.r_[0.0, np.stack([before, pixels.overlap], axis=1).ravel(), 1.0]
    return float(area_up_to(x, y, fpr_limit) / fpr_limit)


def per_region_overlap(
    anomaly_maps: npt.ArrayLike,
    masks: npt.ArrayLike,
    *,
    fpr_limit: float = PRO_FPR_LIMIT,
) -> float:
    """Area under the per-region-overlap curve, normalised by ``fpr_limit``.

    The curve has one point per distinct score and starts at (0, 0); it is cut at the limit by linear interpolation.
    A constant map therefore gets ``fpr_limit / 2``.

    Args:
        anomaly_maps: ``(N, H, W)`` float; larger is more anomalous, any scale.
        masks: ``(N, H, W)`` bool; true on defect pixels; regions are 8-connected.
        fpr_limit: Integrate up to this false-positive rate, in (0, 1].

    Returns:
        A value in [0, 1].

    Raises:
        MetricUndefinedError: No defect pixel, no normal pixel, differing shapes, or a value that is not finite.
    """
    return pro_of_sweep(sweep(*checked_stack(anomaly_maps, masks)), fpr_limit=fpr_limit)
