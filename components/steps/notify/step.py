"""Notify: a night that ended -> a message; nothing that goes wrong here costs the night."""

import logging
from dataclasses import dataclass, field

from components.config import AlertSettings, MlflowSettings, NotifySettings
from components.core.contracts import Contract, RunRef
from components.core.run_records import read_night
from components.notifications.current_champion import serving_version
from components.notifications.delivery import deliver
from components.notifications.messages import Level, night_message
from components.notifications.outcomes import failure_streak, is_failure, run_outcome

__all__ = ["NotifyInputs", "NotifyRef", "notify"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class NotifyInputs(Contract):
    """Which night, and whom to tell."""

    run: RunRef
    failures: tuple[str, ...]
    """``step: why`` of the steps that failed, also of those that were killed and left no record."""
    mlflow: MlflowSettings
    alerts: AlertSettings = field(default_factory=AlertSettings)
    settings: NotifySettings = field(default_factory=NotifySettings)


@dataclass(frozen=True, kw_only=True, slots=True)
class NotifyRef(Contract):
    """What was said, and who has it."""

    message_id: str
    """Empty where there was nothing to tell."""
    level: Level
    outcome: str
    undelivered: dict[str, str]
    """Channel -> what went wrong."""


def notify(inputs: NotifyInputs) -> NotifyRef:
    """Tell how the night ended; escalate where it is one bad night too many in a row.

    Args:
        inputs: The night.

    Returns:
        What was said. A message that a channel has had is not sent by it again.
    """
    run = inputs.run
    records = read_night(run)
    ending = run_outcome(records, inputs.failures)
    row = failure_streak(run, ending.outcome, inputs.alerts)
    level = _level(ending.outcome, len(row), inputs.alerts)
    if level == "info" and inputs.settings.only_trouble:
        return NotifyRef(message_id="", level=level, outcome=ending.outcome, undelivered={})
    message = night_message(
        run,
        records,
        ending=ending,
        failed=inputs.failures,
        level=level,
        champion=serving_version(run.key, inputs.mlflow, run.work_dir),
        row=row,
    )
    outcome = deliver(message, inputs.settings, run.run_dir / "notify")
    return NotifyRef(
        message_id=message.id,
        level=level,
        outcome=ending.outcome,
        undelivered={channel: why for channel, why in outcome.items() if why},
    )


def _level(outcome: str, in_a_row: int, alerts: AlertSettings) -> Level:
    if in_a_row >= alerts.escalate_after:
        return "escalation"
    # One night without images is no trouble; a row of them may be.
    bad = is_failure(outcome, alerts) and outcome != "NOTHING NEW"
    return "trouble" if bad or outcome == "ERROR" else "info"
