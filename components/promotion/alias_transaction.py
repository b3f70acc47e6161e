"""The desk at which one key's aliases are moved: one clerk at a time, every move announced and noted.

A move is an ``intent`` in the ledger, then the aliases, then a ``commit``; the commit is the moment at which it became
true. MLflow cannot refuse a late writer, so nobody relies on the alias alone:

- the lease and its fence are looked at before every change; the ledger refuses an entry of a lower fence, and of two
  writers of one entry all but one;
- whoever finds that its lease was lost after it set an alias puts the aliases back to what the ledger says;
- whoever committed looks at the aliases once more, so that of two such writers the last one leaves them right;
- whoever takes the lease first finishes or undoes what a crash left (:meth:`HeldDesk.reconcile`).
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.adapters.lease import Clock, Lease, LeaseObject, StaleLeaseError, holder_name, utc_now
from components.adapters.ledger import Chain, Entry, EntryKind, Ledger
from components.adapters.mlflow.aliases import FROZEN_TAG, HEAD_TAG, AliasBoard, Posted
from components.adapters.mlflow.registry import ModelRegistry
from components.adapters.storage import open_storage
from components.config import MlflowSettings, PromoteSettings, ledger_of
from components.core.contracts import CHAMPION_ALIAS, ModelKey
from components.core.errors import TransientError
from components.promotion.champion_state import Standing, alias_plan, standing_of
from components.promotion.reconciliation import adopted, settle
from components.promotion.signing import Signing

__all__ = ["Desk", "HeldDesk", "open_desk"]

logger = logging.getLogger(__name__)

_LEASE_S = 30.0
"""A move takes a second or two; a dead holder is given up after this time, so that a roll-back never waits long."""
_WAIT_S = 300.0


class Desk:
    """What is known of one key, and the way to change it.

    Args:
        key: Whose aliases.
        registry: MLflow's registry.
        ledger: The key's ledger.
        lease: The key's lease.
        signing: Keys that vouch for packages.
        clock: The clock of everything that is written.
    """

    def __init__(
        self,
        key: ModelKey,
        *,
        registry: ModelRegistry,
        ledger: Ledger,
        lease: LeaseObject,
        signing: Signing,
        clock: Clock,
    ) -> None:
        self.key = key
        self.registry = registry
        self.ledger = ledger
        self.lease = lease
        self.signing = signing
        self.clock = clock
        self._seen: Chain | None = None

    @property
    def board(self) -> AliasBoard:
        """Aliases and tags in the registry."""
        return self.registry.aliases(self.key)

    def look(self) -> tuple[Chain, Posted]:
        """Ledger and registry as they are, verified against each other; nothing is changed.

        Entries that this desk has read before are not fetched again.

        Returns:
            The ledger, and what the registered model carries (nothing where it is not registered).

        Raises:
            LedgerBrokenError: The ledger was tampered with.
            TransientError: Ledger or registry cannot be reached.
        """
        # The head first: entries that are written in between only make the ledger longer than the head says.
        posted = self.board.read() or Posted(aliases={}, tags={})
        chain = self.ledger.read(self._seen)
        self.ledger.check_head(chain, posted.tags.get(HEAD_TAG, ""))
        self._seen = chain
        return chain, posted

    @contextlib.contextmanager
    def held(self, what: str, *, wait_s: float = _WAIT_S) -> Iterator["HeldDesk"]:
        """Be the only clerk, with ledger and registry in agreement.

        Args:
            what: Who wants it and for what, for those who wait.
            wait_s: How long to wait for another clerk, in seconds.

        Yields:
            The desk.

        Raises:
            LedgerBrokenError: The ledger was tampered with; nothing is changed.
            LeaseHeldError: Another held the lease all the while.
            TransientError: Ledger or registry cannot be reached.
        """
        chain, _ = self.look()  # before the lease: a broken ledger is left as it is
        above = max((entry.fence for entry in chain.entries), default=0)
        holder = holder_name(what)
        lease = self.lease.take(holder, seconds=_LEASE_S, above_fence=above, wait_s=wait_s)
        try:
            desk = HeldDesk(self, holder, lease)
            desk.reconcile()
            yield desk
        finally:
            # A lease that cannot be given back runs out by itself; what went wrong before is the news.
            with contextlib.suppress(TransientError):
                self.lease.release(lease)


class HeldDesk:
    """The desk while its lease is held; made by :meth:`Desk.held`."""

    def __init__(self, desk: Desk, holder: str, lease: Lease) -> None:
        """Read ledger and registry afresh, now that nobody else may write."""
        self._desk = desk
        self._holder = holder
        self._lease = lease
        self._board = desk.board
        self._chain, self.posted = desk.look()
        self.repairs: list[str] = []
        """What :meth:`reconcile` had to do, in sentences."""
        self.lost: list[int] = []
        """Versions that the ledger gives an alias and the registry has no longer."""

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self._board.name

    @property
    def standing(self) -> Standing:
        """What the ledger says now."""
        return standing_of(self._chain.entries)

    def reconcile(self) -> None:
        """Finish or undo what a crash left, and put aliases and tags where the ledger says.

        Raises:
            StaleLeaseError: The lease was lost.
            TransientError: Ledger or registry cannot be reached.
        """
        serving = self.posted.aliases.get(CHAMPION_ALIAS)
        intent = self.standing.open_intent
        if intent is not None and serving == intent.body["champion"]:
            self._append("commit", intent.body | {"intent": intent.seq})
            self.repairs.append(f"entry {intent.seq}: finished, version {serving} had the alias already")
        elif intent is not None:
            why = "its writer ended before it moved the alias"
            self._append("abort", {"intent": intent.seq, "reason": why})
            self.repairs.append(f"entry {intent.seq}: undone, {why}")
        if serving is not None and not self.standing.bootstrapped:
            self._append("commit", adopted(self._board, self.posted, serving))
            self.repairs.append(f"version {serving} was champion before there was a ledger: written down")
        self.repairs += self._settle()

    def move(
        self, champion: int, *, action: str, anchor: int | None, by: str, reason: str, record: Mapping[str, Any]
    ) -> Entry:
        """Make a version the champion.

        Args:
            champion: The version.
            action: ``promote``, ``break-glass`` or ``rollback``; the last freezes promotion.
            anchor: The anchor afterwards.
            by: Who wants it.
            reason: Why.
            record: What shall be known of it for good.

        Returns:
            The commit.

        Raises:
            StaleLeaseError: The lease was lost: nothing was moved, or it was put back.
            TransientError: Ledger or registry cannot be reached, or the alias was moved by somebody without a lease;
                the next to take the lease finishes or undoes it.
        """
        where = self.standing.after(champion, action=action, anchor=anchor)
        intent = self._append("intent", {**where, "by": by, "reason": reason, "record": dict(record)})
        try:
            self._point(intent)
            commit = self._append("commit", intent.body | {"intent": intent.seq})
        except StaleLeaseError:
            logger.warning("lost the lease while moving %s to version %d", self._board.name, champion)
            self._settle()
            raise
        self._settle()
        return commit

    def note(self, kind: EntryKind, *, by: str, reason: str, facts: Mapping[str, Any] | None = None) -> Entry:
        """Write an entry that moves no champion, such as ``freeze`` or ``challenge``.

        Args:
            kind: The entry's kind.
            by: Who.
            reason: Why.
            facts: What else it says.

        Returns:
            The entry.

        Raises:
            StaleLeaseError: The lease was lost; nothing was written.
            TransientError: Ledger or registry cannot be reached.
        """
        self._board.create()
        entry = self._append(kind, {**(facts or {}), "by": by, "reason": reason})
        self._settle()
        return entry

    def lift_tag(self) -> None:
        """Take away a freeze that was set by hand in MLflow."""
        if FROZEN_TAG in self.posted.tags:
            self._still_mine()
            self._board.tag(FROZEN_TAG, None)

    def version_tags(self, version: int) -> dict[str, str] | None:
        """Tags of a version in the registry; ``None`` where there is no such version."""
        return self._board.version_tags(version)

    def delete_version(self, version: int) -> None:
        """Delete a version from the registry; that it may go is the caller's to know."""
        self._still_mine()
        self._board.delete_version(version)

    def _still_mine(self) -> None:
        self._lease = self._desk.lease.renew(self._lease, seconds=_LEASE_S)

    def _append(self, kind: EntryKind, body: Mapping[str, Any]) -> Entry:
        self._still_mine()
        self._chain = self._desk.ledger.append(
            self._chain,
            kind=kind,
            at=self._desk.clock(),
            fence=self._lease.fence,
            writer=self._holder,
            body=body,
        )
        return self._chain.entries[-1]

    def _point(self, intent: Entry) -> None:
        """Move the aliases as the intent says, and see that they moved."""
        body = intent.body
        for name, version in alias_plan(body).items():
            if self.posted.aliases.get(name) != version:
                self._still_mine()
                self._board.point(name, version)
        now = self._board.read()
        stands = None if now is None else now.aliases.get(CHAMPION_ALIAS)
        if stands != body["champion"]:
            raise TransientError(
                f"{self._board.name}: {CHAMPION_ALIAS!r} was set to version {body['champion']} but stands at {stands}"
            )

    def _settle(self) -> list[str]:
        settled = settle(self._board, self._desk.ledger, self._chain, lost=self.lost)
        self._chain, self.posted = settled.chain, settled.posted
        return settled.repairs


def open_desk(
    key: ModelKey, *, work_dir: str, mlflow: MlflowSettings, settings: PromoteSettings, clock: Clock = utc_now
) -> Desk:
    """The desk of a key.

    Args:
        key: Whose aliases.
        work_dir: Packages are cached below it; the ledger is there where the settings name no other place.
        mlflow: Where the registry is.
        settings: Where the ledger is.
        clock: The clock of everything that is written.

    Returns:
        The desk; nothing is read or made yet.

    Raises:
        InputError: The ledger's address is of no known kind.
        TransientError: MLflow cannot be reached.
    """
    storage = open_storage(ledger_of(work_dir, settings), endpoint_url=settings.ledger_endpoint_url)
    return Desk(
        key,
        registry=ModelRegistry(mlflow.tracking_uri, Path(work_dir) / "models"),
        ledger=Ledger(storage, key.registered_model),
        lease=LeaseObject(storage, f"{key.registered_model}/lease.json", clock=clock),
        signing=Signing(work_dir=work_dir, settings=settings),
        clock=clock,
    )
