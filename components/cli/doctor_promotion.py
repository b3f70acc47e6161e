"""The doctor's questions about promotion: do ledger, aliases, lease and golden set tell one story?"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from components.adapters.ledger import LedgerBrokenError
from components.adapters.mlflow.aliases import CHALLENGER_ALIAS
from components.cli.ledger import desk_of
from components.cli.problem import ProblemError
from components.config import ModelSettings
from components.core.errors import InputError
from components.local_stack.workspace import Workspace
from components.promotion.alias_transaction import Desk
from components.promotion.champion_state import spoken, standing_of
from components.promotion.registration import check_attested
from stlm.data.layout import read_golden_set
from stlm.errors import DataError

__all__ = ["promotion_checks"]

_RECONCILE = "run `stlm ledger reconcile`, or leave it to the next promotion"


def promotion_checks(workspace: Workspace, model: ModelSettings) -> Iterator[tuple[str, Callable[[], str]]]:
    """Checks of one key, by name; each returns what is fine or raises :class:`ProblemError`."""
    slug = model.key.slug
    yield f"ledger of {slug}", lambda: _ledger(desk_of(workspace, model))
    yield f"aliases of {slug}", lambda: _aliases(desk_of(workspace, model))
    yield f"way in of {slug}", lambda: _way_in(desk_of(workspace, model))
    yield f"signature of {slug}", lambda: _signature(desk_of(workspace, model))
    yield f"lease of {slug}", lambda: _lease(desk_of(workspace, model))
    yield f"yardstick of {slug}", partial(_yardstick, workspace, model)


def _ledger(desk: Desk) -> str:
    try:
        chain, _ = desk.look()
    except LedgerBrokenError as error:
        raise ProblemError(
            what=str(error), remedy="bring its store back from a backup; until then no alias is moved"
        ) from error
    intent = standing_of(chain.entries).open_intent
    if intent is not None and not _at_work(desk):
        raise ProblemError(what=f"entry {intent.seq} was neither committed nor undone", remedy=_RECONCILE)
    return f"{len(chain.entries)} entries, each as it was written"


def _aliases(desk: Desk) -> str:
    chain, posted = desk.look()
    standing = standing_of(chain.entries)
    if not standing.bootstrapped:
        return "the ledger names no champion yet"
    plan = standing.aliases()
    wrong = {name: version for name, version in plan.items() if posted.aliases.get(name) != version}
    if wrong and not _at_work(desk):
        gone = [version for version in wrong.values() if version and desk.board.version_tags(version) is None]
        raise ProblemError(
            what="; ".join(
                f"alias {name!r} stands at {spoken(posted.aliases.get(name))}, by the ledger it is {spoken(version)}"
                for name, version in wrong.items()
            ),
            remedy=f"version {gone[0]} was deleted: take back another with `stlm rollback --to VERSION`"
            if standing.champion in gone
            else _RECONCILE,
        )
    return ", ".join(f"{n} {spoken(version)}" for n, version in plan.items() if version or n != CHALLENGER_ALIAS)


def _way_in(desk: Desk) -> str:
    standing = standing_of(desk.look()[0].entries)
    if standing.break_glass is not None:
        raise ProblemError(
            what=f"BREAK-GLASS: {standing.overruled()}",
            remedy="let a night's candidate that passes the gate replace it, or take it back with `stlm rollback`",
        )
    if standing.champion is None:
        return "nobody was let in yet"
    entry = standing.commits.get(standing.champion)
    return f"{spoken(standing.champion)} by {'a roll-back' if entry is None else entry.body['by']}"


def _signature(desk: Desk) -> str:
    standing = standing_of(desk.look()[0].entries)
    if standing.champion is None:
        return "nobody to vouch for yet"
    try:
        attested = check_attested(desk, desk.registry.version(desk.key, standing.champion), needed=False)
    except InputError as error:
        raise ProblemError(
            what=str(error),
            remedy="see promote.signing_key and promote.trusted_keys; or take back with `stlm rollback`",
        ) from error
    if attested is None:
        return f"{spoken(standing.champion)} is from before packages were signed"
    return f"{spoken(standing.champion)} is signed by key {attested.signer[:16]}"


def _lease(desk: Desk) -> str:
    lease = desk.lease.read()
    if lease is None or not lease.holder:
        return "free"
    if lease.expiry <= desk.clock():
        raise ProblemError(
            what=f"{lease.holder} let it run out at {lease.expires_at}: it died, or still believes that it may write",
            remedy=f"it keeps nobody waiting; to repair what was left, {_RECONCILE}",
        )
    return f"held by {lease.holder} until {lease.expires_at}"


def _yardstick(workspace: Workspace, model: ModelSettings) -> str:
    chain, _ = desk_of(workspace, model).look()
    commits = [e for e in chain.entries if e.kind == "commit" and e.body["action"] != "rollback"]
    known = commits[-1].body["record"].get("golden_digest") if commits else None
    if known is None:
        return "nothing was promoted by it yet"
    try:
        digest = read_golden_set(Path(model.golden)).digest
    except DataError as error:
        raise ProblemError(what=str(error), remedy="bring the golden set back") from error
    if digest != known:
        raise ProblemError(
            what=f"the golden set has digest {digest}, version {commits[-1].body['champion']} was let in by {known}",
            remedy="bring the former one back, unless the change is meant: figures before and after do not compare",
        )
    return f"the golden set by which version {commits[-1].body['champion']} was let in"


def _at_work(desk: Desk) -> bool:
    """Whether somebody is moving the aliases just now."""
    lease = desk.lease.read()
    return lease is not None and bool(lease.holder) and lease.expiry > desk.clock()
