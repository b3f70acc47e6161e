"""The product's metrics by name: point estimates, intervals and paired differences.

Evaluation reports with these and the gate decides with these, so that both mean the same by a metric's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from stlm.errors import MetricUndefinedError
from stlm.metrics.auroc import auroc, auroc_samples
from stlm.metrics.intervals import percentile_interval
from stlm.metrics.operating_point import (
    false_alarm_rate_at_recall,
    false_alarm_rate_at_recall_samples,
    rate_above,
    rate_above_samples,
)
from stlm.metrics.pixels import PixelStatistics

__all__ = [
    "Estimate",
    "ImageMeasurement",
    "Measurement",
    "PixelMeasurement",
    "difference",
    "estimate",
]


_PixelField = Literal["auroc", "average_precision", "pro"]
_PIXEL_FIELDS: Mapping[str, _PixelField] = MappingProxyType(
    {"pixel_auroc": "auroc", "pixel_ap": "average_precision", "pro": "pro"}
)


class Measurement(Protocol):
    """One model on one set of images: metrics by name, on the images themselves or on resamples of them."""

    def value(self, metric: str) -> float:
        """Exact value of ``metric``; raises ``MetricUndefinedError`` where it does not exist."""

    def samples(self, metric: str, counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """``(S,)`` values of ``metric`` on resamples ``(S, N)``; raises ``MetricUndefinedError`` likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMeasurement:
    """Image scores of one model."""

    scores: npt.NDArray[Any]
    """``(N,)`` real; larger is more anomalous."""
    labels: npt.NDArray[np.bool_]
    """``(N,)`` true for defective images."""
    threshold: float
    """Operating threshold of this model: a score strictly above it raises an alarm."""
    recall: float
    """Recall at which ``false_alarm_rate_at_recall`` is read off."""

    def value(self, metric: str) -> float:
        """See :class:`Measurement`."""
        match metric:
            case "image_auroc":
                return auroc(self.scores, self.labels)
            case "false_alarm_rate_at_recall":
                return false_alarm_rate_at_recall(self.scores, self.labels, recall=self.recall)
            case "false_alarm_rate" | "recall":
                return rate_above(self.scores[self._members(metric)], self.threshold)
        raise KeyError(metric)

    def samples(self, metric: str, counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """See :class:`Measurement`."""
        match metric:
            case "image_auroc":
                return auroc_samples(self.scores, self.labels, counts)
            case "false_alarm_rate_at_recall":
                return false_alarm_rate_at_recall_samples(self.scores, self.labels, counts, recall=self.recall)
            case "false_alarm_rate" | "recall":
                members = self._members(metric)
                return rate_above_samples(self.scores[members], self.threshold, counts[:, members])
        raise KeyError(metric)

    def subset(self, members: npt.NDArray[np.bool_]) -> "ImageMeasurement":
        """The same model on the images where ``(N,)`` ``members`` is true; take the same columns of the counts."""
        return replace(self, scores=self.scores[members], labels=self.labels[members])

    def _members(self, metric: str) -> npt.NDArray[np.bool_]:
        return self.labels if metric == "recall" else ~self.labels


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelMeasurement:
    """Pixel metrics of one model; ``statistics`` is ``None`` where there is no mask to judge by."""

    statistics: PixelStatistics | None
    reason: str = ""
    """Why there are none."""

    def value(self, metric: str) -> float:
        """See :class:`Measurement`."""
        return float(getattr(self._present().exact, _PIXEL_FIELDS[metric]))

    def samples(self, metric: str, counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """See :class:`Measurement`."""
        return self._present().samples(_PIXEL_FIELDS[metric], counts)

    def subset(self, members: npt.NDArray[np.bool_]) -> "PixelMeasurement":
        """The images where ``(N,)`` ``members`` is true; figures come from the histograms."""
        if self.statistics is None:
            return self
        try:
            return PixelMeasurement(statistics=self.statistics.subset(members))
        except MetricUndefinedError as error:
            return PixelMeasurement(statistics=None, reason=str(error))

    def _present(self) -> PixelStatistics:
        if self.statistics is None:
            raise MetricUndefinedError(self.reason)
        return self.statistics


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure with its interval, or the reason why it does not exist. Plain values, fit for JSON."""

    value: float | None
    interval: tuple[float, float] | None
    reason: str = ""


def estimate(
    measurement: Measurement,
    metric: str,
    counts: npt.NDArray[Any],
    *,
    confidence: float,
) -> Estimate:
    """Exact value and bootstrap interval of a metric.

    Args:
        measurement: A model's results on ``N`` images.
        metric: One of ``IMAGE_METRICS`` or ``PIXEL_METRICS``, whichever the measurement knows.
        counts: ``(S, N)`` resamples of the images.
        confidence: Share of resamples inside the interval.

    Returns:
        The estimate; value and interval are ``None`` where the metric is undefined.
    """
    try:
        value = measurement.value(metric)
        samples = measurement.samples(metric, counts)
    except MetricUndefinedError as error:
        return Estimate(value=None, interval=None, reason=str(error))
    return Estimate(value=value, interval=percentile_interval(samples, confidence=confidence))


def difference(
    candidate: Measurement,
    champion: Measurement,
    metric: str,
    counts: npt.NDArray[Any],
    *,
    confidence: float,
) -> Estimate:
    """Candidate minus champion on the same images, with the interval of the paired bootstrap.

    Args:
        candidate: Its results on ``N`` images.
        champion: The other model's results on the same images in the same order.
        metric: As in :func:`estimate`.
        counts: ``(S, N)`` resamples, used for both models.
        confidence: Share of resamples inside the interval.

    Returns:
        The difference; value and interval are ``None`` where either metric is undefined.
    """
    try:
        value = candidate.value(metric) - champion.value(metric)
        samples = candidate.samples(metric, counts) - champion.samples(metric, counts)
    except MetricUndefinedError as error:
        return Estimate(value=None, interval=None, reason=str(error))
    return Estimate(value=value, interval=percentile_interval(samples, confidence=confidence))
