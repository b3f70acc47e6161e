"""Area under the ROC curve, for one sample and for many bootstrap resamples of it at once."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stlm.metrics._blocks import binary_problem, blocks_of

__all__ = ["auroc", "auroc_samples"]


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Probability that an anomalous sample outscores a normal one; a tie counts one half.

    Args:
        scores: ``(N,)`` real; larger is more anomalous.
        labels: ``(N,)``; true for anomalous.

    Returns:
        A value in [0, 1].

    Raises:
        MetricUndefinedError: A class is missing or a score is not finite.
    """
    flat_scores, _ = binary_problem(scores, labels)
    return float(auroc_samples(scores, labels, np.ones((1, flat_scores.size)))[0])


def auroc_samples(scores: npt.ArrayLike, labels: npt.ArrayLike, counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """AUROC of each bootstrap resample, exactly.

    Args:
        scores: ``(N,)`` real; larger is more anomalous.
        labels: ``(N,)``; true for anomalous.
        counts: ``(S, N)`` how often each resample drew each sample; both classes must be drawn in each.

    Returns:
        ``(S,)`` values in [0, 1].

    Raises:
        MetricUndefinedError: A class is missing or a score is not finite.
    """
    flat_scores, flat_labels = binary_problem(scores, labels)
    blocks = blocks_of(flat_scores)
    anomalous = blocks.sum(counts * flat_labels)
    normal = blocks.sum(counts * ~flat_labels)
    num_normal = normal.sum(axis=-1)
    # Normals below each block, plus half of those inside it.
    beaten = num_normal[:, None] - np.cumsum(normal, axis=-1) + 0.5 * normal
    pairs = anomalous.sum(axis=-1) * num_normal
    return np.asarray((anomalous * beaten).sum(axis=-1) / pairs, dtype=np.float64)
