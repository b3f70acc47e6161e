"""Stratified bootstrap over images: never over pixels, which are not independent.

A resample is a row of counts, so that two models measured on the same images can be resampled alike (paired), and a
metric of a thousand resamples is a few matrix operations.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["one_sided_bounds", "percentile_interval", "resample_counts"]


def resample_counts(strata: Sequence[str], *, num_samples: int, seed: int) -> npt.NDArray[np.int32]:
    """Draw images with replacement inside each stratum.

    Args:
        strata: ``(N,)`` stratum of each image, for example its defect class; each keeps its number of images.
        num_samples: How many resamples.
        seed: The same seed and strata give the same resamples.

    Returns:
        ``(num_samples, N)`` how often each resample drew each image.
    """
    rng = np.random.default_rng(seed)
    names = np.asarray(strata, dtype=str)
    counts = np.zeros((num_samples, len(names)), dtype=np.int32)
    for name in np.unique(names):
        members = np.flatnonzero(names == name)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=num_samples)
    return counts


def percentile_interval(samples: npt.NDArray[Any], *, confidence: float) -> tuple[float, float]:
    """Two-sided percentile interval of ``(S,)`` bootstrap values."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be within (0, 1), got {confidence}")
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def one_sided_bounds(samples: npt.NDArray[Any], *, alpha: float) -> tuple[float, float]:
    """Lower and upper bound, each one-sided at ``alpha``, of ``(S,)`` bootstrap values."""
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be within (0, 0.5), got {alpha}")
    low, high = np.quantile(samples, [alpha, 1 - alpha])
    return float(low), float(high)
