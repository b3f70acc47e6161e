"""Pixel metrics of maps that do not fit into memory: one pass, constant memory, and how far off they can be.

Scores are counted in bins that are as narrow as floating-point numbers are spaced: the leading bits of a float32, made
to sort like the number. So a bin's width is a fixed share of its scores, whatever their distribution, where bins of
equal width put nearly all of a skewed distribution into one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stlm.errors import MetricUndefinedError
from stlm.metrics._sweep import area_up_to, checked_stack
from stlm.metrics.pixels import PixelMetrics
from stlm.metrics.pro import PRO_FPR_LIMIT
from stlm.metrics.regions import label_regions

__all__ = ["PixelStream", "StreamedPixelMetrics"]

_SIGN = np.uint32(0x80000000)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedPixelMetrics:
    """Pixel metrics and, for each, how far the exact one may lie on either side."""

    metrics: PixelMetrics
    bound: PixelMetrics


class PixelStream:
    """Takes maps one at a time; holds three arrays of ``2**bits`` numbers of 8 bytes and nothing of the maps.

    Args:
        bits: Leading bits of a float32 score that are kept, 10 to 24: sign, exponent and ``bits - 9`` of the mantissa.
        fpr_limit: Limit of PRO, in (0, 1].
    """

    def __init__(self, *, bits: int = 22, fpr_limit: float = PRO_FPR_LIMIT) -> None:
        if not 10 <= bits <= 24:
            raise ValueError(f"bits must be within 10..24, got {bits}")
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit must be within (0, 1], got {fpr_limit}")
        self._shift = np.uint32(32 - bits)
        self._fpr_limit = fpr_limit
        self._normal = np.zeros(2**bits, dtype=np.int64)
        self._defect = np.zeros(2**bits, dtype=np.int64)
        self._overlap = np.zeros(2**bits, dtype=np.float64)
        self._num_regions = 0

    def update(self, anomaly_map: npt.ArrayLike, mask: npt.ArrayLike) -> None:
        """Count the pixels of one image.

        Args:
            anomaly_map: ``(H, W)`` real; larger is more anomalous, any scale; read as float32.
            mask: ``(H, W)`` bool; true on defect pixels.

        Raises:
            MetricUndefinedError: Shapes differ, or a value is not finite; nothing of the image is counted then.
        """
        maps, masks = checked_stack(np.asarray(anomaly_map, dtype=np.float32)[None], np.asarray(mask)[None])
        regions = label_regions(masks)
        _count(self._normal, self._bins(maps[~masks]))
        inside = self._bins(maps[masks])
        _count(self._defect, inside)
        np.add.at(self._overlap, inside, 1.0 / regions.size_px[regions.pixel_region])
        self._num_regions += regions.num_regions

    def result(self) -> StreamedPixelMetrics:
        """The metrics of everything counted so far; equal scores in a bin count as ties.

        Returns:
            Metrics and bounds.

        Raises:
            MetricUndefinedError: No defect pixel or no normal pixel was seen.
        """
        used = np.flatnonzero(self._normal + self._defect)[::-1]
        normal, defect = self._normal[used], self._defect[used]
        num_normal, num_defect = int(normal.sum()), int(defect.sum())
        if num_defect == 0:
            raise MetricUndefinedError("no defect pixel in the stream")
        if num_normal == 0:
            raise MetricUndefinedError("no normal pixel in the stream")
        alarms, found = np.cumsum(normal), np.cumsum(defect)
        rate = np.r_[0.0, alarms / num_normal]
        recall = np.r_[0.0, found / num_defect]
        overlap = np.r_[0.0, np.cumsum(self._overlap[used]) / self._num_regions]
        precision = found / np.maximum(found + alarms, 1)
        # Inside a bin the order is unknown: at best all its defects lie above its normals, at worst below.
        best = found / np.maximum(found + alarms - normal, 1)
        worst = (found - defect + 1) / (found - defect + 1 + alarms)
        share = defect / num_defect
        average_precision = float((share * precision).sum())
        f1 = 2.0 * found / (found + alarms + num_defect)
        f1_best = 2.0 * found / (found + alarms - normal + num_defect)
        limit = self._fpr_limit
        clipped = np.clip(limit - rate[:-1], 0.0, np.diff(rate))
        return StreamedPixelMetrics(
            metrics=PixelMetrics(
                auroc=float(area_up_to(rate, recall, 1.0)),
                average_precision=average_precision,
                pro=float(area_up_to(rate, overlap, limit) / limit),
                f1_max=float(f1.max()),
            ),
            bound=PixelMetrics(
                auroc=float((np.diff(rate) * np.diff(recall)).sum() / 2.0),
                average_precision=float((share * np.maximum(best - precision, precision - worst)).sum()),
                pro=float((clipped * np.diff(overlap)).sum() / limit),
                f1_max=float(f1_best.max() - f1.max()),
            ),
        )

    def _bins(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
        # Zero has two signs; adding zero leaves the positive one.
        bits = (scores + np.float32(0.0)).view(np.uint32)
        ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
        binned: npt.NDArray[np.uint32] = ordered >> self._shift
        return binned


def _count(histogram: npt.NDArray[np.int64], bins: npt.NDArray[np.uint32]) -> None:
    # One sort is cheaper than a histogram of four million bins for every image.
    ordered = np.sort(bins)
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if ordered.size else np.empty(0, dtype=np.int64)
    histogram[ordered[ends]] += np.diff(ends, prepend=-1)
