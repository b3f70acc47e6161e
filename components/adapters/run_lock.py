"""Run lock of a model key: one run at a time builds on its models, a night or a backfill.

The lease is held by a run, not by a process: each of its steps takes it anew under a higher fence and has it renewed
while it works, and the last one gives it back. An attempt that was given up, but lives on, has too low a fence from
the moment on at which the next one starts. Whatever a run writes for others (data repository, registry, records) asks
:meth:`FencingToken.check_token` first: the lease must still be its own, and the place must not have seen a higher
fence.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator

from components.adapters.lease import Clock, Lease, StaleLeaseError, StoredLease, holder_label, holder_name, utc_now
from components.adapters.storage import open_storage
from components.config import PromoteSettings, ScheduleSettings, ledger_of
from components.core.contracts import ModelKey
from components.core.errors import TransientError

__all__ = ["FencingToken", "RunLock", "open_run_lock"]

logger = logging.getLogger(__name__)


class FencingToken:
    """The holder's pass; made by :meth:`RunLock.held`."""

    def __init__(self, lease: StoredLease, mine: Lease, seconds: float) -> None:
        self._lease = lease
        self._mine = mine
        self._seconds = seconds

    @property
    def number(self) -> int:
        """The fence."""
        return self._mine.fence

    def check_token(self, seen: int, where: str) -> None:
        """Return if ``where`` may be written.

        Args:
            seen: The highest fence that was ever admitted there.
            where: The place, for the message.

        Raises:
            StaleLeaseError: It has seen a higher fence, or the lease is not ours any more.
            TransientError: The lease's store cannot be reached.
        """
        if seen > self.number:
            raise StaleLeaseError(f"{where} was written under fence {seen}, this run's is {self.number}: it is late")
        self.renew()

    def renew(self) -> None:
        """Have the lease run for longer; errors as in :meth:`check_token`."""
        self._lease.renew(self._mine, seconds=self._seconds)

    def release(self) -> None:
        """Give the lease back."""
        self._lease.release(self._mine)


class RunLock:
    """The lease of one model key.

    Args:
        lease: Where it is kept.
        seconds: A holder that is not heard of for so long is given up.
        wait_s: How long to wait for another holder.
    """

    def __init__(self, lease: StoredLease, *, seconds: float, wait_s: float) -> None:
        self._lease = lease
        self.seconds = seconds
        self._wait_s = wait_s

    def with_max_lease(self, seconds: float) -> "RunLock":
        """The same with at most so long a lease."""
        return RunLock(self._lease, seconds=min(seconds, self.seconds), wait_s=self._wait_s)

    def with_timeout(self, wait_s: float) -> "RunLock":
        """The same with another patience."""
        return RunLock(self._lease, seconds=self.seconds, wait_s=wait_s)

    @contextlib.contextmanager
    def held(self, run: str, *, release: bool) -> Iterator[FencingToken]:
        """Hold the key for one step of a run.

        Args:
            run: Name of the run, the same in all of its steps and attempts and in no other run.
            release: Whether to give it back afterwards, as the last step does.

        Yields:
            The fence.

        Raises:
            LeaseHeldError: Another run held it all the while.
            TransientError: The lease's store cannot be reached.
        """
        mine = self._lease.take(holder_name(run), seconds=self.seconds, wait_s=self._wait_s, reentrant=True)
        fence = FencingToken(self._lease, mine, self.seconds)
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(fence, ended), name="lineage-lease", daemon=True)
        beat.start()
        try:
            yield fence
        finally:
            ended.set()
            beat.join()
            if release:
                # A lease that cannot be given back runs out by itself; what went wrong before is the news.
                with contextlib.suppress(TransientError):
                    fence.release()

    def holder(self, *, now: Clock = utc_now) -> str:
        """Name of the run that holds the key; empty where none does."""
        lease = self._lease.read()
        return "" if lease is None or not lease.holder or lease.expiry <= now() else holder_label(lease.holder)

    def _beat(self, fence: FencingToken, ended: threading.Event) -> None:
        while not ended.wait(self.seconds / 3):
            try:
                fence.renew()
            except StaleLeaseError as error:
                logger.warning("%s; what this run would write from now on is refused", error)
                return
            except TransientError as error:
                logger.warning("the lease could not be renewed, trying again: %s", error)


def open_run_lock(
    key: ModelKey, *, work_dir: str, promote: PromoteSettings, schedule: ScheduleSettings, clock: Clock = utc_now
) -> RunLock:
    """The lease of a key, which lies beside its ledger.

    Args:
        key: The key.
        work_dir: The ledger is there where the settings name no other place.
        promote: Where the ledger is.
        schedule: How long the lease holds, and how long to wait for it.
        clock: The holder's clock.

    Returns:
        The lease; nothing is read or made yet.

    Raises:
        InputError: The ledger's address is of no known kind.
    """
    storage = open_storage(ledger_of(work_dir, promote), endpoint_url=promote.ledger_endpoint_url)
    lease = StoredLease(storage, f"{key.registered_model}/lineage.json", clock=clock)
    return RunLock(lease, seconds=schedule.lease_s, wait_s=schedule.lease_wait_s)
