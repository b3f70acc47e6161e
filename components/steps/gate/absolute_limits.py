"""Absolute limits of the gate: enough images, floors, false alarms."""

from collections.abc import Iterator

from scipy.special import betaincinv

from components.config import GateSettings
from components.core.contracts import Reason, Verdict
from components.steps.gate.evidence import Evidence
from components.steps.gate.non_inferiority import measurement_of, metric_label
from stlm.constants import GOOD
from stlm.errors import MetricUndefinedError
from stlm.metrics import PIXEL_METRICS

__all__ = ["enough_images", "false_alarms", "floors", "share_surely_above"]

_ADVISED_PER_CLASS = 150


def enough_images(evidence: Evidence, settings: GateSettings) -> Iterator[Reason]:
    """Per class, and for pixel metrics: enough to judge, and enough to tell small differences."""
    labels = evidence.candidate.images.labels
    good, defective = int((~labels).sum()), int(labels.sum())
    numbers = {"good golden images": good, "defective golden images": defective}
    if any(metric in PIXEL_METRICS for metric in (*settings.floors, *settings.margins, *settings.anchor_margins)):
        what = "images with a synthetic defect" if evidence.synthetic else "defective golden images with a mask"
        numbers[what] = sum(name != GOOD for name in evidence.pixel_classes)
    for what, number in numbers.items():
        enough = number >= settings.min_per_class
        yield Reason(
            rule=f"enough {what}",
            verdict=Verdict.PROMOTE if enough else Verdict.INCONCLUSIVE,
            detail=f"{number} {what}; at least {settings.min_per_class} are needed.",
            value=float(number),
            limit=float(settings.min_per_class),
        )
    few = min(good, defective) < _ADVISED_PER_CLASS
    advice = f"below {_ADVISED_PER_CLASS} of each, an equal model is seldom told from a worse one" if few else "plenty"
    yield Reason(
        rule="golden set size",
        verdict=Verdict.PROMOTE,
        detail=f"{good} good and {defective} defective golden images: {advice}.",
        value=float(min(good, defective)),
        limit=float(_ADVISED_PER_CLASS),
        warning=few,
    )


def floors(evidence: Evidence, settings: GateSettings) -> Iterator[Reason]:
    """No figure below its floor."""
    for metric, floor in sorted(settings.floors.items()):
        rule = f"floor {metric}"
        try:
            value = measurement_of(evidence.candidate, metric).value(metric)
        except MetricUndefinedError as error:
            detail = f"{metric_label(metric, evidence)} of the candidate is undefined: {error}"
            yield Reason(rule=rule, verdict=Verdict.ERROR, detail=detail, limit=floor)
            continue
        above = value >= floor
        yield Reason(
            rule=rule,
            verdict=Verdict.PROMOTE if above else Verdict.REJECT,
            detail=(
                f"{metric_label(metric, evidence)} is {value:.4f}, "
                f"{'not ' if above else ''}below the floor {floor:.4f}."
            ),
            value=value,
            limit=floor,
        )


def share_surely_above(num: int, total: int, alpha: float) -> float:
    """Lower bound of a share of independent images (Clopper-Pearson, exact), one-sided at ``alpha``."""
    return float(betaincinv(num, total - num + 1, alpha)) if num else 0.0


def false_alarms(evidence: Evidence, settings: GateSettings) -> Reason:
    """The rate on good golden images at the candidate's own threshold."""
    images, limit = evidence.candidate.images, settings.max_false_alarm_rate
    try:
        rate = images.value("false_alarm_rate")
    except MetricUndefinedError as error:
        detail = f"The false-alarm rate is undefined: {error}"
        return Reason(rule="false alarms", verdict=Verdict.ERROR, detail=detail, limit=limit)
    num_good = int((~images.labels).sum())
    num_alarms = round(rate * num_good)
    low = share_surely_above(num_alarms, num_good, settings.alpha)
    return Reason(
        rule="false alarms",
        verdict=Verdict.REJECT if low > limit else Verdict.PROMOTE,
        detail=(
            f"{num_alarms} of {num_good} good golden images raise an alarm ({rate:.1%}, surely at least {low:.1%}); "
            f"the threshold aimed at {evidence.calibration.target_false_alarm_rate:.1%}, the limit is {limit:.1%}."
        ),
        value=rate,
        limit=limit,
    )
