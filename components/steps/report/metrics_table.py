"""Metrics table: candidate against champion, with intervals, paired differences and thresholds."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from components.rendering.facts import DASH, MINUS, LabelledValue, number
from components.steps.report.inputs import ReportInputs, why_missing
from stlm.constants import IMAGE_METRICS, LOWER_IS_BETTER, PIXEL_METRICS

__all__ = ["Comparison", "Row", "Stratum", "compare", "read_json", "thresholds_of"]

_LABELS = {
    "image_auroc": "Image AUROC",
    "false_alarm_rate_at_recall": "False-alarm rate at fixed recall",
    "false_alarm_rate": "False-alarm rate at the threshold",
    "recall": "Recall at the threshold",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pro": "PRO",
}
_MAX_STRATA = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure of both models; each ``LabelledValue`` is a value with its interval as the note."""

    label: str
    champion: LabelledValue
    candidate: LabelledValue
    difference: LabelledValue
    reading: str = ""
    tone: Literal["good", "bad", "calm"] = "calm"
    synthetic: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """One figure of one stratum."""

    stratum: str
    label: str
    champion: LabelledValue
    candidate: LabelledValue


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The section of the page."""

    candidate_name: str = "candidate"
    champion_name: str = ""
    """Empty where there is no champion; its columns are then left out."""
    caption: str = ""
    rows: list[Row] = field(default_factory=list)
    strata: list[Stratum] = field(default_factory=list)
    synthetic_note: str = ""
    note: str = ""


def read_json(path: str | Path) -> Any:
    """Read a file that an earlier step wrote.

    Args:
        path: The file.

    Returns:
        Parsed JSON.

    Raises:
        ValueError: The file is missing or no JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{Path(path).name} cannot be read ({type(error).__name__})") from error


