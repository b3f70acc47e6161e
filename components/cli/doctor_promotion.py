"""Checks of ``stlm doctor`` on promotion: do ledger, aliases, lease and golden set tell one story?"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from components.adapters.ledger import LedgerBrokenError
from components.adapters.mlflow.aliases import CHALLENGER_ALIAS
from components.cli.ledger import alias_manager_of
from components.cli.problem import CheckError
from components.config import ModelSettings
from components.core.errors import InputError
from components.local_stack.workspace import Workspace
from components.promotion.alias_transaction import AliasManager
from components.promotion.champion_state import replay_ledger, version_label
from components.promotion.registration import verify_attestation
from stlm.data.layout import read_golden_set
from stlm.errors import DataError

__all__ = ["promotion_checks"]

_RECONCILE = "run `stlm ledger reconcile`, or leave it to the next promotion"


def promotion_checks(workspace: Workspace, model: ModelSettings) -> Iterator[tuple[str, Callable[[], str]]]:
    """Checks of one key, by name; each returns what is fine or raises :class:`CheckError`."""
    slug = model.key.slug
    yield f"ledger of {slug}", lambda: _ledger(alias_manager_of(workspace, model))
    yield f"aliases of {slug}", lambda: _aliases(alias_manager_of(workspace, model))
    yield f"way in of {slug}", lambda: _way_in(alias_manager_of(workspace, model))
    yield f"signature of {slug}", lambda: _signature(alias_manager_of(workspace, model))
    yield f"lease of {slug}", lambda: _lease(alias_manager_of(workspace, model))
    yield f"yardstick of {slug}", partial(_yardstick, workspace, model)


def _ledger(manager: AliasManager) -> str:
    try:
        chain, _ = manager.snapshot()
    except LedgerBrokenError as error:
        raise CheckError(
            what=str(error), remedy="bring its store back from a backup; until then no alias is moved"
        ) from error
    intent = replay_ledger(chain.entries).open_intent
    if intent is not None and not _at_work(manager):
        raise CheckError(what=f"entry {intent.seq} was neither committed nor undone", remedy=_RECONCILE)
    return f"{len(chain.entries)} entries, each as it was written"


def _aliases(manager: AliasManager) -> str:
    chain, posted = manager.snapshot()
    state = replay_ledger(chain.entries)
    if not state.bootstrapped:
        return "the ledger names no champion yet"
    plan = state.aliases()
    wrong = {name: version for name, version in plan.items() if posted.aliases.get(name) != version}
    if wrong and not _at_work(manager):
        gone = [version for version in wrong.values() if version and manager.aliases.version_tags(version) is None]
        raise CheckError(
            what="; ".join(
                f"alias {name!r} stands at {version_label(posted.aliases.get(name))}, "
                f"by the ledger it is {version_label(version)}"
                for name, version in wrong.items()
            ),
            remedy=f"version {gone[0]} was deleted: take back another with `stlm rollback --to VERSION`"
            if state.champion in gone
            else _RECONCILE,
        )
    return ", ".join(f"{n} {version_label(version)}" for n, version in plan.items() if version or n != CHALLENGER_ALIAS)


def _way_in(manager: AliasManager) -> str:
    state = replay_ledger(manager.snapshot()[0].entries)
    if state.break_glass is not None:
        raise CheckError(
            what=f"BREAK-GLASS: {state.override_summary()}",
            remedy="let a night's candidate that passes the gate replace it, or take it back with `stlm rollback`",
        )
    if state.champion is None:
        return "nobody was let in yet"
    entry = state.commits.get(state.champion)
    return f"{version_label(state.champion)} by {'a roll-back' if entry is None else entry.body['by']}"


def _signature(manager: AliasManager) -> str:
    state = replay_ledger(manager.snapshot()[0].entries)
    if state.champion is None:
        return "nobody to vouch for yet"
    try:
        attested = verify_attestation(manager, manager.registry.version(manager.key, state.champion), needed=False)
    except InputError as error:
        raise CheckError(
            what=str(error),
            remedy="see promote.signing_key and promote.trusted_keys; or take back with `stlm rollback`",
        ) from error
    if attested is None:
        return f"{version_label(state.champion)} is from before packages were signed"
    return f"{version_label(state.champion)} is signed by key {attested.signer[:16]}"


def _lease(manager: AliasManager) -> str:
    lease = manager.lease.read()
    if lease is None or not lease.holder:
        return "free"
    if lease.expiry <= manager.clock():
        raise CheckError(
            what=f"{lease.holder} let it run out at {lease.expires_at}: it died, or still believes that it may write",
            remedy=f"it keeps nobody waiting; to repair what was left, {_RECONCILE}",
        )
    return f"held by {lease.holder} until {lease.expires_at}"


def _yardstick(workspace: Workspace, model: ModelSettings) -> str:
    chain, _ = alias_manager_of(workspace, model).snapshot()
    commits = [e for e in chain.entries if e.kind == "commit" and e.body["action"] != "rollback"]
    known = commits[-1].body["record"].get("golden_digest") if commits else None
    if known is None:
        return "nothing was promoted by it yet"
    try:
        digest = read_golden_set(Path(model.golden)).digest
    except DataError as error:
        raise CheckError(what=str(error), remedy="bring the golden set back") from error
    if digest != known:
        raise CheckError(
            what=f"the golden set has digest {digest}, version {commits[-1].body['champion']} was let in by {known}",
            remedy="bring the former one back, unless the change is meant: figures before and after do not compare",
        )
    return f"the golden set by which version {commits[-1].body['champion']} was let in"


def _at_work(manager: AliasManager) -> bool:
    """Whether somebody is moving the aliases just now."""
    lease = manager.lease.read()
    return lease is not None and bool(lease.holder) and lease.expiry > manager.clock()
