"""Decide whether the candidate may replace the champion.

Rules, one reason each; the overall verdict is the gravest of them (ERROR > REJECT > INCONCLUSIVE > PROMOTE):

- *binding*: evaluation, package and threshold belong to the same candidate, and the evaluation's files are unaltered.
- *enough images*: per class and for pixel metrics, else INCONCLUSIVE.
- *floor <metric>*: the candidate's figure is not below its floor.
- *not inferior <metric>*: the paired bootstrap over images, stratified by defect class, redrawn here with a seed from
  the candidate's key. PROMOTE when the one-sided lower bound of (candidate - champion) is above minus the margin,
  REJECT when the upper bound is below it, INCONCLUSIVE in between: then the golden set cannot tell.
- *worst stratum*: no defect class or stratum is surely worse by more than the margin (bounds shared out among them).
  Small strata cannot prove that they are not inferior, so this rule only ever stops a candidate that harms one.
- *false alarms*: the rate on good golden images at the candidate's own threshold is not surely above its limit.
- *export parity*: the exported file decides as the model does.

Without a champion (the first model of a key) only the comparisons fall away. A metric that has a floor or a margin
and is undefined is an ERROR, never a pass. Refusing is a success of this step; ``decision.json`` is the record.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from components._cli import main_for, once, write_json
from components.config import ExportSettings, GateSettings
from components.contracts import EvaluationRef, GateDecision, PackageRef, Reason, RunRef, Verdict, digest_of
from stlm.calibration import CALIBRATION_FILE, Calibration
from stlm.comparison import MeasuredModel, strata_of
from stlm.constants import GOOD
from stlm.errors import DataError, MetricUndefinedError
from stlm.metrics import (
    IMAGE_METRICS,
    LOWER_IS_BETTER,
    PIXEL_METRICS,
    ImageMeasurement,
    Measurement,
    PixelMeasurement,
    PixelStatistics,
    one_sided_bounds,
    resample_counts,
)

__all__ = ["GateInputs", "gate", "main"]

logger = logging.getLogger(__name__)

_GRAVITY = (Verdict.PROMOTE, Verdict.INCONCLUSIVE, Verdict.REJECT, Verdict.ERROR)
_STRATUM_METRIC = "image_auroc"
# With fewer images a bootstrap's bounds mean nothing.
_MIN_STRATUM = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class GateInputs:
    """What is judged, and by which limits."""

    run: RunRef
    evaluation: EvaluationRef
    package: PackageRef
    settings: GateSettings
    export: ExportSettings = field(default_factory=ExportSettings)
    """The limits that the exported file had to keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evidence:
    """What evaluation stored, read back and checked."""

    candidate: MeasuredModel
    champion: MeasuredModel | None
    calibration: Calibration
    defects: list[str]
    strata: list[str]
    pixel_classes: list[str]
    pixel_strata: list[str]
    synthetic: bool


class _UnboundError(Exception):
    """The evidence is missing, altered or of another candidate."""


def gate(inputs: GateInputs) -> GateDecision:
    """Judge the candidate by floors, against the champion, and by what would be served."""
    return once("gate", inputs, GateDecision, _gate)


def _gate(inputs: GateInputs, folder: Path) -> GateDecision:
    try:
        evidence = _read(inputs)
    except _UnboundError as error:
        reasons = [Reason(rule="binding", verdict=Verdict.ERROR, detail=str(error))]
    else:
        reasons = [
            Reason(
                rule="binding",
                verdict=Verdict.PROMOTE,
                detail="Evaluation, package and threshold belong to this candidate.",
            ),
            *_enough_images(evidence, inputs.settings),
            *_floors(evidence, inputs.settings),
            *_comparisons(evidence, inputs),
            _false_alarms(evidence, inputs.settings),
        ]
    reasons.append(_parity(inputs.package, inputs.export))
    decision = GateDecision(
        verdict=max((reason.verdict for reason in reasons), key=_GRAVITY.index),
        reasons=tuple(reasons),
        candidate_key=inputs.package.candidate_key,
        champion_version=inputs.evaluation.champion_version,
        bootstrap=inputs.evaluation.champion_version is None,
        evaluation_digest=inputs.evaluation.digest,
        package_digest=inputs.package.digest,
    )
    write_json(folder / "decision.json", decision)
    logger.info("step=gate verdict=%s candidate=%s", decision.verdict.value, decision.candidate_key)
    return decision


