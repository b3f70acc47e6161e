"""Alias transaction: one writer at a time moves a key's aliases, and every move is announced and committed.

A move is an ``intent`` in the ledger, then the aliases, then a ``commit``; the commit is the moment at which it became
true. MLflow cannot refuse a late writer, so nobody relies on the alias alone:

- the lease and its fence are looked at before every change; the ledger refuses an entry of a lower fence, and of two
  writers of one entry all but one;
- whoever finds that its lease was lost after it set an alias puts the aliases back to what the ledger says;
- whoever committed looks at the aliases once more, so that of two such writers the last one leaves them right;
- whoever takes the lease first finishes or undoes what a crash left (:meth:`AliasTransaction.reconcile`).
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.adapters.lease import Clock, Lease, StaleLeaseError, StoredLease, holder_name, utc_now
from components.adapters.ledger import Entry, EntryKind, Ledger, LedgerEntries
from components.adapters.mlflow.aliases import FROZEN_TAG, HEAD_TAG, RegisteredModelAliases, RegistrySnapshot
from components.adapters.mlflow.registry import ModelRegistry
from components.adapters.storage import open_storage
from components.config import MlflowSettings, PromoteSettings, ledger_of
from components.core.contracts import CHAMPION_ALIAS, ModelKey
from components.core.errors import TransientError
from components.promotion.champion_state import ChampionState, alias_plan, replay_ledger
from components.promotion.reconciliation import import_existing_champion, reconcile_aliases
from components.promotion.signing import Signing

__all__ = ["AliasManager", "AliasTransaction", "open_alias_manager"]

logger = logging.getLogger(__name__)

_LEASE_S = 30.0
"""A move takes a second or two; a dead holder is given up after this time, so that a roll-back never waits long."""
_WAIT_S = 300.0


class AliasManager:
    """Aliases, ledger and lease of one key, and the way to change them.

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
        lease: StoredLease,
        signing: Signing,
        clock: Clock,
    ) -> None:
        self.key = key
        self.registry = registry
        self.ledger = ledger
        self.lease = lease
        self.signing = signing
        self.clock = clock
        self._seen: LedgerEntries | None = None

    @property
    def aliases(self) -> RegisteredModelAliases:
        """Aliases and tags in the registry."""
        return self.registry.aliases(self.key)

    def snapshot(self) -> tuple[LedgerEntries, RegistrySnapshot]:
        """Ledger and registry as they are, verified against each other; nothing is changed.

        Entries that were read before are not fetched again.

        Returns:
            The ledger, and what the registered model carries (nothing where it is not registered).

        Raises:
            LedgerBrokenError: The ledger was tampered with.
            TransientError: Ledger or registry cannot be reached.
        """
        # The head first: entries that are written in between only make the ledger longer than the head says.
        posted = self.aliases.read() or RegistrySnapshot(aliases={}, tags={})
        chain = self.ledger.read(self._seen)
        self.ledger.check_head(chain, posted.tags.get(HEAD_TAG, ""))
        self._seen = chain
        return chain, posted

    @contextlib.contextmanager
    def transaction(self, what: str, *, wait_s: float = _WAIT_S) -> Iterator["AliasTransaction"]:
        """Be the only writer, with ledger and registry in agreement.

        Args:
            what: Who wants it and for what, for those who wait.
            wait_s: How long to wait for another writer, in seconds.

        Yields:
            The transaction.

        Raises:
            LedgerBrokenError: The ledger was tampered with; nothing is changed.
            LeaseHeldError: Another held the lease all the while.
            TransientError: Ledger or registry cannot be reached.
        """
        chain, _ = self.snapshot()  # before the lease: a broken ledger is left as it is
        above = max((entry.fence for entry in chain.entries), default=0)
        holder = holder_name(what)
        lease = self.lease.take(holder, seconds=_LEASE_S, above_fence=above, wait_s=wait_s)
        try:
            manager = AliasTransaction(self, holder, lease)
            manager.reconcile()
            yield manager
        finally:
            # A lease that cannot be given back runs out by itself; what went wrong before is the news.
            with contextlib.suppress(TransientError):
                self.lease.release(lease)


