"""Append-only ledger: one small object an entry, each holding the sha256 of the one before it.

``<root>/<registered model>/00000001.json``, ``00000002.json``, ... in canonical JSON. An entry is written by a
conditional put: of all writers that want to be number n exactly one is, and being it is the moment at which what the
entry says becomes true. What is there is never written again. An entry that was edited, removed, swapped or put in is
found by the chain of hashes; entries removed from the end, or an edited last one, by the head (its number and sha256),
which the owner of the ledger keeps in another place, see :meth:`Ledger.check_head`.
"""

import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from components.adapters.lease import StaleLeaseError
from components.adapters.storage.base import Storage, StorageUnavailableError
from components.core.contracts import Contract, canonical_json, from_json
from components.core.errors import InputError

__all__ = ["Entry", "EntryKind", "Ledger", "LedgerBrokenError", "LedgerEntries"]

EntryKind = Literal["intent", "commit", "abort", "freeze", "unfreeze", "challenge", "shadow", "drop"]
_GENESIS = "0" * 64
_ENTRY_NAME = re.compile(r"([0-9]{8})\.json")
_HEAD = re.compile(r"([1-9][0-9]*):([0-9a-f]{64})")
_READERS = 16


class LedgerBrokenError(InputError):
    """An entry is missing, altered or in the wrong place; the message names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry(Contract):
    """One entry."""

    seq: int
    """From 1, without gaps."""
    kind: EntryKind
    at: str
    """ISO 8601, UTC, by the writer's clock; never before the entry before it."""
    fence: int
    """The writer's fence; never lower than in the entry before it."""
    writer: str
    model: str
    previous_sha256: str
    """sha256 of the bytes of the entry before it; 64 zeros in the first."""
    body: dict[str, Any]

    @property
    def time(self) -> dt.datetime:
        """:attr:`at` as a time."""
        return dt.datetime.fromisoformat(self.at)


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntries:
    """A verified ledger: its entries and the sha256 of each."""

    entries: tuple[Entry, ...] = ()
    digests: tuple[str, ...] = ()

    @property
    def head(self) -> str:
        """``<number>:<sha256>`` of the last entry; empty where there is none."""
        return f"{self.entries[-1].seq}:{self.digests[-1]}" if self.entries else ""


