"""``stlm rollback``, ``freeze``, ``unfreeze`` and ``delete-version``: a person's word on what serves."""

import getpass
import time

from components.adapters.mlflow.aliases import FROZEN_TAG
from components.cli.ledger import alias_manager_of
from components.core.errors import InputError
from components.local_stack.workspace import Workspace
from components.promotion.rollback import RollbackInputs
from components.promotion.rollback import rollback as roll_back
from components.promotion.version_retention import delete_version as delete

__all__ = ["delete_version", "freeze", "rollback", "unfreeze"]


def _who(by: str) -> str:
    return by.strip() or getpass.getuser()


def _because(reason: str) -> str:
    if not reason.strip():
        raise InputError("why? give a --reason; it is kept in the ledger")
    return reason.strip()


def rollback(workspace: Workspace, *, key: str, to: int | None, reason: str, by: str) -> int:
    """An earlier champion serves again, and promotion is frozen.

    Args:
        workspace: Configuration and state.
        key: Model key; empty for the only one.
        to: The version; None: the champion before the present one.
        reason: Why.
        by: Who; empty: the user of this process.

    Returns:
        0.

    Raises:
        InputError: The target was never champion, is gone, altered, or does not load; nothing is moved.
        TransientError: MLflow or the ledger cannot be reached, or somebody else is at it.
    """
    started = time.monotonic()
    model, config = workspace.model(key), workspace.config
    alias_manager_of(workspace, model)  # there must be a registry
    inputs = RollbackInputs(
        key=model.key,
        work_dir=config.paths.work_dir,
        mlflow=config.mlflow,
        settings=config.promote,
        to=to,
        reason=_because(reason),
        by=_who(by),
    )
    result = roll_back(inputs)
    print(f"{result.name}: {result.detail} ({time.monotonic() - started:.0f} s)")
    if result.outcome == "ROLLED_BACK":
        print("Nights go on, but promote nothing until `stlm unfreeze --reason ...`")
    return 0


def freeze(workspace: Workspace, *, key: str, reason: str, by: str) -> int:
    """Nothing is promoted until somebody unfreezes; 0."""
    who, why = _who(by), _because(reason)
    manager = alias_manager_of(workspace, workspace.model(key))
    with manager.transaction(f"freeze by {who}") as transaction:
        now = transaction.state.frozen
        if now is None or (now.body["by"], now.body["reason"]) != (who, why):
            transaction.note("freeze", by=who, reason=why)
    print(f"{manager.key.registered_model}: promotion is frozen")
    return 0


def unfreeze(workspace: Workspace, *, key: str, reason: str, by: str) -> int:
    """Nights may promote again; 0."""
    who, why = _who(by), _because(reason)
    manager = alias_manager_of(workspace, workspace.model(key))
    with manager.transaction(f"unfreeze by {who}") as transaction:
        was_frozen = transaction.state.frozen is not None or FROZEN_TAG in transaction.posted.tags
        if was_frozen:
            transaction.note("unfreeze", by=who, reason=why)
            transaction.lift_tag()
    print(f"{manager.key.registered_model}: {'nights may promote again' if was_frozen else 'promotion was not frozen'}")
    return 0


def delete_version(workspace: Workspace, *, key: str, version: int, by: str) -> int:
    """Delete a version that never carried an alias; 0."""
    manager = alias_manager_of(workspace, workspace.model(key))
    delete(manager, version, by=_who(by))
    print(f"version {version} of {manager.key.registered_model} is deleted")
    return 0
