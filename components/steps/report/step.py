"""Report: the page of the morning, one self-contained HTML file a night, also for nights that ended early.

The page lies in the step's folder as ``report.html`` and among the artifacts of the night's MLflow run as
``report/report.html``; the night's figures are logged to that run in one request. Equal inputs after the same
nights give the same page. A part whose step did not run says why; a file that cannot be read costs its own part, never
the page.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.adapters.mlflow.registry import open_registry
from components.adapters.mlflow.tracking import (
    close_run,
    log_artifacts,
    log_curves,
    log_metrics,
    open_run,
    set_tags,
)
from components.core.atomic_files import write_file
from components.core.contracts import GateDecision, Reason, ReportRef, Verdict, from_json
from components.core.errors import InputError, TransientError
from components.core.next_steps import next_steps
from components.core.step_runner import run_once
from components.rendering.charts import Chart, Charts, curves_svg
from components.rendering.facts import LabelledValue, with_unit
from components.rendering.page import render
from components.rendering.pictures import ThumbnailEncoder
from components.steps.report.forgetting import EarlierNights, gather_nights
from components.steps.report.heat_maps import (
    HeatMaps,
    gather_heat_maps,
    read_scores,
    score_charts,
)
from components.steps.report.inputs import ReportInputs, why_missing
from components.steps.report.metrics_table import compare, read_json, thresholds_of
from components.steps.report.quarantine import gather_images, gather_quarantine, read_table
from components.steps.report.summary import (
    Headline,
    champion_now,
    failures,
    figures,
    headline,
    judged_against,
    lineage,
    version_fact,
)

__all__ = ["ReportInputs", "report"]

logger = logging.getLogger(__name__)

PAGE = "report.html"
_TEMPLATE = Path(__file__).with_name("page.html.j2")
_ARTIFACT_FOLDER = "report"
_LOGGABLE = re.compile(r"[A-Za-z0-9_. -]+")
"""Names that MLflow takes."""
_TONES = {
    Verdict.PROMOTE: "good",
    Verdict.INCONCLUSIVE: "warn",
    Verdict.REJECT: "bad",
    Verdict.ERROR: "bad",
}
_SAYS = {
    Verdict.PROMOTE: "met",
    Verdict.INCONCLUSIVE: "inconclusive",
    Verdict.REJECT: "not met",
    Verdict.ERROR: "error",
}


def report(inputs: ReportInputs) -> ReportRef:
    """Write the night's page and store it, with the night's figures, in the MLflow run.

    Args:
        inputs: Whatever the night produced.

    Returns:
        Where the page is, and its headline as ``summary``.

    Raises:
        TransientError: MLflow cannot be reached; the page is already in the step's folder.
    """
    return run_once("report", inputs, ReportRef, _report)


def _report(inputs: ReportInputs, folder: Path) -> ReportRef:
    champion = champion_now(inputs) or _standing_champion(inputs)
    head = headline(inputs, champion)
    page, nights = folder / PAGE, gather_nights(inputs)
    write_file(page, render(_context(inputs, folder, head, champion, nights), _TEMPLATE).encode())
    logger.info(
        "step=report key=%s night=%s page=%s bytes=%d",
        inputs.run.key.slug,
        inputs.run.partition,
        page,
        page.stat().st_size,
    )
    run_id = open_run(inputs.mlflow, inputs.run)
    log_metrics(inputs.mlflow, run_id, _night_metrics(inputs) | {"normals/forgetting": nights.forgetting})
    if inputs.candidate is not None:
        log_curves(inputs.mlflow, run_id, _curves(inputs.candidate.curves_path))
    set_tags(
        inputs.mlflow,
        run_id,
        {"stlm.headline": head.badge, "stlm.reason": head.sentence[:5000]},
    )
    uri = log_artifacts(inputs.mlflow, run_id, page, _ARTIFACT_FOLDER)
    close_run(inputs.mlflow, run_id, failed=bool(inputs.failures))
    return ReportRef(
        page_path=str(page),
        artifact_uri=uri,
        summary={"badge": head.badge, "tone": head.tone, "sentence": head.sentence},
    )


def _context(
    inputs: ReportInputs, folder: Path, head: Headline, champion: LabelledValue, nights: EarlierNights
) -> dict[str, Any]:
    album = ThumbnailEncoder()
    table_path, table = read_table(inputs)
    metrics, problem = _evaluation_report(inputs)
    decision = inputs.decision
    scores, heat_maps = _pictures(inputs, metrics, album)
    return {
        "key": inputs.run.key.slug,
        "night": inputs.run.partition,
        "headline": head,
        "figures": figures(inputs, champion),
        "failures": failures(inputs),
        "comparison": compare(inputs, metrics, problem),
        "gate_note": "" if decision is not None else why_missing(inputs, "gate"),
        "gate_caption": "" if decision is None else judged_against(inputs, decision),
        "reasons": [] if decision is None else [_reason(reason) for reason in decision.reasons],
        "next_steps": () if decision is None else _next_steps(inputs, decision),
        "nights": nights,
        "images": gather_images(inputs, table, table_path, folder),
        "quarantine": gather_quarantine(inputs, table, table_path, album),
        "training": _training(inputs),
        "scores": scores,
        "heat_maps": heat_maps,
        "lineage": lineage(inputs, _lineage_file(inputs)),
    }


def _standing_champion(inputs: ReportInputs) -> LabelledValue:
    """What the registry says, for a night that ended before it looked itself."""
    try:
        champion = open_registry(inputs.mlflow, inputs.run).champion(inputs.run.key)
    except (InputError, TransientError) as error:
        return LabelledValue(label="Champion now", value="unknown", note=str(error))
    return version_fact(None if champion is None else champion.version)


def _evaluation_report(inputs: ReportInputs) -> tuple[dict[str, Any] | None, str]:
    """Evaluation's report, or why it is missing though evaluation ran."""
    if inputs.evaluation is None:
        return None, ""
    try:
        metrics = read_json(inputs.evaluation.report_path)
    except ValueError as error:
        return None, str(error)
    return (metrics, "") if isinstance(metrics, dict) else (None, "report.json is no JSON object")


