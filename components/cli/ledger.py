"""``stlm ledger``: what the ledger of a key says, whether it holds, and putting the registry right by it."""

import datetime as dt
import json

from components.adapters.ledger import Entry
from components.adapters.mlflow.aliases import FROZEN_TAG
from components.config import ModelSettings
from components.core.errors import InputError
from components.local_stack.workspace import Workspace
from components.promotion.alias_transaction import AliasManager, open_alias_manager
from components.promotion.champion_state import ChampionState, champion_state_at, replay_ledger, version_label

__all__ = ["alias_manager_of", "last_lines", "ledger_at", "reconcile", "show", "verify"]


def alias_manager_of(workspace: Workspace, model: ModelSettings) -> AliasManager:
    """The alias manager of a key.

    Args:
        workspace: Configuration and state.
        model: The key's settings.

    Returns:
        The manager.

    Raises:
        InputError: There is no registry yet.
        TransientError: The registry cannot be reached.
    """
    config = workspace.config
    if not workspace.has_registry:
        raise InputError(f"there is no registry yet at {config.mlflow.tracking_uri}: nothing was ever promoted")
    return open_alias_manager(model.key, work_dir=config.paths.work_dir, mlflow=config.mlflow, settings=config.promote)


def verify(workspace: Workspace, *, key: str) -> int:
    """Check every entry, and the head that the registry keeps; 0, or an error that names the first bad entry."""
    manager = alias_manager_of(workspace, workspace.model(key))
    chain, _ = manager.snapshot()
    head = f", the last {chain.digests[-1]}" if chain.entries else ""
    print(f"{manager.ledger.where}: {len(chain.entries)} entries, each as it was written{head}")
    return 0


def show(workspace: Workspace, *, key: str, entry: int, limit: int) -> int:
    """Print the last entries, or one of them whole as JSON.

    Args:
        workspace: Configuration and state.
        key: Model key; empty for the only one.
        entry: Number of the entry to print whole; 0 for the list.
        limit: How many entries to list.

    Returns:
        0.

    Raises:
        InputError: There is no such entry, or the ledger was tampered with.
    """
    manager = alias_manager_of(workspace, workspace.model(key))
    chain, _ = manager.snapshot()
    if entry:
        if entry > len(chain.entries):
            raise InputError(f"ledger {manager.ledger.where} has {len(chain.entries)} entries, not {entry}")
        print(json.dumps(chain.entries[entry - 1].to_json(), indent=2, ensure_ascii=False))
        return 0
    for item in chain.entries[-limit:]:
        print(_entry_line(item))
    if not chain.entries:
        print(f"{manager.ledger.where} has no entries yet")
    return 0


def ledger_at(workspace: Workspace, *, key: str, moment: dt.datetime) -> int:
    """Print who was champion at a moment (UTC where it names no zone), and since when; 0."""
    manager = alias_manager_of(workspace, workspace.model(key))
    chain, _ = manager.snapshot()
    at = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    state = champion_state_at(chain.entries, at)
    stamp = at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%MZ")
    if state.last_commit is None or state.champion is None:
        print(f"{stamp}: {manager.key.registered_model} had no champion")
        return 0
    body, record = state.last_commit.body, state.last_commit.body["record"]
    print(f"{stamp}: version {state.champion} of {manager.key.registered_model}")
    print(f"  since      {state.last_commit.at} ({body['action']} by {body['by']}, entry {state.last_commit.seq})")
    print(f"  why        {body['reason']}")
    for label, value in _facts(state, record):
        print(f"  {label:<10} {value}")
    return 0


def reconcile(workspace: Workspace, *, key: str) -> int:
    """Finish or undo what a crash left and put the aliases where the ledger says; print what was done; 0."""
    manager = alias_manager_of(workspace, workspace.model(key))
    if manager.aliases.read() is None and not manager.ledger.read().entries:
        print(f"{manager.key.registered_model} is not registered and its ledger is empty: nothing to do")
        return 0
    with manager.transaction("reconcile") as transaction:
        repairs, missing_versions = list(transaction.repairs), list(transaction.missing_versions)
    for repair in repairs:
        print(repair)
    if not repairs:
        print(f"ledger and registry agree on {manager.key.registered_model}: nothing to do")
    if missing_versions:
        raise InputError(
            f"version {missing_versions[0]} of {manager.key.registered_model} was deleted from the registry; where it "
            f"is the champion, take back an earlier one with `stlm rollback --to VERSION`"
        )
    return 0


def last_lines(workspace: Workspace, model: ModelSettings, *, limit: int) -> list[str]:
    """Whether promotion is frozen, and the last entries of a key's ledger."""
    chain, posted = alias_manager_of(workspace, model).snapshot()
    state = replay_ledger(chain.entries)
    frozen = state.frozen_because() or posted.tags.get(FROZEN_TAG, "")
    lines = [f"promotion is frozen: {frozen}"] if frozen else []
    if state.break_glass is not None:
        lines.append(f"BREAK-GLASS: {state.override_summary()}")
    if state.challenger is not None:
        lines.append(f"challenger: version {state.challenger}, scored on {len(state.shadows)} nights so far")
    return lines + [_entry_line(entry) for entry in chain.entries[-limit:]]


def _entry_line(entry: Entry) -> str:
    """An entry in a line."""
    body = entry.body
    text = f"{entry.seq:>6}  {entry.at[:19]}Z  {entry.kind:<8}"
    if entry.kind in ("intent", "commit"):
        text += (
            f"  {body['action']} {version_label(body['from'])} -> {version_label(body['champion'])}, by {body['by']}"
        )
    elif entry.kind == "abort":
        text += f"  of entry {body['intent']}"
    elif entry.kind in ("challenge", "shadow", "drop"):
        text += f"  version {body['version']}, by {body['by']}"
    else:
        text += f"  by {body['by']}"
    return f"{text}: {body['reason']}"


def _facts(state: ChampionState, record: dict[str, object]) -> list[tuple[str, object]]:
    data = record.get("data")
    found = [
        ("night", record.get("partition")),
        ("candidate", record.get("candidate_key")),
        ("data", data.get("revision") if isinstance(data, dict) else None),
        ("previous", state.previous),
        ("anchor", state.anchor),
        ("frozen", state.frozen_because() or None),
        ("BREAK-GLASS", state.override_summary() or None),
    ]
    return [(label, value) for label, value in found if value is not None]
