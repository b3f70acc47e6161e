"""Average precision and the best F1 of image scores."""

import numpy as np
import numpy.typing as npt

from stlm.metrics._blocks import binary_problem, blocks_of

__all__ = ["average_precision", "f1_max"]


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Sum over thresholds of the step in recall times the precision there, as in scikit-learn.

    Args:
        scores: ``(N,)`` real; larger is more anomalous. Equal scores fall on the same side of any threshold.
        labels: ``(N,)``; true for anomalous.

    Returns:
        A value in (0, 1].

    Raises:
        MetricUndefinedError: A class is missing or a score is not finite.
    """
    hits, found, called = _along_thresholds(scores, labels)
    return float((hits * found / called).sum() / found[-1])


def f1_max(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Largest F1 over all thresholds.

    Args:
        scores: ``(N,)`` real; larger is more anomalous. Equal scores fall on the same side of any threshold.
        labels: ``(N,)``; true for anomalous.

    Returns:
        A value in (0, 1].

    Raises:
        MetricUndefinedError: A class is missing or a score is not finite.
    """
    _, found, called = _along_thresholds(scores, labels)
    return float((2.0 * found / (called + found[-1])).max())


def _along_thresholds(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], ...]:
    """Anomalies at each threshold, anomalies from it upwards, and samples from it upwards; highest first."""
    flat_scores, flat_labels = binary_problem(scores, labels)
    blocks = blocks_of(flat_scores)
    hits = blocks.sum(flat_labels)
    return hits, np.cumsum(hits), np.cumsum(blocks.sum(np.ones(flat_scores.size)))
