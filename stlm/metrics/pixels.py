"""Pixel AUROC, pixel AP, PRO and F1 from one sort, and per-image statistics from which they can be bootstrapped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stlm.errors import MetricUndefinedError
from stlm.metrics._sweep import Sweep, area_up_to, checked_stack, sweep
from stlm.metrics.pro import PRO_FPR_LIMIT, pro_of_sweep

__all__ = ["PixelMetrics", "PixelStatistics", "pixel_metrics", "pixel_statistics"]

_DEFECT_QUANTILES = 256
_NORMAL_QUANTILES = 128
_METRICS = ("auroc", "average_precision", "pro", "f1_max")


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelMetrics:
    """The pixel metrics, each exact and in [0, 1]."""

    auroc: float
    average_precision: float
    pro: float
    f1_max: float
    """Largest F1 over all thresholds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelStatistics:
    """Exact pixel metrics, and histograms per image that are enough to resample the images.

    All images share ``B`` bins, cut at quantiles of the defect pixels (256) and of the normal pixels (128 even ones
    and 128 towards the highest scores). A bin thus holds at most 1/128 of the normal pixels, unless they are tied. The
    curves of a resample are straight inside a bin, which moves AUROC by at most 1/256, PRO by that over its limit, and
    AP by the change of precision inside a bin; measured, by 0.00001 to 0.003. Resamples are shifted by what the
    histograms miss on the images themselves, so that they are centred on the exact figures.
    """

    exact: PixelMetrics
    normal: npt.NDArray[np.int32]
    """``(N, B)`` normal pixels of each image in each bin, highest scores first."""
    defect: npt.NDArray[np.int32]
    """``(N, B)`` defect pixels."""
    overlap: npt.NDArray[np.float32]
    """``(N, B)`` sum over the image's regions of their share in the bin."""
    num_regions: npt.NDArray[np.int32]
    """``(N,)`` regions of each image."""
    fpr_limit: float

    def samples(
        self,
        metric: Literal["auroc", "average_precision", "pro", "f1_max"],
        counts: npt.NDArray[Any],
    ) -> npt.NDArray[np.float64]:
        """One metric of each bootstrap resample of the images.

        Args:
            metric: A field of :class:`PixelMetrics`.
            counts: ``(S, N)`` how often each resample drew each image; each must draw a defect.

        Returns:
            ``(S,)`` values.
        """
        itself = np.ones((1, len(self.normal)))
        shift: float = getattr(self.exact, metric) - float(_from_bins(self, metric, itself)[0])
        return _from_bins(self, metric, counts) + shift

    def subset(self, members: npt.NDArray[np.bool_]) -> "PixelStatistics":
        """The images where ``(N,)`` ``members`` is true; their ``exact`` is then what the histograms say."""
        part = replace(
            self,
            normal=self.normal[members],
            defect=self.defect[members],
            overlap=self.overlap[members],
            num_regions=self.num_regions[members],
        )
        if not part.num_regions.any():
            raise MetricUndefinedError(f"no defect pixel in {len(part.num_regions)} images")
        once = np.ones((1, len(part.num_regions)))
        figures = {name: float(_from_bins(part, name, once)[0]) for name in _METRICS}
        return replace(part, exact=PixelMetrics(**figures))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Plain arrays, for ``numpy.savez``."""
        return {
            "exact": np.array([getattr(self.exact, name) for name in _METRICS]),
            "normal": self.normal,
            "defect": self.defect,
            "overlap": self.overlap,
            "num_regions": self.num_regions,
            "fpr_limit": np.array(self.fpr_limit),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "PixelStatistics":
        """Inverse of :meth:`to_arrays`; raises ``KeyError`` for a missing array."""
        exact = dict(zip(_METRICS, map(float, arrays["exact"]), strict=True))
        return cls(
            exact=PixelMetrics(**exact),
            normal=arrays["normal"],
            defect=arrays["defect"],
            overlap=arrays["overlap"],
            num_regions=arrays["num_regions"],
            fpr_limit=float(arrays["fpr_limit"]),
        )


def _from_bins(statistics: PixelStatistics, metric: str, counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    drawn = np.asarray(counts, dtype=np.float64)
    alarms = np.cumsum(drawn @ statistics.normal, axis=-1)
    alarm_rate = _from_zero(alarms / alarms[:, -1:])
    if metric == "pro":
        rise = np.cumsum(drawn @ statistics.overlap, axis=-1) / (drawn @ statistics.num_regions)[:, None]
        return area_up_to(alarm_rate, _from_zero(rise), statistics.fpr_limit) / statistics.fpr_limit
    in_bin = drawn @ statistics.defect
    found = np.cumsum(in_bin, axis=-1)
    if metric == "auroc":
        return area_up_to(alarm_rate, _from_zero(found / found[:, -1:]), 1.0)
    if metric == "f1_max":
        return np.asarray((2.0 * found / (found + alarms + found[:, -1:])).max(axis=-1), dtype=np.float64)
    precision = np.divide(found, found + alarms, out=np.zeros_like(found), where=found > 0)
    return np.asarray((in_bin * precision).sum(axis=-1) / found[:, -1], dtype=np.float64)


def _from_zero(curve: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.zeros_like(curve[:, :1]), curve], axis=-1)


def _metrics_of(pixels: Sweep, fpr_limit: float) -> PixelMetrics:
    at_threshold = np.diff(pixels.found, prepend=0)
    beaten = pixels.num_normal - 0.5 * (pixels.alarms_above + pixels.alarms_from)
    precision = pixels.found / (pixels.found + pixels.alarms_from)
    return PixelMetrics(
        auroc=float((at_threshold * beaten).sum() / (float(pixels.num_normal) * pixels.num_defect)),
        average_precision=float((at_threshold * precision).sum() / pixels.num_defect),
        pro=pro_of_sweep(pixels, fpr_limit=fpr_limit),
        f1_max=float((2.0 * pixels.found / (pixels.found + pixels.alarms_from + pixels.num_defect)).max()),
    )


def pixel_metrics(
    anomaly_maps: npt.ArrayLike,
    masks: npt.ArrayLike,
    *,
    fpr_limit: float = PRO_FPR_LIMIT,
) -> PixelMetrics:
    """Pixel AUROC, average precision, PRO and largest F1 over all pixels of all images.

    Args:
        anomaly_maps: ``(N, H, W)`` float; larger is more anomalous, any scale.
        masks: ``(N, H, W)`` bool; true on defect pixels.
        fpr_limit: Limit of PRO, in (0, 1].

    Returns:
        The exact metrics; ties as in scikit-learn.

    Raises:
        MetricUndefinedError: No defect pixel, no normal pixel, differing shapes, or a value that is not finite.
    """
    return _metrics_of(sweep(*checked_stack(anomaly_maps, masks)), fpr_limit)


def pixel_statistics(
    anomaly_maps: npt.ArrayLike,
    masks: npt.ArrayLike,
    *,
    fpr_limit: float = PRO_FPR_LIMIT,
) -> PixelStatistics:
    """The same metrics together with what a bootstrap over images needs.

    Args:
        anomaly_maps: ``(N, H, W)`` float; larger is more anomalous, any scale.
        masks: ``(N, H, W)`` bool; true on defect pixels.
        fpr_limit: Limit of PRO, in (0, 1].

    Returns:
        Exact metrics and histograms per image.

    Raises:
        MetricUndefinedError: No defect pixel, no normal pixel, differing shapes, or a value that is not finite.
    """
    maps, stack = checked_stack(anomaly_maps, masks)
    pixels = sweep(maps, stack)
    edges = _edges(pixels)
    num_bins = len(edges) + 1
    share = 1.0 / pixels.regions.size_px[pixels.regions.pixel_region]
    normal = np.zeros((len(maps), num_bins), dtype=np.int32)
    defect = np.zeros((len(maps), num_bins), dtype=np.int32)
    overlap = np.zeros((len(maps), num_bins), dtype=np.float32)
    first = 0
    for image, (anomaly_map, mask) in enumerate(zip(maps, stack, strict=True)):
        # searchsorted counts the edges below; bin 0 is to hold the highest scores.
        bins = len(edges) - np.searchsorted(edges, anomaly_map, side="left")
        normal[image] = np.bincount(bins[~mask], minlength=num_bins)
        inside = bins[mask]
        defect[image] = np.bincount(inside, minlength=num_bins)
        overlap[image] = np.bincount(inside, weights=share[first : first + inside.size], minlength=num_bins)
        first += inside.size
    return PixelStatistics(
        exact=_metrics_of(pixels, fpr_limit),
        normal=normal,
        defect=defect,
        overlap=overlap,
        num_regions=np.bincount(pixels.regions.image, minlength=len(maps)).astype(np.int32),
        fpr_limit=fpr_limit,
    )


def _edges(pixels: Sweep) -> npt.NDArray[Any]:
    # Order statistics, not interpolated quantiles: an edge is a score that occurs.
    exceeded = np.r_[
        np.linspace(0.0, 1.0, _NORMAL_QUANTILES, endpoint=False),
        np.geomspace(1e-6, 0.1, _NORMAL_QUANTILES),
    ]
    normal = pixels.normal[((1.0 - exceeded) * (pixels.num_normal - 1)).round().astype(np.int64)]
    defect = np.sort(pixels.defect)
    at = np.linspace(0.0, pixels.num_defect - 1, _DEFECT_QUANTILES).round().astype(np.int64)
    edges: npt.NDArray[Any] = np.unique(np.r_[normal, defect[at]])
    return edges