class AliasTransaction:
    """Changes of a key while its lease is held; made by :meth:`AliasManager.transaction`."""

    def __init__(self, manager: AliasManager, holder: str, lease: Lease) -> None:
        """Read ledger and registry afresh, now that nobody else may write."""
        self._manager = manager
        self._holder = holder
        self._lease = lease
        self._aliases = manager.aliases
        self._chain, self.posted = manager.snapshot()
        self.repairs: list[str] = []
        """What :meth:`reconcile` had to do, in sentences."""
        self.missing_versions: list[int] = []
        """Versions that the ledger gives an alias and the registry has no longer."""

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self._aliases.name

    @property
    def state(self) -> ChampionState:
        """What the ledger says now."""
        return replay_ledger(self._chain.entries)

    def reconcile(self) -> None:
        """Finish or undo what a crash left, and put aliases and tags where the ledger says.

        Raises:
            StaleLeaseError: The lease was lost.
            TransientError: Ledger or registry cannot be reached.
        """
        serving = self.posted.aliases.get(CHAMPION_ALIAS)
        intent = self.state.open_intent
        if intent is not None and serving == intent.body["champion"]:
            self._append("commit", intent.body | {"intent": intent.seq})
            self.repairs.append(f"entry {intent.seq}: finished, version {serving} had the alias already")
        elif intent is not None:
            why = "its writer ended before it moved the alias"
            self._append("abort", {"intent": intent.seq, "reason": why})
            self.repairs.append(f"entry {intent.seq}: undone, {why}")
        if serving is not None and not self.state.bootstrapped:
            self._append("commit", import_existing_champion(self._aliases, self.posted, serving))
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
        where = self.state.after(champion, action=action, anchor=anchor)
        intent = self._append("intent", {**where, "by": by, "reason": reason, "record": dict(record)})
        try:
            self._point(intent)
            commit = self._append("commit", intent.body | {"intent": intent.seq})
        except StaleLeaseError:
            logger.warning("lost the lease while moving %s to version %d", self._aliases.name, champion)
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
        self._aliases.create()
        entry = self._append(kind, {**(facts or {}), "by": by, "reason": reason})
        self._settle()
        return entry

    def lift_tag(self) -> None:
        """Take away a freeze that was set by hand in MLflow."""
        if FROZEN_TAG in self.posted.tags:
            self._still_mine()
            self._aliases.tag(FROZEN_TAG, None)

    def version_tags(self, version: int) -> dict[str, str] | None:
        """Tags of a version in the registry; ``None`` where there is no such version."""
        return self._aliases.version_tags(version)

    def delete_version(self, version: int) -> None:
        """Delete a version from the registry; that it may go is the caller's to know."""
        self._still_mine()
        self._aliases.delete_version(version)

    def _still_mine(self) -> None:
        self._lease = self._manager.lease.renew(self._lease, seconds=_LEASE_S)

    def _append(self, kind: EntryKind, body: Mapping[str, Any]) -> Entry:
        self._still_mine()
        self._chain = self._manager.ledger.append(
            self._chain,
            kind=kind,
            at=self._manager.clock(),
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
                self._aliases.set_alias(name, version)
        now = self._aliases.read()
        stands = None if now is None else now.aliases.get(CHAMPION_ALIAS)
        if stands != body["champion"]:
            raise TransientError(
                f"{self._aliases.name}: {CHAMPION_ALIAS!r} was set to version {body['champion']} but stands at {stands}"
            )

    def _settle(self) -> list[str]:
        settled = reconcile_aliases(
            self._aliases, self._manager.ledger, self._chain, missing_versions=self.missing_versions
        )
        self._chain, self.posted = settled.chain, settled.posted
        return settled.repairs


def open_alias_manager(
    key: ModelKey, *, work_dir: str, mlflow: MlflowSettings, settings: PromoteSettings, clock: Clock = utc_now
) -> AliasManager:
    """The alias manager of a key.

    Args:
        key: Whose aliases.
        work_dir: Packages are cached below it; the ledger is there where the settings name no other place.
        mlflow: Where the registry is.
        settings: Where the ledger is.
        clock: The clock of everything that is written.

    Returns:
        The manager; nothing is read or made yet.

    Raises:
        InputError: The ledger's address is of no known kind.
        TransientError: MLflow cannot be reached.
    """
    storage = open_storage(ledger_of(work_dir, settings), endpoint_url=settings.ledger_endpoint_url)
    return AliasManager(
        key,
        registry=ModelRegistry(mlflow.tracking_uri, Path(work_dir) / "models"),
        ledger=Ledger(storage, key.registered_model),
        lease=StoredLease(storage, f"{key.registered_model}/lease.json", clock=clock),
        signing=Signing(work_dir=work_dir, settings=settings),
        clock=clock,
    )