def _pictures(
    inputs: ReportInputs, metrics: Mapping[str, Any] | None, album: ThumbnailEncoder
) -> tuple[Charts, HeatMaps]:
    if inputs.evaluation is None:
        why = why_missing(inputs, "evaluate")
        return Charts(note=why), HeatMaps(note=why)
    try:
        golden = read_scores(
            Path(inputs.evaluation.scores_path),
            Path(inputs.golden),
            thresholds_of(metrics or {}),
        )
    except ValueError as error:
        return Charts(note=str(error)), HeatMaps(note=str(error))
    version = inputs.evaluation.champion_version
    names = {"candidate": "Candidate", "champion": f"Champion v{version}"}
    return score_charts(golden, names), gather_heat_maps(golden, album, inputs.settings.max_pictures)


def _next_steps(inputs: ReportInputs, decision: GateDecision) -> tuple[str, ...]:
    outcome = "" if inputs.promotion is None else inputs.promotion.outcome
    return next_steps(
        inputs.run.key, decision.verdict, decision.reasons, candidate_key=decision.candidate_key, outcome=outcome
    )


def _reason(reason: Reason) -> dict[str, str]:
    warned = reason.warning and reason.verdict is Verdict.PROMOTE
    return {
        "rule": reason.rule,
        "says": "met, but read" if warned else _SAYS[reason.verdict],
        "tone": "warn" if warned else _TONES[reason.verdict],
        "value": with_unit(reason.rule, reason.value),
        "limit": with_unit(reason.rule, reason.limit),
        "detectable": with_unit(reason.rule, reason.detectable) if reason.detectable is not None else "",
        "detail": reason.detail,
    }


def _training(inputs: ReportInputs) -> Charts:
    candidate = inputs.candidate
    if candidate is None:
        return Charts(note=why_missing(inputs, "fine_tune"))
    try:
        curves = read_json(candidate.curves_path)
    except ValueError as error:
        return Charts(note=str(error))
    stages = curves.items() if isinstance(curves, dict) else ()
    charts = [
        Chart(title=str(stage).replace("_", " "), svg=svg, caption="")
        for stage, records in stages
        if isinstance(records, list) and records and (svg := curves_svg(str(stage), records))
    ]
    return Charts(charts=charts, note="" if charts else "No training curve was recorded.")


def _curves(path: str) -> dict[str, list[dict[str, float]]]:
    """Stage -> rows; a damaged file is said on the page, and leaves MLflow without curves."""
    try:
        curves = from_json(dict[str, list[dict[str, float]]], read_json(path))
    except ValueError as error:
        logger.warning("training curves %s stay out of MLflow: %s", path, error)
        return {}
    return {
        stage: [{name: value for name, value in row.items() if _LOGGABLE.fullmatch(name)} for row in rows]
        for stage, rows in curves.items()
        if _LOGGABLE.fullmatch(stage)
    }


def _lineage_file(inputs: ReportInputs) -> dict[str, Any]:
    if inputs.candidate is None:
        return {}
    try:
        entries = read_json(Path(inputs.candidate.package_dir) / "lineage.json")
    except ValueError:
        return {}
    if not isinstance(entries, dict):
        return {}
    return {name: value for name, value in entries.items() if isinstance(value, str | int | float | bool)}


def _night_metrics(inputs: ReportInputs) -> dict[str, float | None]:
    """Figures of the night for MLflow's charts over the nights."""
    metrics: dict[str, float | None] = {}
    batch = (inputs.collect or {}).get("batch") or {}
    if inputs.collect is not None:
        metrics["images/taken"] = float(batch.get("num_images", 0))
    if inputs.validation is not None:
        metrics |= {
            "images/accepted": inputs.validation.num_accepted,
            "images/quarantined": inputs.validation.num_quarantined,
            "images/rejected": inputs.validation.num_rejected,
        }
    if inputs.candidate is not None:
        metrics |= {
            "training/seconds": inputs.candidate.training_seconds,
            "training/steps": inputs.candidate.num_steps,
            "training/new_images": inputs.candidate.num_new_images,
            "training/replay_images": inputs.candidate.num_replay_images,
        }
    if inputs.evaluation is not None:
        for model, values in (
            ("candidate", inputs.evaluation.metrics),
            ("champion", inputs.evaluation.champion_metrics),
        ):
            metrics |= {f"{model}/{name}": value for name, value in values.items()}
    if inputs.package is not None:
        metrics |= {
            "package/max_score_difference": inputs.package.max_score_difference,
            "package/decision_flips": inputs.package.num_decision_flips,
            "package/onnx_ms_per_image": inputs.package.onnx_ms_per_image,
            "package/size_bytes": inputs.package.size_bytes,
        }
    return metrics