# --- evidence ---------------------------------------------------------------------------------------------------------


def _read(inputs: GateInputs) -> _Evidence:
    evaluation, package = inputs.evaluation, inputs.package
    if evaluation.candidate_key != package.candidate_key:
        raise _UnboundError(
            f"The evaluation is of candidate {evaluation.candidate_key}, the package of {package.candidate_key}."
        )
    try:
        report = json.loads(Path(evaluation.report_path).read_text(encoding="utf-8"))
        folder = Path(evaluation.report_path).parent
        if digest_of(report) != evaluation.digest or report["candidate_key"] != evaluation.candidate_key:
            raise _UnboundError(f"{evaluation.report_path} is not the report that evaluation made.")
        for name, sha256 in report["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
                raise _UnboundError(f"{folder / name} was altered after the evaluation.")
        scores, pixels = _arrays(folder / "scores.npz"), _arrays(folder / "pixels.npz")
        calibration = Calibration.from_json(json.dumps(report["candidate"]["calibration"]))
        packaged = Path(package.package_dir) / CALIBRATION_FILE
        if Calibration.from_json(packaged.read_text(encoding="utf-8")) != calibration:
            raise _UnboundError(f"{packaged} is not the threshold that was evaluated.")
        return _Evidence(
            candidate=_model("candidate", report, scores, pixels),
            champion=None if report["champion"] is None else _model("champion", report, scores, pixels),
            calibration=calibration,
            defects=scores["defect"].tolist(),
            strata=scores["stratum"].tolist(),
            pixel_classes=pixels["classes"].tolist(),
            pixel_strata=pixels["stratum"].tolist(),
            synthetic=bool(report["pixels"]["synthetic"]),
        )
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise _UnboundError(f"The evidence cannot be read: {error!r}") from error


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _model(
    name: str, report: Mapping[str, Any], scores: Mapping[str, npt.NDArray[Any]], pixels: Mapping[str, npt.NDArray[Any]]
) -> MeasuredModel:
    prefix = f"{name}_"
    arrays = {key.removeprefix(prefix): values for key, values in pixels.items() if key.startswith(prefix)}
    reason = report[name]["metrics"]["pro"]["reason"]
    return MeasuredModel(
        images=ImageMeasurement(
            scores=scores[f"{prefix}scores"],
            labels=scores["labels"],
            threshold=float(report[name]["calibration"]["threshold"]),
            recall=float(report["settings"]["recall"]),
        ),
        pixels=PixelMeasurement(statistics=PixelStatistics.from_arrays(arrays) if arrays else None, reason=reason),
    )


def _measurement(model: MeasuredModel, metric: str) -> Measurement:
    return model.pixels if metric in PIXEL_METRICS else model.images


# --- rules ------------------------------------------------------------------------------------------------------------


def _enough_images(evidence: _Evidence, settings: GateSettings) -> Iterator[Reason]:
    labels = evidence.candidate.images.labels
    numbers = {"good golden images": int((~labels).sum()), "defective golden images": int(labels.sum())}
    if any(metric in PIXEL_METRICS for metric in (*settings.floors, *settings.margins)):
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


def _named(metric: str, evidence: _Evidence) -> str:
    return f"{metric} (synthetic defects)" if metric in PIXEL_METRICS and evidence.synthetic else metric


def _floors(evidence: _Evidence, settings: GateSettings) -> Iterator[Reason]:
    for metric, floor in sorted(settings.floors.items()):
        rule = f"floor {metric}"
        if metric not in (*IMAGE_METRICS, *PIXEL_METRICS) or metric in LOWER_IS_BETTER:
            yield Reason(rule=rule, verdict=Verdict.ERROR, detail=f"{metric!r} is no metric that can have a floor.")
            continue
        try:
            value = _measurement(evidence.candidate, metric).value(metric)
        except MetricUndefinedError as error:
            detail = f"{_named(metric, evidence)} of the candidate is undefined: {error}"
            yield Reason(rule=rule, verdict=Verdict.ERROR, detail=detail, limit=floor)
            continue
        above = value >= floor
        yield Reason(
            rule=rule,
            verdict=Verdict.PROMOTE if above else Verdict.REJECT,
            detail=f"{_named(metric, evidence)} is {value:.4f}, {'not ' if above else ''}below the floor {floor:.4f}.",
            value=value,
            limit=floor,
        )


def _comparisons(evidence: _Evidence, inputs: GateInputs) -> Iterator[Reason]:
    settings = inputs.settings
    seed = int.from_bytes(hashlib.sha256(f"gate {inputs.package.candidate_key}".encode()).digest()[:8], "big")
    image_strata = [f"{s}/{d}" for s, d in zip(evidence.strata, evidence.defects, strict=True)]
    pixel_strata = [f"{s}/{c}" for s, c in zip(evidence.pixel_strata, evidence.pixel_classes, strict=True)]
    image_counts = resample_counts(image_strata, num_samples=settings.bootstrap_samples, seed=seed)
    pixel_counts = resample_counts(pixel_strata, num_samples=settings.bootstrap_samples, seed=seed)
    for metric, margin in sorted(settings.margins.items()):
        if metric in PIXEL_METRICS:
            yield from _not_inferior(evidence, metric, margin, settings.alpha, pixel_counts)
        elif metric in IMAGE_METRICS:
            yield from _not_inferior(evidence, metric, margin, settings.alpha, image_counts)
        else:
            yield Reason(rule=f"not inferior {metric}", verdict=Verdict.ERROR, detail=f"{metric!r} is no metric.")
    if evidence.champion is not None and _STRATUM_METRIC in settings.margins:
        yield from _worst_stratum(evidence, evidence.champion, settings, image_counts)


def _gain(
    candidate: Measurement, champion: Measurement, metric: str, counts: npt.NDArray[Any]
) -> tuple[float, npt.NDArray[np.float64]]:
    """Candidate minus champion, on the images and on resamples, turned so that more is better."""
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    point = sign * (candidate.value(metric) - champion.value(metric))
    return point, sign * (candidate.samples(metric, counts) - champion.samples(metric, counts))


def _not_inferior(
    evidence: _Evidence, metric: str, margin: float, alpha: float, counts: npt.NDArray[Any]
) -> Iterator[Reason]:
    rule, name = f"not inferior {metric}", _named(metric, evidence)
    ours = _measurement(evidence.candidate, metric)
    try:
        value = ours.value(metric)
        if evidence.champion is None:
            return
        theirs = _measurement(evidence.champion, metric)
        gain, samples = _gain(ours, theirs, metric, counts)
        before = theirs.value(metric)
    except MetricUndefinedError as error:
        yield Reason(rule=rule, verdict=Verdict.ERROR, detail=f"{name} is undefined: {error}", limit=-margin)
        return
    low, high = one_sided_bounds(samples, alpha=alpha)
    if low > -margin:
        verdict, words = Verdict.PROMOTE, "not inferior"
    elif high < -margin:
        verdict, words = Verdict.REJECT, "inferior"
    else:
        verdict, words = Verdict.INCONCLUSIVE, "undecided"
    yield Reason(
        rule=rule,
        verdict=verdict,
        detail=(
            f"{name} went from {before:.4f} to {value:.4f}: {words}. The gain of {gain:+.4f} lies within [{low:+.4f}, "
            f"{high:+.4f}] (one-sided {1 - alpha:.0%} each), the margin is {margin:.4f}; these images can show a "
            f"difference of {max(gain - low, high - gain):.4f} or more."
        ),
        value=low,
        limit=-margin,
    )


def _worst_stratum(
    evidence: _Evidence, champion: MeasuredModel, settings: GateSettings, counts: npt.NDArray[Any]
) -> Iterator[Reason]:
    margin, labels = settings.margins[_STRATUM_METRIC], evidence.candidate.images.labels
    members = {
        stratum.name: stratum.images
        for stratum in strata_of(evidence.defects, evidence.strata, [], [])
        if stratum.images is not None
    }
    if len(members) < 2:
        return
    judged = {
        name: chosen
        for name, chosen in members.items()
        if min(int((labels & chosen).sum()), int((~labels & chosen).sum())) >= _MIN_STRATUM
    }
    left_out = f" Not judged, fewer than {_MIN_STRATUM} images: {', '.join(sorted(set(members) - set(judged)))}."
    left_out = left_out if len(judged) < len(members) else ""
    if not judged:
        yield Reason(rule="worst stratum", verdict=Verdict.PROMOTE, detail=f"No stratum is large enough.{left_out}")
        return
    found: list[tuple[float, float, str]] = []
    for name, chosen in judged.items():
        ours, theirs = evidence.candidate.images.subset(chosen), champion.images.subset(chosen)
        try:
            gain, samples = _gain(ours, theirs, _STRATUM_METRIC, counts[:, chosen])
        except MetricUndefinedError as error:
            yield Reason(rule="worst stratum", verdict=Verdict.ERROR, detail=f"{name} is undefined: {error}")
            return
        found.append((one_sided_bounds(samples, alpha=settings.alpha / len(judged))[1], gain, name))
    upper, gain, name = min(found)
    harmed = upper < -margin
    yield Reason(
        rule="worst stratum",
        verdict=Verdict.REJECT if harmed else Verdict.PROMOTE,
        detail=(
            f"{_STRATUM_METRIC} of {name} changed by {gain:+.4f}, at most by {upper:+.4f}: "
            f"{'surely' if harmed else 'not surely'} worse by more than the margin {margin:.4f}.{left_out}"
        ),
        value=upper,
        limit=-margin,
    )


def _false_alarms(evidence: _Evidence, settings: GateSettings) -> Reason:
    images, limit = evidence.candidate.images, settings.max_false_alarm_rate
    try:
        rate = images.value("false_alarm_rate")
    except MetricUndefinedError as error:
        detail = f"The false-alarm rate is undefined: {error}"
        return Reason(rule="false alarms", verdict=Verdict.ERROR, detail=detail, limit=limit)
    num_good = int((~images.labels).sum())
    num_alarms = round(rate * num_good)
    # Clopper-Pearson: exact for a share of independent images.
    low = float(betaincinv(num_alarms, num_good - num_alarms + 1, settings.alpha)) if num_alarms else 0.0
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


def _parity(package: PackageRef, export: ExportSettings) -> Reason:
    difference, limit = package.max_score_difference, export.max_score_difference
    if package.error:
        detail = f"There is no exported file: {package.error}"
        return Reason(rule="export parity", verdict=Verdict.REJECT, detail=detail, limit=limit)
    same = (
        package.num_parity_images > 0
        and package.num_decision_flips == 0
        and math.isfinite(difference)
        and difference <= limit
    )
    return Reason(
        rule="export parity",
        verdict=Verdict.PROMOTE if same else Verdict.REJECT,
        detail=(
            f"On {package.num_parity_images} golden images the exported file differs from the model by at most "
            f"{difference:.2e} in score (limit {limit:.2e}) and in {package.num_decision_flips} decisions."
        ),
        value=difference if math.isfinite(difference) else None,
        limit=limit,
    )


def main(argv: list[str] | None = None) -> int:
    """Command line of this step."""
    return main_for("gate", GateInputs, gate, argv)


if __name__ == "__main__":
    raise SystemExit(main())