def thresholds_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Operating threshold per model, ``candidate`` and ``champion``, as far as the report has them."""
    found = {}
    for model in ("candidate", "champion"):
        value = _get(report, model, "calibration", "threshold")
        if _finite(value):
            found[model] = float(value)
    return found


def compare(inputs: ReportInputs, report: Mapping[str, Any] | None, problem: str = "") -> Comparison:
    """The table of candidate against champion.

    Args:
        inputs: The night.
        report: Evaluation's ``report.json``; ``None`` where it is missing.
        problem: Why it is missing, when evaluation did run.

    Returns:
        The section; its note says why something is missing.
    """
    if inputs.evaluation is None or report is None:
        return Comparison(note=problem or why_missing(inputs, "evaluate"))
    champion_version = inputs.evaluation.champion_version
    has_champion = champion_version is not None and isinstance(report.get("champion"), dict)
    synthetic = inputs.evaluation.synthetic_pixels
    rows = [_metric_row(report, metric, synthetic=synthetic) for metric in (*IMAGE_METRICS, *PIXEL_METRICS)]
    rows.append(
        Row(
            label="Operating threshold",
            champion=_threshold(report, "champion"),
            candidate=_threshold(report, "candidate"),
            difference=_BLANK,
            reading="scores of two models do not compare" if has_champion else "",
        )
    )
    if inputs.candidate is not None:
        learnt = LabelledValue(
            label="",
            value=str(inputs.candidate.num_new_images),
            note=f"and {inputs.candidate.num_replay_images} replayed",
        )
        rows.append(
            Row(
                label="New images learnt",
                champion=_BLANK,
                candidate=learnt,
                difference=_BLANK,
            )
        )
    return Comparison(
        champion_name=f"Champion v{champion_version}" if has_champion else "",
        candidate_name="Candidate",
        caption=_caption(report, has_champion=has_champion),
        rows=rows,
        strata=_strata(report),
        synthetic_note=_synthetic_note(report) if synthetic else "",
    )


_BLANK = LabelledValue(label="", value="")


def _get(value: Any, *names: str) -> Any:
    for name in names:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else MINUS}{abs(value):.3f}"


def _estimate(estimate: Any, *, signed: bool = False) -> LabelledValue:
    value, interval = _get(estimate, "value"), _get(estimate, "interval")
    if not _finite(value):
        return LabelledValue(label="", value=DASH, note=str(_get(estimate, "reason") or ""))
    show = _signed if signed else number
    note = ""
    if isinstance(interval, list) and len(interval) == 2 and all(map(_finite, interval)):
        note = f"{show(interval[0])} to {show(interval[1])}"
    return LabelledValue(label="", value=show(value), note=note)


def _reading(metric: str, estimate: Any) -> tuple[str, Literal["good", "bad", "calm"]]:
    interval = _get(estimate, "interval")
    if not (isinstance(interval, list) and len(interval) == 2 and all(map(_finite, interval))):
        return "", "calm"
    low, high = interval
    if metric in LOWER_IS_BETTER:
        low, high = -high, -low
    if low > 0:
        return "better", "good"
    if high < 0:
        return "worse", "bad"
    return "no clear difference", "calm"


def _metric_row(report: Mapping[str, Any], metric: str, *, synthetic: bool) -> Row:
    change = _get(report, "difference", metric)
    reading, tone = _reading(metric, change)
    label = _LABELS.get(metric, metric)
    recall = _get(report, "settings", "recall")
    if metric == "false_alarm_rate_at_recall" and _finite(recall):
        label = f"False-alarm rate at recall {recall:g}"
    return Row(
        label=label,
        champion=_estimate(_get(report, "champion", "metrics", metric)) if report.get("champion") else _BLANK,
        candidate=_estimate(_get(report, "candidate", "metrics", metric)),
        difference=_estimate(change, signed=True) if change is not None else _BLANK,
        reading=reading,
        tone=tone,
        synthetic=synthetic and metric in PIXEL_METRICS,
    )


def _threshold(report: Mapping[str, Any], model: str) -> LabelledValue:
    calibration = _get(report, model, "calibration")
    if calibration is None:
        return _BLANK
    estimate = _estimate(
        {
            "value": _get(calibration, "threshold"),
            "interval": _get(calibration, "interval"),
        }
    )
    normals = _get(calibration, "num_normals")
    note = f"{estimate.note}; {normals} normals" if normals is not None else estimate.note
    return LabelledValue(label="", value=estimate.value, note=note)


def _caption(report: Mapping[str, Any], *, has_champion: bool) -> str:
    good, bad = (
        _get(report, "golden", "num_good"),
        _get(report, "golden", "num_defective"),
    )
    confidence = _get(report, "settings", "confidence")
    level = f"{confidence:.0%}" if _finite(confidence) else "bootstrap"
    text = (
        f"Golden set: {good} good and {bad} defective images. "
        f"The range under a figure is its {level} interval over images."
    )
    if not has_champion:
        return f"{text} There was no champion to compare with."
    text += (
        " Differences are paired: both models saw the same images; they read better or worse where the interval "
        "excludes zero."
    )
    flips = _get(report, "decisions", "num_flips")
    return text + (f" {flips} images are decided differently." if flips is not None else "")


def _synthetic_note(report: Mapping[str, Any]) -> str:
    num_images = _get(report, "pixels", "num_images")
    over = f", over {num_images} images" if num_images is not None else ""
    return (
        "Synthetic: the golden set has no masks, so these pixel figures come from defects drawn on golden normals"
        f"{over}. They compare models with each other; they say little about real defects."
    )


def _strata(report: Mapping[str, Any]) -> list[Stratum]:
    strata = report.get("strata")
    if not isinstance(strata, Mapping) or len(strata) < 2:
        return []
    rows = []
    for name in sorted(strata):
        stratum = strata[name]
        metrics = [m for m in (*IMAGE_METRICS, *PIXEL_METRICS) if _finite(_get(stratum, "candidate", m, "value"))]
        wanted = [m for m in ("image_auroc", "recall", "pixel_ap", "pro") if m in metrics] or metrics[:1]
        for metric in wanted:
            champion = _get(stratum, "champion", metric)
            rows.append(
                Stratum(
                    stratum=str(name),
                    label=_LABELS.get(metric, metric),
                    champion=_BLANK if champion is None else _estimate(champion),
                    candidate=_estimate(_get(stratum, "candidate", metric)),
                )
            )
    return rows[:_MAX_STRATA]
