"""Stratified bootstrap over images: never over pixels, which are not independent.

A resample is a row of counts, so that two models measured on the same images can be resampled alike (paired), and a
metric of a thousand resamples is a few matrix operations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

__all__ = ["PairedBounds", "one_sided_bounds", "paired_bounds", "percentile_interval", "resample_counts"]

_POWER = 0.8


def resample_counts(
    strata: Sequence[str], *, num_samples: int, seed: int, units: Sequence[int] | npt.NDArray[Any] | None = None
) -> npt.NDArray[np.int32]:
    """Draw images, or whole lots of them, with replacement inside each stratum.

    Args:
        strata: ``(N,)`` stratum of each image, for example its defect class; each keeps its number of units.
        num_samples: How many resamples.
        seed: The same seed, strata and units give the same resamples.
        units: ``(N,)`` images with the same number are drawn together; they must share their stratum. ``None``: each
            image is drawn by itself.

    Returns:
        ``(num_samples, N)`` how often each resample drew each image.
    """
    rng = np.random.default_rng(seed)
    names = np.asarray(strata, dtype=str)
    numbers = np.arange(len(names)) if units is None else np.asarray(units)
    counts = np.zeros((num_samples, len(names)), dtype=np.int32)
    for name in np.unique(names):
        members = np.flatnonzero(names == name)
        distinct, unit = np.unique(numbers[members], return_inverse=True)
        size = len(distinct)
        # Counting draws is four times as fast as numpy's multinomial.
        drawn = rng.integers(size, size=(num_samples, size)) + size * np.arange(num_samples)[:, None]
        times = np.bincount(drawn.ravel(), minlength=num_samples * size).reshape(num_samples, size)
        counts[:, members] = times[:, unit]
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedBounds:
    """What a bootstrap says about a difference."""

    low: float
    """One-sided lower bound."""
    high: float
    """One-sided upper bound."""
    standard_error: float
    detectable: float
    """Smallest true difference that a test at this level finds in 80 % of all samples of this size."""


def paired_bounds(point: float, samples: npt.NDArray[Any], *, alpha: float, num_units: int) -> PairedBounds:
    """One-sided bounds of a difference: of the percentile and of Student's bound the wider one.

    Where a metric is close to its end, few images hold all that can be lost, and percentiles alone come out too narrow:
    with 30 good and 30 defective images a model of AUROC 0.95 was taken for not more than 0.01 below one of 0.97 in
    3.6 % of 4000 trials by percentiles, and in 2.1 % by the wider bound.

    Args:
        point: The difference on the images themselves.
        samples: ``(S,)`` the same on resamples.
        alpha: One-sided error of each bound.
        num_units: Images or lots of the smaller class.

    Returns:
        The bounds; for fewer than two units they are infinite, for nothing was seen to vary.
    """
    low, high = one_sided_bounds(samples, alpha=alpha)
    if num_units < 2:
        return PairedBounds(low=-math.inf, high=math.inf, standard_error=math.inf, detectable=math.inf)
    # The bootstrap divides by the number of units, not by one less.
    error = float(np.std(samples)) * math.sqrt(num_units / (num_units - 1))
    reach = float(stdtrit(num_units - 1, 1 - alpha)) * error
    return PairedBounds(
        low=min(low, point - reach),
        high=max(high, point + reach),
        standard_error=error,
        detectable=float(ndtri(1 - alpha) + ndtri(_POWER)) * error,
    )