class Ledger:
    """The ledger of one registered model.

    Args:
        storage: The store of all ledgers.
        model: Name of the registered model: the ledger's folder.
    """

    def __init__(self, storage: Storage, model: str) -> None:
        self._storage = storage
        self._model = model

    @property
    def where(self) -> str:
        """The ledger's address, for messages."""
        return f"{self._storage.uri}/{self._model}"

    def read(self, known: LedgerEntries | None = None) -> LedgerEntries:
        """Read and verify.

        Args:
            known: What was read before; only what came after it is fetched.

        Returns:
            All entries.

        Raises:
            LedgerBrokenError: The chain does not hold.
            TransientError: The store cannot be reached.
        """
        chain = known or LedgerEntries()
        numbers = self._numbers()
        expected = list(range(1, len(numbers) + 1))
        if numbers != expected:
            missing = next(number for number in expected if number not in numbers)
            raise LedgerBrokenError(f"ledger {self.where}: entry {missing} is missing, entry {numbers[-1]} is there")
        if len(numbers) < len(chain.entries):
            raise LedgerBrokenError(f"ledger {self.where}: entry {len(chain.entries)} was there and is missing now")
        new = numbers[len(chain.entries) :]
        with ThreadPoolExecutor(max_workers=_READERS) as readers:
            contents = list(readers.map(lambda number: self._storage.read(self._name(number)), new))
        return self._linked(chain, dict(zip(new, contents, strict=True)))

    def append(
        self,
        chain: LedgerEntries,
        *,
        kind: EntryKind,
        at: dt.datetime,
        fence: int,
        writer: str,
        body: Mapping[str, Any],
    ) -> LedgerEntries:
        """Write the entry after ``chain``.

        Args:
            chain: The whole ledger as the writer knows it; what it decided, it decided on this.
            kind: Kind of the entry.
            at: Time of the writer's clock.
            fence: The writer's fence.
            writer: Its unique name.
            body: What the entry says; JSON.

        Returns:
            The ledger with the new entry.

        Raises:
            StaleLeaseError: An entry has a higher fence, or somebody has written meanwhile. Nothing was written.
            TransientError: The store cannot be reached.
        """
        last = chain.entries[-1] if chain.entries else None
        if last is not None and last.fence > fence:
            raise StaleLeaseError(f"ledger {self.where} has an entry with fence {last.fence}, the writer's is {fence}")
        seq = len(chain.entries) + 1
        # A clock that was set back must not turn "who was champion at ..." into nonsense.
        moment = at.astimezone(dt.UTC) if last is None else max(at.astimezone(dt.UTC), last.time)
        entry = Entry(
            seq=seq,
            kind=kind,
            at=moment.isoformat(timespec="milliseconds"),
            fence=fence,
            writer=writer,
            model=self._model,
            previous_sha256=chain.digests[-1] if last is not None else _GENESIS,
            body=dict(body),
        )
        content = canonical_json(entry).encode()
        if not self._storage.put_if_absent(self._name(seq), content):
            raise StaleLeaseError(f"ledger {self.where}: entry {seq} was written by somebody else meanwhile")
        return self._linked(chain, {seq: content})

    def check_head(self, chain: LedgerEntries, head: str) -> None:
        """Compare the chain with a head that was noted down elsewhere; the chain may have grown since.

        Args:
            chain: The ledger.
            head: A former :attr:`LedgerEntries.head`; empty where none was ever noted.

        Raises:
            LedgerBrokenError: The entry that the head names is missing or another one.
        """
        if not head:
            return
        match = _HEAD.fullmatch(head)
        if match is None:
            raise LedgerBrokenError(f"ledger {self.where}: the head noted in the registry is no head: {head!r}")
        seq, digest, length = int(match[1]), match[2], len(chain.entries)
        if seq > length:
            raise LedgerBrokenError(
                f"ledger {self.where} ends with entry {length}, but the registry knows of entry {seq}: the end was "
                f"removed, or the ledger's store is not mounted"
            )
        if chain.digests[seq - 1] != digest:
            raise LedgerBrokenError(
                f"ledger {self.where}: entry {seq} is altered (sha256 {chain.digests[seq - 1]}, the registry knows "
                f"{digest})"
            )

    def _name(self, seq: int) -> str:
        return f"{self._model}/{seq:08d}.json"

    def _numbers(self) -> Sequence[int]:
        try:
            names = [file.name for file in self._storage.files(self._model)]
        except StorageUnavailableError:
            return []  # never made, and so without entries; the head tells if it was
        found = (_ENTRY_NAME.fullmatch(name.removeprefix(f"{self._model}/")) for name in names)
        return sorted(int(match[1]) for match in found if match)

    def _linked(self, chain: LedgerEntries, contents: Mapping[int, bytes]) -> LedgerEntries:
        """``chain`` and the entries in ``contents``, each checked against the one before it."""
        entries, digests = list(chain.entries), list(chain.digests)
        for number, content in sorted(contents.items()):
            entry = self._parsed(number, content)
            before, digest = (entries[-1], digests[-1]) if entries else (None, _GENESIS)
            problem = ""
            if entry.previous_sha256 != digest:
                problem = f"it follows an entry with sha256 {entry.previous_sha256}, entry {number - 1} has {digest}"
            elif before is not None and entry.fence < before.fence:
                problem = f"its fence {entry.fence} is lower than {before.fence} in the entry before"
            elif before is not None and entry.time < before.time:
                problem = f"its time {entry.at} is before {before.at} in the entry before"
            if problem:
                raise LedgerBrokenError(f"ledger {self.where}: entry {number} or {number - 1} is altered: {problem}")
            entries.append(entry)
            digests.append(hashlib.sha256(content).hexdigest())
        return LedgerEntries(entries=tuple(entries), digests=tuple(digests))

    def _parsed(self, number: int, content: bytes) -> Entry:
        try:
            entry = from_json(Entry, json.loads(content), where="entry")
            if canonical_json(entry).encode() != content:
                raise ValueError("it is not in canonical form")
            if entry.time.tzinfo is None:
                raise ValueError(f"its time {entry.at!r} has no zone")
        except ValueError as error:
            raise LedgerBrokenError(f"ledger {self.where}: entry {number} cannot be read: {error}") from error
        if (entry.seq, entry.model) != (number, self._model):
            raise LedgerBrokenError(
                f"ledger {self.where}: entry {number} says that it is entry {entry.seq} of {entry.model}"
            )
        return entry
