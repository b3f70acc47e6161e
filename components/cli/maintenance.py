"""``stlm retention`` and ``stlm notify``: the housekeeping of a machine that runs every night."""

import datetime as dt

from components.adapters.lease import LeaseHeldError
from components.cli.ledger import alias_manager_of
from components.cli.status import champion_of
from components.core.errors import EXIT_TRANSIENT_ERROR, InputError
from components.local_stack.workspace import Workspace
from components.notifications.delivery import deliver
from components.notifications.messages import Message
from components.retention import RetentionInputs, delete_expired, plan_retention

__all__ = ["retention", "try_notify"]


def retention(workspace: Workspace, *, key: str, days: int, only_plan: bool, today: dt.date) -> int:
    """Delete, or list, what is old and nobody may ask for.

    Args:
        workspace: Configuration and state.
        key: Model key; empty for all.
        days: Younger nights stay as they are.
        only_plan: List, and change nothing.
        today: The day from which they are counted.

    Returns:
        0, or 75 where a key is at work just now; the others are done.

    Raises:
        InputError: There is no registry yet, or a ledger is broken.
        TransientError: MLflow or a ledger cannot be reached.
    """
    config, busy = workspace.config, 0
    for model in [workspace.model(key)] if key else config.models:
        alias_manager_of(workspace, model)  # there must be a registry
        inputs = RetentionInputs(
            key=model.key,
            work_dir=config.paths.work_dir,
            mlflow=config.mlflow,
            promote=config.promote,
            schedule=config.schedule,
            older_than_days=days,
            today=today.isoformat(),
        )
        try:
            found = plan_retention(inputs) if only_plan else delete_expired(inputs)
        except LeaseHeldError as error:
            print(f"{model.key.slug}: a run is at work, nothing was deleted: {error}")
            busy += 1
            continue
        print(f"{model.key.slug}: {'would free' if only_plan else 'freed'} {_size(found.num_bytes)}")
        for item in found.doomed:
            print(f"  {_size(item.num_bytes):>9}  {item.what}")
        print("".join(f"       kept  {why}\n" for why in found.kept), end="")
    return EXIT_TRANSIENT_ERROR if busy else 0


def _size(num_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"


def try_notify(workspace: Workspace, *, key: str, today: dt.date) -> int:
    """Send a trial message by every channel that is set; 0, or 1 where one did not take it."""
    settings, model = workspace.config.notify, workspace.model(key or workspace.config.models[0].key.slug)
    if not settings.is_on:
        raise InputError("nobody is to be told: set notify.webhook_url or notify.mail_to")
    champion = champion_of(workspace, model)
    message = Message(
        kind="test",
        level="escalation",  # so that everybody who may ever be told is told now
        key=model.key.slug,
        night=today.isoformat(),
        outcome="TEST",
        sentence="This is a trial: nothing happened.",
        champion=None if champion is None else champion.version,
    )
    outcome = deliver(message, settings)
    for channel, problem in outcome.items():
        print(f"{channel:<8} {problem or 'delivered'}")
    return 1 if any(outcome.values()) else 0
