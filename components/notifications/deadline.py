"""Deadline check of a night: whether training is done by then, and word of it where not. The champion stays.

It looks at the night's records alone, so that it also finds a night that never began because its DAG is paused or
another run holds the key.
"""

from dataclasses import dataclass, field
from typing import Literal

from components.config import AlertSettings, MlflowSettings, NotifySettings
from components.core.contracts import Contract, RunRef
from components.core.run_records import StepRecord, is_locked, read_night
from components.notifications.current_champion import serving_version
from components.notifications.delivery import deliver
from components.notifications.messages import Message
from components.notifications.outcomes import NOT_BEGUN, DeadlineMiss, failure_streak, record_deadline_miss

__all__ = ["DeadlineInputs", "DeadlineRef", "watch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadlineInputs(Contract):
    """Which night, and whom to tell."""

    run: RunRef
    deadline: str
    """For people: time and timezone."""
    mlflow: MlflowSettings
    alerts: AlertSettings = field(default_factory=AlertSettings)
    settings: NotifySettings = field(default_factory=NotifySettings)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadlineRef(Contract):
    """What was found at the deadline."""

    outcome: Literal["IN_TIME", "ENDED", "LATE"]
    """``ENDED``: without training; how, the night says itself."""
    detail: str = ""
    undelivered: dict[str, str] = field(default_factory=dict)
    """Channel -> what went wrong."""


def watch(inputs: DeadlineInputs) -> DeadlineRef:
    """Tell, once, of a night whose training is not done.

    Args:
        inputs: The night; the deadline is now.

    Returns:
        What was found.
    """
    run = inputs.run
    records = read_night(run)
    trained = records.get("fine_tune")
    if trained is not None and trained.outcome == "SUCCEEDED":
        return DeadlineRef(outcome="IN_TIME")
    if "report" in records or is_locked(records):
        return DeadlineRef(outcome="ENDED")
    late = record_deadline_miss(run, DeadlineMiss(partition=run.partition, begun=bool(records), why=_why(records)))
    row = () if late.begun else failure_streak(run, NOT_BEGUN, inputs.alerts)
    message = Message(
        kind="deadline",
        level="escalation" if len(row) >= inputs.alerts.escalate_after else "trouble",
        key=run.key.slug,
        night=run.partition,
        outcome="LATE" if late.begun else NOT_BEGUN,
        sentence=f"Training was not done by {inputs.deadline}: {late.why}. The champion goes on serving.",
        champion=serving_version(run.key, inputs.mlflow, run.work_dir),
        bad_nights=row,
    )
    sent = deliver(message, inputs.settings, run.state_dir / "late" / run.key.slug / f"{run.partition}-sent")
    return DeadlineRef(
        outcome="LATE", detail=late.why, undelivered={channel: why for channel, why in sent.items() if why}
    )


def _why(records: dict[str, StepRecord]) -> str:
    if not records:
        return "the night has not begun; its DAG may be paused, its run waiting, or the scheduler down"
    last = list(records.values())[-1]
    if last.outcome == "FAILED":
        return f"{last.step} failed and is perhaps tried again ({last.detail})"
    return f"{last.step} is done, what comes next is not"
