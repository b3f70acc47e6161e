"""Non-inferiority rules: against champion and anchor, metric by metric, on shared resamples of the golden set."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from components.config import GateSettings
from components.core.contracts import Reason, Verdict
from components.steps.gate.evidence import Evidence
from stlm.comparison import MeasuredModel, complete_rows, strata_of
from stlm.constants import GOOD
from stlm.errors import MetricUndefinedError
from stlm.metrics import (
    LOWER_IS_BETTER,
    PIXEL_METRICS,
    Measurement,
    PairedBounds,
    paired_bounds,
    resample_counts,
)

__all__ = ["Comparer", "Gain", "Other", "compare_with", "measurement_of", "metric_label"]

Other = Literal["champion", "anchor"]
_STRATUM_METRIC = "image_auroc"
# With fewer images a bootstrap's bounds mean nothing.
_MIN_STRATUM = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """Candidate minus another model, turned so that more is better."""

    before: float
    value: float
    gain: float
    bounds: PairedBounds


def measurement_of(model: MeasuredModel, metric: str) -> Measurement:
    """The part of a model's results that knows the metric."""
    return model.pixels if metric in PIXEL_METRICS else model.images


def metric_label(metric: str, evidence: Evidence) -> str:
    """The metric, called synthetic where its defects are."""
    return f"{metric} (synthetic defects)" if metric in PIXEL_METRICS and evidence.synthetic else metric


class Comparer:
    """Resamples of the golden images, drawn once from a seed of the candidate's own.

    Args:
        evidence: The models on the same images.
        settings: How many resamples, and how sure.
        candidate_key: Seeds the resamples, so that nobody can draw until it fits.
    """

    def __init__(self, evidence: Evidence, settings: GateSettings, candidate_key: str) -> None:
        seed = int.from_bytes(hashlib.sha256(f"gate {candidate_key}".encode()).digest()[:8], "big")
        self._evidence = evidence
        self._alpha = settings.alpha
        self._images, self._pixels = (
            resample_counts(units.groups, num_samples=settings.bootstrap_samples, seed=seed, units=units.numbers)
            for units in (evidence.units, evidence.pixel_units)
        )
        self._defective_pixels = np.array([name != GOOD for name in evidence.pixel_classes], dtype=bool)
        self._samples: dict[tuple[int, str], npt.NDArray[np.float64]] = {}

    def gain(self, other: MeasuredModel, metric: str) -> Gain:
        """How much better the candidate is.

        Args:
            other: The model to compare with.
            metric: By its name.

        Returns:
            The gain with its bounds.

        Raises:
            MetricUndefinedError: The metric does not exist for one of the two.
        """
        evidence = self._evidence
        is_pixel = metric in PIXEL_METRICS
        units, anomalous = (
            (evidence.pixel_units, self._defective_pixels)
            if is_pixel
            else (evidence.units, evidence.candidate.images.labels)
        )
        ours, theirs = measurement_of(evidence.candidate, metric), measurement_of(other, metric)
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        value, before = ours.value(metric), theirs.value(metric)
        samples = sign * (self._sampled(ours, metric) - self._sampled(theirs, metric))
        bounds = paired_bounds(
            sign * (value - before), samples, alpha=self._alpha, num_units=units.smaller_class(anomalous)
        )
        return Gain(before=before, value=value, gain=sign * (value - before), bounds=bounds)

    def stratum_gain(self, other: MeasuredModel, members: npt.NDArray[np.bool_], *, share: int) -> Gain | None:
        """The gain in image AUROC on a part of the images.

        Args:
            other: The model to compare with.
            members: ``(N,)`` the part.
            share: Among how many parts the error is shared out.

        Returns:
            The gain; ``None`` where resamples too often lack a class.

        Raises:
            MetricUndefinedError: A score is not finite.
        """
        ours, theirs = self._evidence.candidate.images.subset(members), other.images.subset(members)
        counts = complete_rows(self._images[:, members], ours.labels, ~ours.labels)
        if len(counts) < 0.95 * len(self._images):
            return None
        value, before = ours.value(_STRATUM_METRIC), theirs.value(_STRATUM_METRIC)
        samples = ours.samples(_STRATUM_METRIC, counts) - theirs.samples(_STRATUM_METRIC, counts)
        num_units = self._evidence.units.smaller_class(self._evidence.candidate.images.labels, members)
        bounds = paired_bounds(value - before, samples, alpha=self._alpha / share, num_units=num_units)
        return Gain(before=before, value=value, gain=value - before, bounds=bounds)

    def _sampled(self, measurement: Measurement, metric: str) -> npt.NDArray[np.float64]:
        key = (id(measurement), metric)
        if key not in self._samples:
            counts: npt.NDArray[Any] = self._pixels if metric in PIXEL_METRICS else self._images
            self._samples[key] = measurement.samples(metric, counts)
        return self._samples[key]


