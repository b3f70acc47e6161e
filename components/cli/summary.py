"""Summary of a night in at most a dozen lines, read from its records."""

import json
from pathlib import Path
from typing import Any

from components.core.contracts import GateDecision, ModelKey, RunRef
from components.core.next_steps import next_steps
from components.core.run_records import StepRecord, failures, is_finished, is_locked, read_night

__all__ = ["night_lines", "page_of", "verdict_of"]

_MOST_RULES, _MOST_STEPS = 2, 2
"""With the other lines a dozen."""
_IMAGE_METRICS = {"image_auroc": "image AUROC", "false_alarm_rate_at_recall": "false-alarm rate at recall"}
_PIXEL_METRICS = {"pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pro": "PRO"}


def night_lines(run: RunRef) -> list[str]:
    """What a person wants to know of a night in the morning."""
    records = read_night(run)
    lines = [f"Night {run.partition} of {run.key.slug}: {_ending(records)}"]
    lines += [f"  FAILED     {failure}" for failure in failures(records)]
    lines += _images(records)
    lines += _training(records)
    lines += _metrics(records)
    lines += _verdict(records)
    lines += _next_steps(run.key, records)
    if page := page_of(records):
        lines.append(f"  page       {page}")
    return lines


def page_of(records: dict[str, StepRecord]) -> Path | None:
    """The night's page, if it was written."""
    outputs = _outputs(records, "report")
    return Path(outputs["page_path"]) if outputs else None


def verdict_of(records: dict[str, StepRecord]) -> str:
    """The night in a word: the gate's verdict, or why there is none."""
    if failures(records):
        return "FAILED"
    if is_locked(records):
        return "LOCKED"
    if decision := _outputs(records, "gate"):
        return str(decision["verdict"])
    if (_outputs(records, "collect") or {}).get("status") == "NOTHING_NEW":
        return "NOTHING_NEW"
    return "UNFINISHED"


def _outputs(records: dict[str, StepRecord], step: str) -> dict[str, Any] | None:
    record = records.get(step)
    return record.outputs if record else None


def _ending(records: dict[str, StepRecord]) -> str:
    if is_locked(records):
        return f"not begun, {records['collect'].detail}"
    if not is_finished(records):
        return "failed" if failures(records) else "unfinished"
    promotion = _outputs(records, "promote")
    if promotion is None:
        return "nothing new, champion untouched"
    champion = promotion["champion_version"]
    serving = f"champion is version {champion}" if champion is not None else "there is no champion"
    return f"{promotion['outcome'].lower().replace('_', ' ')}, {serving}"


def _images(records: dict[str, StepRecord]) -> list[str]:
    collected, validation = _outputs(records, "collect"), _outputs(records, "validate")
    if collected is None:
        return []
    batch = collected["batch"]
    text = f"{batch['num_images']} taken in {batch['num_lots']} lots" if batch else "none taken"
    if validation is not None:
        text += f", {validation['num_accepted']} accepted, {validation['num_quarantined']} quarantined"
        by_count = sorted(validation["reasons"].items(), key=lambda item: (-item[1], item[0]))
        if by_count:
            text += f" ({', '.join(f'{reason} {count}' for reason, count in by_count)})"
        if validation["num_rejected"]:
            text += f", {validation['num_rejected']} rejected with lots {', '.join(validation['rejected_lots'])}"
    lines = [f"  images     {text}"]
    waiting = list(collected["waiting"])
    if len(waiting) > 1:
        waiting = [f"{waiting[0]} (and {len(waiting) - 1} more, on the page)"]
    return lines + [f"  left       {sentence}" for sentence in waiting]


def _training(records: dict[str, StepRecord]) -> list[str]:
    candidate = _outputs(records, "fine_tune")
    if candidate is None:
        return []
    parent = candidate["parent_version"]
    start = f"from version {parent}" if parent is not None else "of a first model"
    whole = sum(record.seconds for record in records.values())
    text = (
        f"  training   {candidate['training_seconds']:.0f} s, {candidate['num_steps']} steps {start}, "
        f"{candidate['num_new_images']} new and {candidate['num_replay_images']} replayed images "
        f"(all steps together {whole:.0f} s)"
    )
    return [text]


def _metrics(records: dict[str, StepRecord]) -> list[str]:
    evaluation = _outputs(records, "evaluate")
    if evaluation is None:
        return []
    try:
        report = json.loads(Path(evaluation["report_path"]).read_text(encoding="utf-8"))
        estimates = report["candidate"]["metrics"]
    except (OSError, ValueError, KeyError):
        estimates = {name: {"value": value} for name, value in evaluation["metrics"].items()}
    image = [_estimate(label, estimates.get(name)) for name, label in _IMAGE_METRICS.items()]
    pixel = [_estimate(label, estimates.get(name)) for name, label in _PIXEL_METRICS.items()]
    synthetic = " (synthetic defects)" if evaluation["synthetic_pixels"] else ""
    return [f"  metrics    {', '.join(image)}", f"             {', '.join(pixel)}{synthetic}"]


def _estimate(label: str, estimate: dict[str, Any] | None) -> str:
    value = (estimate or {}).get("value")
    if estimate is None or value is None:
        return f"{label} undefined"
    interval = estimate.get("interval")
    around = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval and None not in interval else ""
    return f"{label} {value:.3f}{around}"


def _verdict(records: dict[str, StepRecord]) -> list[str]:
    """The verdict with the rules that were not met, worst first, and how many were."""
    decision = _outputs(records, "gate")
    if decision is None:
        return []
    unmet = [reason for reason in decision["reasons"] if reason["verdict"] != "PROMOTE"]
    met = len(decision["reasons"]) - len(unmet)
    unmet.sort(key=lambda reason: reason["verdict"] != decision["verdict"])
    line = f"  verdict    {decision['verdict']}, {met} rule{'' if met == 1 else 's'} met"
    if unmet:
        line += f", {len(unmet)} not" + (
            f"; {_MOST_RULES} of them, the rest on the page:" if len(unmet) > _MOST_RULES else ":"
        )
    return [line, *(f"             {reason['verdict']:<12} {reason['detail']}" for reason in unmet[:_MOST_RULES])]


def _next_steps(key: ModelKey, records: dict[str, StepRecord]) -> list[str]:
    decision = _outputs(records, "gate")
    if decision is None:
        return []
    found = GateDecision.from_json(decision)
    outcome = (_outputs(records, "promote") or {}).get("outcome", "")
    steps = next_steps(key, found.verdict, found.reasons, candidate_key=found.candidate_key, outcome=outcome)
    return [f"  {'next' if number == 0 else '':<10} {step}" for number, step in enumerate(steps[:_MOST_STEPS])]
