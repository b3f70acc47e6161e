"""Roll-back: an earlier champion serves again, and nothing is promoted until somebody says so.

The target must have been champion before, be complete in the registry, be the package that was promoted then, and load
in a clean process. Where the default target is asked for twice, the second call finds the first one's work: to go
further back, the version must be named.
"""

from dataclasses import dataclass
from typing import Any

from components.adapters.lease import Clock, utc_now
from components.config import MlflowSettings, PromoteSettings
from components.core.contracts import ModelKey, RollbackRef
from components.core.errors import InputError, TransientError
from components.promotion.alias_transaction import AliasManager, AliasTransaction, open_alias_manager
from components.promotion.champion_state import ChampionState, version_label
from components.promotion.reconciliation import record_from_tags
from components.promotion.registration import check_version

__all__ = ["RollbackInputs", "rollback"]

_WAIT_S = 45.0
"""Longer than a dead holder's lease, shorter than the minute that a roll-back may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RollbackInputs:
    """Whose model is taken back, to which version, by whom and why."""

    key: ModelKey
    work_dir: str
    mlflow: MlflowSettings
    settings: PromoteSettings
    reason: str
    by: str
    to: int | None = None
    """The version; ``None``: the champion before the present one, by the ledger."""

    def __post_init__(self) -> None:
        for name in ("reason", "by"):
            if not getattr(self, name).strip():
                raise InputError(f"{name} must not be empty")


def rollback(inputs: RollbackInputs, *, clock: Clock = utc_now) -> RollbackRef:
    """Move the champion's alias back and freeze promotion.

    Args:
        inputs: What, by whom and why.
        clock: The clock of the lease and of the ledger's entries.

    Returns:
        What happened: ``ROLLED_BACK``, or ``ALREADY_THERE`` where nothing had to be moved.

    Raises:
        InputError: The target was never champion, is gone, altered, or does not load; nothing is moved.
        TransientError: MLflow or the ledger cannot be reached, another holds the lease for long, or the champion
            changed meanwhile.
    """
    manager = open_alias_manager(
        inputs.key, work_dir=inputs.work_dir, mlflow=inputs.mlflow, settings=inputs.settings, clock=clock
    )
    what = f"rollback by {inputs.by}"
    with manager.transaction(what, wait_s=_WAIT_S) as transaction:
        seen = transaction.state
        target = _target(inputs, seen)
        if _is_there(transaction, target):
            return _already_there(inputs, seen, target)
    # Without the lease: to fetch a package and to load it may take longer than it lasts.
    _check(manager, seen, target)
    with manager.transaction(what, wait_s=_WAIT_S) as transaction:
        state = transaction.state
        if (state.champion, _target(inputs, state)) != (seen.champion, target):
            raise TransientError(
                f"the champion of {inputs.key.registered_model} changed from {version_label(seen.champion)} to "
                f"{version_label(state.champion)} meanwhile; look at it and run this again"
            )
        record = _record(manager, state, target)
        transaction.move(
            target, action="rollback", anchor=state.anchor, by=inputs.by, reason=inputs.reason, record=record
        )
    return RollbackRef(
        outcome="ROLLED_BACK",
        name=inputs.key.registered_model,
        champion_version=target,
        from_version=seen.champion,
        detail=f"version {target} serves again instead of {version_label(seen.champion)}; promotion is frozen",
    )


def _target(inputs: RollbackInputs, state: ChampionState) -> int:
    name = inputs.key.registered_model
    if state.champion is None:
        raise InputError(f"{name} has no champion to roll back from")
    if inputs.to is not None:
        if inputs.to not in state.past_champions:
            known = ", ".join(str(version) for version in sorted(state.past_champions))
            raise InputError(f"version {inputs.to} was never champion of {name}; versions that were: {known}")
        return inputs.to
    if state.rolled_back:
        return state.champion
    if state.previous is None:
        raise InputError(f"{name} has no champion before version {state.champion} to go back to")
    return state.previous


def _is_there(transaction: AliasTransaction, target: int) -> bool:
    return transaction.state.champion == target and target not in transaction.missing_versions


def _already_there(inputs: RollbackInputs, state: ChampionState, target: int) -> RollbackRef:
    detail = f"version {target} is the champion already"
    last = state.last_commit
    if last is not None and state.rolled_back:
        detail += f": {last.body['by']} took it back from version {last.body['from']} at {last.at[:16]}Z"
        if state.previous is not None and inputs.to is None:
            detail += f"; to go further back, name the version: --to {state.previous}"
    return RollbackRef(
        outcome="ALREADY_THERE",
        name=inputs.key.registered_model,
        champion_version=target,
        from_version=None,
        detail=detail,
    )


def _record(manager: AliasManager, state: ChampionState, version: int) -> dict[str, Any]:
    """What is known of a former champion; of one that was replaced before there was a ledger, what MLflow knows."""
    first = state.commits.get(version)
    if first is None:
        return record_from_tags(manager.aliases.version_tags(version) or {})
    return dict(first.body["record"]) | {"promoted_by_entry": first.seq}


def _check(manager: AliasManager, state: ChampionState, target: int) -> None:
    """The version is complete, is what was promoted then, and loads."""
    manager.registry.version(manager.key, target)
    record = _record(manager, state, target)
    registered = (manager.aliases.version_tags(target) or {}).get("stlm.package_digest")
    if record.get("package_digest") not in (None, registered):
        raise InputError(
            f"version {target} of {manager.key.registered_model} is package {registered}, promoted was "
            f"{record['package_digest']}"
        )
    # A champion of before may hold no recorded scores; whoever needs it back needs it now.
    check_version(manager, target, scores_needed=False)
