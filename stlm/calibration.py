"""The operating threshold, from normal images that the model has not learnt.

Split-conformal quantile: with ``n`` held-out normals and a target false-alarm rate ``a``, the threshold is their
``ceil((n + 1)(1 - a))``-th smallest score, and a score *strictly above* it raises an alarm. A new normal from the same
process then raises one with probability at most ``a``, whatever the distribution of the scores.

With fewer than ``1/a - 1`` normals (19 for 5 %) no threshold can promise ``a``: the largest held-out score is taken,
which promises ``1 / (n + 1)``. ``promised_false_alarm_rate`` always says what holds, and the interval how far the
threshold may move with another draw of normals; with less than about ``2/a`` normals it is wide.

Pictures of one part resemble each other, so that ten of them are not ten normals. Where parts are known, ``n`` counts
parts, each weighs the same however often it was photographed, and the promise is for a picture of a new part. With one
picture drawn of every part the quantile above promises it; the threshold is the median of what all such draws give,
after the repeated subsampling of Dunn, Wasserman and Ramdas (2022). Whatever the parts are like, at most twice the
promised rate is raised; that rate itself where the pictures of a part are alike, a little less where they differ. The
quantile over all pictures at once (Lee, Barber and Willett, 2023) is never above the rate, but with few parts it is the
highest score of all: 18 parts in six pictures each then raise a fifth to a half of it, and defects are missed for that.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stlm.errors import DataError, MetricUndefinedError

__all__ = ["CALIBRATION_FILE", "Calibration", "calibrate_threshold"]

logger = logging.getLogger(__name__)

CALIBRATION_FILE = "calibration.json"
"""Name of the file in a model's package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A threshold and what stands behind it."""

    threshold: float
    """An image is anomalous when its score is strictly above this."""
    target_false_alarm_rate: float
    promised_false_alarm_rate: float
    """What the number of normals allows: at most the target, unless there are too few of them."""
    num_normals: int
    interval: tuple[float, float]
    """Bootstrap interval of the threshold."""
    confidence: float
    """Of the interval."""

    def is_anomalous(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Decisions for scores of any shape."""
        return np.asarray(np.asarray(scores, dtype=np.float64) > self.threshold, dtype=np.bool_)

    def to_json(self) -> str:
        """One JSON object with the fields of this class."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Inverse of :meth:`to_json`.

        Args:
            text: The JSON.

        Returns:
            The calibration.

        Raises:
            DataError: No JSON object, or its fields are not those of this class, or the threshold is not finite.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            low, high = fields["interval"]
            calibration = cls(**{**fields, "interval": (float(low), float(high))})
            finite = math.isfinite(calibration.threshold)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"not a calibration: {error!r} in {text[:200]!r}") from error
        if not finite:
            raise DataError(f"calibration threshold must be finite, got {calibration.threshold}")
        return calibration


def calibrate_threshold(
    scores: npt.ArrayLike,
    target_false_alarm_rate: float,
    *,
    parts: Sequence[str] | None = None,
    ceiling: float | None = None,
    seed: int = 0,
    bootstrap_samples: int = 1000,
    confidence: float = 0.95,
) -> Calibration:
    """Choose the threshold above which the target share of normals lies.

    Args:
        scores: ``(N,)`` scores of held-out normals.
        target_false_alarm_rate: Share of normals that may raise an alarm, in (0, 1).
        parts: For each score the part in the picture; empty where it is not known, and each such picture counts as a
            part of its own. ``None``: no part is known.
        ceiling: The threshold is not above this, one of the scores: a bound for where the highest ones are not surely
            normals. What is promised then is what the scores above it allow.
        seed: Of the bootstrap, which draws parts.
        bootstrap_samples: Resamples behind the interval.
        confidence: Of the interval.

    Returns:
        The threshold (one of the scores) with its interval.

    Raises:
        MetricUndefinedError: There is no score, or one is not finite.
    """
    if not 0 < target_false_alarm_rate < 1:
        raise ValueError(f"target_false_alarm_rate must be within (0, 1), got {target_false_alarm_rate}")
    values = np.asarray(scores, dtype=np.float64).ravel()
    if values.size == 0:
        raise MetricUndefinedError("no held-out normal to calibrate the threshold on")
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise MetricUndefinedError(f"{bad} of {values.size} held-out scores are not finite")
    order = np.argsort(values, kind="stable")
    values, owners = values[order], _owners(parts, values.size)[order]
    pictures = np.bincount(owners)
    num = pictures.size
    # Parts at or below each value, a part of several pictures in shares: the mean over all draws of a picture of each,
    # from which their median differs by less than one, so that half a part more or less decides. Sums of shares are
    # rounded: 20 * 0.95 must not become 19.000000000000004 and then 20.
    below = np.round(np.cumsum(1.0 / pictures[owners]), 9)
    count = min(num, math.ceil(round((num + 1) * (1 - target_false_alarm_rate), 9)))
    rank = int(np.searchsorted(below, count - 0.5))
    if ceiling is not None:
        rank = min(rank, max(0, int(np.count_nonzero(values <= ceiling)) - 1))
    count = math.floor(below[rank] + 0.5)
    promised = float(num + 1 - count) / (num + 1)
    if promised > target_false_alarm_rate + 1e-9:
        logger.warning(
            "normals=%d are too few to promise a false-alarm rate of %.3f; promised=%.3f",
            num,
            target_false_alarm_rate,
            promised,
        )
    rng = np.random.default_rng(seed)
    thresholds = np.empty(bootstrap_samples)
    for row in range(bootstrap_samples):
        drawn = np.bincount(rng.integers(num, size=num), minlength=num)
        thresholds[row] = values[np.searchsorted(np.round(np.cumsum((drawn / pictures)[owners]), 9), count - 0.5)]
    low, high = np.quantile(thresholds, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Calibration(
        threshold=float(values[rank]),
        target_false_alarm_rate=target_false_alarm_rate,
        promised_false_alarm_rate=promised,
        num_normals=values.size,
        interval=(float(low), float(high)),
        confidence=confidence,
    )


def _owners(parts: Sequence[str] | None, num: int) -> npt.NDArray[np.int64]:
    """``(num,)`` number of the part in each picture."""
    if parts is None:
        return np.arange(num)
    if len(parts) != num:
        raise ValueError(f"expected a part for each of {num} scores, got {len(parts)}")
    # A nameless picture gets a key that no name can be.
    keys: dict[str | int, int] = {}
    return np.array([keys.setdefault(part or row, len(keys)) for row, part in enumerate(parts)])
