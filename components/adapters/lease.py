"""Lease with a fencing token: one writer at a time, and one who overslept can be told from the one who may write.

A lease is one small JSON object in a store, taken and renewed by conditional puts. Every taking raises its fence by
one, also when a dead holder's lease is taken over after it ran out. A paused process cannot know that its lease is
gone, so whatever it guards keeps the highest fence it has seen and refuses a lower one: that, not the clock, is what
makes the lease safe. Clocks only decide how soon a dead holder is given up.
"""

import datetime as dt
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from components.adapters.storage.base import Storage
from components.core.contracts import Contract, canonical_json, from_json
from components.core.errors import InputError, TransientError

__all__ = [
    "Clock",
    "Lease",
    "LeaseHeldError",
    "StaleLeaseError",
    "StoredLease",
    "holder_label",
    "holder_name",
    "utc_now",
]

logger = logging.getLogger(__name__)

Clock = Callable[[], dt.datetime]
"""Gives the time, with its zone."""
_POLL_S = (0.05, 1.0)


class LeaseHeldError(TransientError):
    """Somebody else holds the lease."""


class StaleLeaseError(TransientError):
    """The lease ran out or was taken over: its holder may write no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease(Contract):
    """What the object holds."""

    holder: str
    """Who; empty after a release."""
    fence: int
    """Raised by one at each taking, never lowered."""
    expires_at: str
    """ISO 8601, UTC."""

    @property
    def expiry(self) -> dt.datetime:
        """:attr:`expires_at` as a time."""
        return dt.datetime.fromisoformat(self.expires_at)


def utc_now() -> dt.datetime:
    """The clock of production."""
    return dt.datetime.now(dt.UTC)


def holder_name(what: str) -> str:
    """``what@host:process:nonce``: for people, and unique, so that a writer knows its own object again."""
    return f"{what}@{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def holder_label(holder: str) -> str:
    """What a holder's name says to people: without host, process and nonce."""
    return holder.rpartition("@")[0] or holder


class StoredLease:
    """One lease in a store.

    Args:
        storage: The store.
        name: The object's name in it.
        clock: The holder's clock.
    """

    def __init__(self, storage: Storage, name: str, *, clock: Clock) -> None:
        self._storage = storage
        self._name = name
        self._clock = clock

    @property
    def where(self) -> str:
        """The object's address, for messages."""
        return f"{self._storage.uri}/{self._name}"

    def read(self) -> Lease | None:
        """The lease as it stands, whoever holds it and whether or not it ran out; ``None`` before the first taking.

        Returns:
            The lease.

        Raises:
            InputError: The object is no lease.
            TransientError: The store cannot be reached.
        """
        found = self._read_with_etag()
        return None if found is None else found[0]

    def take(
        self, holder: str, *, seconds: float, above_fence: int = 0, wait_s: float = 0.0, reentrant: bool = False
    ) -> Lease:
        """Become the holder; wait for the present one if need be.

        Args:
            holder: A name of :func:`holder_name`.
            seconds: How long the lease holds unless renewed.
            above_fence: Fences up to this one were seen by what the lease guards; the new one is higher.
            wait_s: How long to wait for a holder, in seconds.
            reentrant: Whether to take it over at once from a holder of the same name but for process and nonce: an
                earlier step of the same work, or an attempt that is given up, whose fence is too low from now on.

        Returns:
            The lease.

        Raises:
            LeaseHeldError: Somebody held it all the while; the message says who, and until when.
            InputError: The object is no lease.
            TransientError: The store cannot be reached.
        """
        deadline, pause_s = time.monotonic() + wait_s, _POLL_S[0]
        while True:
            now, found = self._clock(), self._read_with_etag()
            mine_already = reentrant and found is not None and holder_label(found[0].holder) == holder_label(holder)
            if found is None or not found[0].holder or found[0].expiry <= now or mine_already:
                fence = max(above_fence, 0 if found is None else found[0].fence) + 1
                mine = Lease(holder=holder, fence=fence, expires_at=_iso(now + dt.timedelta(seconds=seconds)))
                if self._write(mine, None if found is None else found[1]):
                    if found is not None and found[0].holder and not mine_already:
                        logger.warning("lease %s taken over from %s, which let it run out", self.where, found[0].holder)
                    return mine
            elif time.monotonic() >= deadline:
                raise LeaseHeldError(f"{self.where} is held by {found[0].holder} until {found[0].expires_at}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _POLL_S[1])

    def renew(self, lease: Lease, *, seconds: float) -> Lease:
        """Make sure that the lease is still held, and have it run for longer where less than half of it is left.

        Args:
            lease: A lease that was taken.
            seconds: How long it shall hold from now.

        Returns:
            The lease, perhaps with a later expiry.

        Raises:
            StaleLeaseError: It ran out, or somebody else has it.
            TransientError: The store cannot be reached.
        """
        now, found = self._clock(), self._read_with_etag()
        if found is None or found[0].holder != lease.holder or found[0].fence != lease.fence:
            now_with = "nobody" if found is None else f"{found[0].holder or 'nobody'} with fence {found[0].fence}"
            raise StaleLeaseError(f"lease {self.where} with fence {lease.fence} was lost, it is now with {now_with}")
        if found[0].expiry <= now:
            raise StaleLeaseError(f"lease {self.where} with fence {lease.fence} ran out at {found[0].expires_at}")
        if (found[0].expiry - now).total_seconds() > seconds / 2:
            return found[0]
        longer = replace(found[0], expires_at=_iso(now + dt.timedelta(seconds=seconds)))
        if not self._write(longer, found[1]):
            raise StaleLeaseError(f"lease {self.where} with fence {lease.fence} was taken over while it was renewed")
        return longer

    def release(self, lease: Lease) -> None:
        """Let others have it at once; harmless where somebody else has it already.

        Args:
            lease: A lease that was taken.

        Raises:
            TransientError: The store cannot be reached.
        """
        found = self._read_with_etag()
        if found is not None and found[0].holder == lease.holder and found[0].fence == lease.fence:
            self._write(replace(found[0], holder="", expires_at=_iso(self._clock())), found[1])

    def _read_with_etag(self) -> tuple[Lease, str] | None:
        found = self._storage.read_with_etag(self._name)
        if found is None:
            return None
        try:
            lease = from_json(Lease, json.loads(found[0]), where="lease")
            if lease.expiry.tzinfo is None or lease.fence < 1:
                raise ValueError(f"fence {lease.fence}, expires_at {lease.expires_at!r}")
        except ValueError as error:
            raise InputError(
                f"{self.where} is no lease ({error}); see that nobody writes, then delete it: the next fence is higher "
                f"than any that was used"
            ) from error
        return lease, found[1]

    def _write(self, lease: Lease, tag: str | None) -> bool:
        content = canonical_json(lease).encode()
        if tag is None:
            return self._storage.put_if_absent(self._name, content)
        return self._storage.put_if_match(self._name, content, tag)


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds")
