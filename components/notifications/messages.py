"""Messages: one of a night, the same words for machines and for people."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from components.core.contracts import Contract, GateDecision, Reason, RunRef, Verdict, digest_of
from components.core.run_records import StepRecord
from components.notifications.outcomes import RunOutcome

__all__ = ["Level", "Message", "night_message", "text_of"]

Level = Literal["info", "trouble", "escalation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message(Contract):
    """The body of the webhook; a mail says the same."""

    kind: Literal["night", "deadline", "test"]
    level: Level
    key: str
    night: str
    outcome: str
    """In a word, as on the page: PROMOTED, REJECTED, FAILED, LOCKED, ..."""
    sentence: str
    champion: int | None
    """The version that serves; ``None`` where there is none, or MLflow does not answer."""
    verdict: Verdict | None = None
    reasons: tuple[Reason, ...] = ()
    """The gate's rules that were not met, or that somebody should read."""
    failures: tuple[str, ...] = ()
    figures: dict[str, float | None] | None = None
    bad_nights: tuple[str, ...] = ()
    """The unbroken row of failed or skipped nights up to this one."""
    page: str = ""
    page_uri: str = ""

    @property
    def id(self) -> str:
        """The same for the same news: a receiver that has it may drop a second one.

        Who serves and where the page lies are not the news, and MLflow may be away when they are asked for.
        """
        return digest_of(replace(self, champion=None, page="", page_uri=""))[:32]


def night_message(
    run: RunRef,
    records: Mapping[str, StepRecord],
    *,
    ending: RunOutcome,
    failed: tuple[str, ...],
    level: Level,
    champion: int | None,
    row: tuple[str, ...],
) -> Message:
    """The message of a night that ended.

    Args:
        run: The night.
        records: Its records.
        ending: How it ended.
        failed: ``step: why`` of the steps that failed.
        level: How loud.
        champion: The version that serves.
        row: The bad nights up to this one.

    Returns:
        The message.
    """
    outputs = {step: record.outputs or {} for step, record in records.items()}
    decision = GateDecision.from_json(outputs["gate"]) if outputs.get("gate") else None
    page = outputs.get("report", {})
    return Message(
        kind="night",
        level=level,
        key=run.key.slug,
        night=run.partition,
        outcome=ending.outcome,
        sentence=ending.sentence,
        champion=champion,
        verdict=None if decision is None else decision.verdict,
        reasons=() if decision is None else tuple(_worth_reading(decision)),
        failures=failed,
        figures=_figures(outputs),
        bad_nights=row,
        page=str(page.get("page_path", "")),
        page_uri=str(page.get("artifact_uri", "")),
    )


def _worth_reading(decision: GateDecision) -> list[Reason]:
    return [reason for reason in decision.reasons if reason.verdict is not Verdict.PROMOTE or reason.warning]


def _figures(outputs: Mapping[str, dict[str, Any]]) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    if batch := outputs.get("collect", {}).get("batch"):
        figures["images_taken"] = batch["num_images"]
    if validation := outputs.get("validate"):
        figures |= {f"images_{name}": validation[f"num_{name}"] for name in ("accepted", "quarantined", "rejected")}
    if candidate := outputs.get("fine_tune"):
        figures["training_seconds"] = candidate["training_seconds"]
    if evaluation := outputs.get("evaluate"):
        figures |= {f"candidate_{name}": value for name, value in evaluation["metrics"].items()}
        figures |= {f"champion_{name}": value for name, value in evaluation["champion_metrics"].items()}
    return figures


def subject_of(message: Message) -> str:
    """One line; nothing in it comes from outside."""
    loud = {"info": "", "trouble": "TROUBLE: ", "escalation": "ESCALATION: "}[message.level]
    return f"[STLM] {loud}{message.key} {message.night}: {message.outcome}"


def text_of(message: Message) -> str:
    """The message for people."""
    serving = "none, or the registry does not answer" if message.champion is None else f"version {message.champion}"
    lines = [message.sentence, "", f"Champion: {serving}"]
    if message.verdict is not None:
        lines.append(f"Verdict: {message.verdict.value}")
    lines += [f"  {reason.rule}: {reason.detail}" for reason in message.reasons]
    lines += [f"Failed: {failure}" for failure in message.failures]
    if len(message.bad_nights) > 1:
        lines += ["", f"{len(message.bad_nights)} nights in a row failed or were skipped:"]
        lines += [f"  {night}" for night in message.bad_nights]
    if message.figures:
        lines += ["", *(f"{name}: {_figure(value)}" for name, value in message.figures.items())]
    lines += ["", *(f"Page: {place}" for place in (message.page, message.page_uri) if place)]
    return "\n".join(lines).rstrip() + "\n"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
