"""Scores grouped into blocks of equal value: the one place where ties are settled."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stlm.errors import MetricUndefinedError

__all__ = ["Blocks", "binary_problem", "blocks_of"]


def binary_problem(
    scores: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Check scores and labels.

    Args:
        scores: ``(N,)`` real.
        labels: ``(N,)``; true for anomalous.

    Returns:
        Both flat, as float64 and bool.

    Raises:
        MetricUndefinedError: Sizes differ, a score is not finite, or one of the two classes is missing.
    """
    flat_scores = np.asarray(scores, dtype=np.float64).ravel()
    flat_labels = np.asarray(labels).ravel().astype(bool)
    if flat_scores.shape != flat_labels.shape:
        raise MetricUndefinedError(f"{flat_scores.size} scores but {flat_labels.size} labels")
    num_bad = int(np.count_nonzero(~np.isfinite(flat_scores)))
    if num_bad:
        raise MetricUndefinedError(f"{num_bad} of {flat_scores.size} scores are not finite")
    num_anomalous = int(np.count_nonzero(flat_labels))
    if num_anomalous == 0:
        raise MetricUndefinedError(f"no anomalous sample among {flat_labels.size}")
    if num_anomalous == flat_labels.size:
        raise MetricUndefinedError(f"no normal sample among {flat_labels.size}")
    return flat_scores, flat_labels


@dataclass(frozen=True, slots=True)
class Blocks:
    """Samples sorted by falling score; each block is a run of equal scores, so a threshold."""

    order: npt.NDArray[np.intp]
    """``(N,)`` indices that sort the samples."""
    starts: npt.NDArray[np.intp]
    """``(K,)`` first position of each block in that order."""

    def sum(self, weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Sum weights ``(..., N)`` in sample order over each block: ``(..., K)``, highest score first."""
        ordered = np.asarray(weights, dtype=np.float64)[..., self.order]
        return np.asarray(np.add.reduceat(ordered, self.starts, axis=-1), dtype=np.float64)


def blocks_of(scores: npt.NDArray[np.float64]) -> Blocks:
    """Group ``(N,)`` scores, ``N >= 1``, into blocks of equal value, highest first."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return Blocks(order=order, starts=starts)
