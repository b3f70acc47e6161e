"""What an operator feels: alarms on good parts and defects found, at a threshold or at a fixed recall."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stlm.errors import MetricUndefinedError
from stlm.metrics._blocks import binary_problem, blocks_of

__all__ = [
    "false_alarm_rate_at_recall",
    "false_alarm_rate_at_recall_samples",
    "rate_above",
    "rate_above_samples",
]

# Shares of whole counts are compared with the target; this absorbs their rounding, not a missing defect.
_ROUNDING = 1e-12


def false_alarm_rate_at_recall(scores: npt.ArrayLike, labels: npt.ArrayLike, *, recall: float = 0.9) -> float:
    """Share of normals at or above the highest threshold that finds at least ``recall`` of the anomalies.

    Args:
        scores: ``(N,)`` real; larger is more anomalous. Equal scores fall on the same side of any threshold.
        labels: ``(N,)``; true for anomalous.
        recall: Share of anomalies to find, in (0, 1].

    Returns:
        A value in [0, 1]; lower is better.

    Raises:
        MetricUndefinedError: A class is missing or a score is not finite.
    """
    flat_scores, _ = binary_problem(scores, labels)
    return float(false_alarm_rate_at_recall_samples(scores, labels, np.ones((1, flat_scores.size)), recall=recall)[0])


def false_alarm_rate_at_recall_samples(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    counts: npt.NDArray[Any],
    *,
    recall: float = 0.9,
) -> npt.NDArray[np.float64]:
    """:func:`false_alarm_rate_at_recall` of each bootstrap resample, exactly.

    Args:
        scores: ``(N,)`` real; larger is more anomalous.
        labels: ``(N,)``; true for anomalous.
        counts: ``(S, N)`` how often each resample drew each sample; both classes must be drawn in each.
        recall: Share of anomalies to find, in (0, 1].

    Returns:
        ``(S,)`` values in [0, 1].

    Raises:
        MetricUndefinedError: A class is missing or a score is not finite.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be within (0, 1], got {recall}")
    flat_scores, flat_labels = binary_problem(scores, labels)
    blocks = blocks_of(flat_scores)
    found = np.cumsum(blocks.sum(counts * flat_labels), axis=-1)
    alarms = np.cumsum(blocks.sum(counts * ~flat_labels), axis=-1)
    first = np.argmax(found >= (recall - _ROUNDING) * found[:, -1:], axis=-1)
    return np.asarray(alarms[np.arange(len(first)), first] / alarms[:, -1], dtype=np.float64)


def rate_above(scores: npt.ArrayLike, threshold: float) -> float:
    """False-alarm rate of normals, or recall of anomalies, at a threshold.

    Args:
        scores: ``(N,)`` real, of one class.
        threshold: A score strictly above it raises an alarm.

    Returns:
        The share of scores above, in [0, 1].

    Raises:
        MetricUndefinedError: There is no score, or one is not finite.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    return float(rate_above_samples(values, threshold, np.ones((1, values.size)))[0])


def rate_above_samples(scores: npt.ArrayLike, threshold: float, counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """:func:`rate_above` of each bootstrap resample.

    Args:
        scores: ``(N,)`` real, of one class.
        threshold: A score strictly above it raises an alarm.
        counts: ``(S, N)`` how often each resample drew each sample; each must draw one.

    Returns:
        ``(S,)`` shares in [0, 1].

    Raises:
        MetricUndefinedError: There is no score, or one is not finite.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    if values.size == 0:
        raise MetricUndefinedError("no score to compare with the threshold")
    if not np.isfinite(values).all():
        raise MetricUndefinedError(f"{np.count_nonzero(~np.isfinite(values))} of {values.size} scores are not finite")
    drawn = np.asarray(counts, dtype=np.float64)
    return np.asarray(
        (drawn * (values > threshold)).sum(axis=-1) / drawn.sum(axis=-1),
        dtype=np.float64,
    )