def compare_with(comparer: Comparer, evidence: Evidence, settings: GateSettings, other: Other) -> Iterator[Reason]:
    """Every metric that has a margin, and the worst stratum.

    Args:
        comparer: The resamples.
        evidence: The models.
        settings: Margins and mode.
        other: Whom to compare with.

    Yields:
        One reason per metric; without that model only where the candidate's metric does not exist.
    """
    model, margins = (
        (evidence.champion, settings.margins) if other == "champion" else (evidence.anchor, settings.anchor_margins)
    )
    for metric, margin in sorted(margins.items()):
        superior = other == "champion" and settings.mode == "superiority" and metric == settings.superior_metric
        rule = f"{other} {metric}"
        try:
            measurement_of(evidence.candidate, metric).value(metric)
            if model is not None:
                gain = comparer.gain(model, metric)
                yield _judged(
                    gain, rule, f"{metric_label(metric, evidence)}", margin, settings.alpha, superior=superior
                )
        except MetricUndefinedError as error:
            detail = f"{metric_label(metric, evidence)} is undefined: {error}"
            yield Reason(rule=rule, verdict=Verdict.ERROR, detail=detail, limit=-margin)
    if model is not None and _STRATUM_METRIC in margins:
        yield from _worst_stratum(comparer, evidence, model, other, margins[_STRATUM_METRIC])


def _judged(gain: Gain, rule: str, name: str, margin: float, alpha: float, *, superior: bool) -> Reason:
    bounds, limit = gain.bounds, 0.0 if superior else -margin
    if bounds.low > limit:
        verdict, words = Verdict.PROMOTE, "superior" if superior else "not inferior"
    elif bounds.high < limit:
        verdict, words = Verdict.REJECT, "worse" if superior else "inferior"
    else:
        verdict, words = Verdict.INCONCLUSIVE, "undecided"
    asked = "superiority is asked for" if superior else f"the margin is {margin:.4f}"
    other = rule.split(maxsplit=1)[0]
    return Reason(
        rule=rule,
        verdict=verdict,
        detail=(
            f"{name} is {gain.value:.4f}, the {other}'s {gain.before:.4f}: {words}. The gain of {gain.gain:+.4f} lies "
            f"within [{bounds.low:+.4f}, {bounds.high:+.4f}] (one-sided {1 - alpha:.0%} each), {asked}; the smallest "
            f"difference that these images show in 80 % of all cases is {bounds.detectable:.4f}."
        ),
        value=_finite(bounds.low),
        limit=limit,
        detectable=_finite(bounds.detectable),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _worst_stratum(
    comparer: Comparer, evidence: Evidence, model: MeasuredModel, other: Other, margin: float
) -> Iterator[Reason]:
    rule = f"{other} worst stratum"
    labels = evidence.candidate.images.labels
    members = {
        stratum.name: stratum.images
        for stratum in strata_of(evidence.defects, evidence.strata, [], [])
        if stratum.images is not None
    }
    if len(members) < 2:
        return
    large = {
        name: chosen
        for name, chosen in members.items()
        if min(int((labels & chosen).sum()), int((~labels & chosen).sum())) >= _MIN_STRATUM
    }
    try:
        gains = {name: comparer.stratum_gain(model, chosen, share=len(large)) for name, chosen in large.items()}
    except MetricUndefinedError as error:
        yield Reason(rule=rule, verdict=Verdict.ERROR, detail=f"A stratum is undefined: {error}")
        return
    found = [(gain.bounds.high, gain, name) for name, gain in gains.items() if gain is not None]
    small = sorted(set(members) - {name for *_, name in found})
    left_out = f" Not judged, fewer than {_MIN_STRATUM} images or too few lots: {', '.join(small)}." if small else ""
    if not found:
        yield Reason(rule=rule, verdict=Verdict.PROMOTE, detail=f"No stratum is large enough.{left_out}")
        return
    upper, gain, name = min(found, key=lambda item: item[0])
    harmed = upper < -margin
    yield Reason(
        rule=rule,
        verdict=Verdict.REJECT if harmed else Verdict.PROMOTE,
        detail=(
            f"{_STRATUM_METRIC} of {name} changed by {gain.gain:+.4f} against the {other}, at most by {upper:+.4f}: "
            f"{'surely' if harmed else 'not surely'} worse by more than the margin {margin:.4f}.{left_out}"
        ),
        value=_finite(upper),
        limit=-margin,
        detectable=_finite(gain.bounds.detectable),
    )
