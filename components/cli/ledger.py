"""``stlm ledger``: what the ledger of a key says, whether it holds, and putting the registry right by it."""

import datetime as dt
import json

from components.adapters.ledger import Entry
from components.adapters.mlflow.aliases import FROZEN_TAG
from components.config import ModelSettings
from components.core.errors import InputError
from components.local_stack.workspace import Workspace
from components.promotion.alias_transaction import Desk, open_desk
from components.promotion.champion_state import Standing, spoken, standing_at, standing_of

__all__ = ["desk_of", "last_lines", "ledger_at", "reconcile", "show", "verify"]


def desk_of(workspace: Workspace, model: ModelSettings) -> Desk:
    """The desk at which a key's aliases are moved.

    Args:
        workspace: Configuration and state.
        model: The key's settings.

    Returns:
        The desk.

    Raises:
        InputError: There is no registry yet.
        TransientError: The registry cannot be reached.
    """
    config = workspace.config
    if not workspace.has_registry:
        raise InputError(f"there is no registry yet at {config.mlflow.tracking_uri}: nothing was ever promoted")
    return open_desk(model.key, work_dir=config.paths.work_dir, mlflow=config.mlflow, settings=config.promote)


def verify(workspace: Workspace, *, key: str) -> int:
    """Check every entry, and the head that the registry keeps; 0, or an error that names the first bad entry."""
    desk = desk_of(workspace, workspace.model(key))
    chain, _ = desk.look()
    head = f", the last {chain.digests[-1]}" if chain.entries else ""
    print(f"{desk.ledger.where}: {len(chain.entries)} entries, each as it was written{head}")
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
    desk = desk_of(workspace, workspace.model(key))
    chain, _ = desk.look()
    if entry:
        if entry > len(chain.entries):
            raise InputError(f"ledger {desk.ledger.where} has {len(chain.entries)} entries, not {entry}")
        print(json.dumps(chain.entries[entry - 1].to_json(), indent=2, ensure_ascii=False))
        return 0
    for item in chain.entries[-limit:]:
        print(_entry_line(item))
    if not chain.entries:
        print(f"{desk.ledger.where} has no entries yet")
    return 0


def ledger_at(workspace: Workspace, *, key: str, moment: dt.datetime) -> int:
    """Print who was champion at a moment (UTC where it names no zone), and since when; 0."""
    desk = desk_of(workspace, workspace.model(key))
    chain, _ = desk.look()
    at = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    standing = standing_at(chain.entries, at)
    stamp = at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%MZ")
    if standing.last_commit is None or standing.champion is None:
        print(f"{stamp}: {desk.key.registered_model} had no champion")
        return 0
    body, record = standing.last_commit.body, standing.last_commit.body["record"]
    print(f"{stamp}: version {standing.champion} of {desk.key.registered_model}")
    print(
        f"  since      {standing.last_commit.at} ({body['action']} by {body['by']}, entry {standing.last_commit.seq})"
    )
    print(f"  why        {body['reason']}")
    for label, value in _facts(standing, record):
        print(f"  {label:<10} {value}")
    return 0


def reconcile(workspace: Workspace, *, key: str) -> int:
    """Finish or undo what a crash left and put the aliases where the ledger says; print what was done; 0."""
    desk = desk_of(workspace, workspace.model(key))
    if desk.board.read() is None and not desk.ledger.read().entries:
        print(f"{desk.key.registered_model} is not registered and its ledger is empty: nothing to do")
        return 0
    with desk.held("reconcile") as held:
        repairs, lost = list(held.repairs), list(held.lost)
    for repair in repairs:
        print(repair)
    if not repairs:
        print(f"ledger and registry agree on {desk.key.registered_model}: nothing to do")
    if lost:
        raise InputError(
            f"version {lost[0]} of {desk.key.registered_model} was deleted from the registry; where it is the "
            f"champion, take back an earlier one with `stlm rollback --to VERSION`"
        )
    return 0


def last_lines(workspace: Workspace, model: ModelSettings, *, limit: int) -> list[str]:
    """Whether promotion is frozen, and the last entries of a key's ledger."""
    chain, posted = desk_of(workspace, model).look()
    standing = standing_of(chain.entries)
    frozen = standing.frozen_because() or posted.tags.get(FROZEN_TAG, "")
    lines = [f"promotion is frozen: {frozen}"] if frozen else []
    if standing.break_glass is not None:
        lines.append(f"BREAK-GLASS: {standing.overruled()}")
    if standing.challenger is not None:
        lines.append(f"challenger: version {standing.challenger}, scored on {len(standing.shadows)} nights so far")
    return lines + [_entry_line(entry) for entry in chain.entries[-limit:]]


def _entry_line(entry: Entry) -> str:
    """An entry in a line."""
    body = entry.body
    text = f"{entry.seq:>6}  {entry.at[:19]}Z  {entry.kind:<8}"
    if entry.kind in ("intent", "commit"):
        text += f"  {body['action']} {spoken(body['from'])} -> {spoken(body['champion'])}, by {body['by']}"
    elif entry.kind == "abort":
        text += f"  of entry {body['intent']}"
    elif entry.kind in ("challenge", "shadow", "drop"):
        text += f"  version {body['version']}, by {body['by']}"
    else:
        text += f"  by {body['by']}"
    return f"{text}: {body['reason']}"


def _facts(standing: Standing, record: dict[str, object]) -> list[tuple[str, object]]:
    data = record.get("data")
    found = [
        ("night", record.get("partition")),
        ("candidate", record.get("candidate_key")),
        ("data", data.get("revision") if isinstance(data, dict) else None),
        ("previous", standing.previous),
        ("anchor", standing.anchor),
        ("frozen", standing.frozen_because() or None),
        ("BREAK-GLASS", standing.overruled() or None),
    ]
    return [(label, value) for label, value in found if value is not None]
