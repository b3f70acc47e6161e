"""One writer at a time, and one that overslept is told apart: on a folder and on S3."""

import datetime as dt
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.adapters.lease import LeaseHeldError, StaleLeaseError, StoredLease, holder_name, utc_now
from components.adapters.storage import open_storage
from components.adapters.storage.base import Storage
from components.core.errors import InputError, TransientError
from tests.helpers.s3_server import S3Server

START = dt.datetime(2026, 11, 1, 2, 0, tzinfo=dt.UTC)


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> dt.datetime:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


@pytest.fixture(params=["folder", "s3://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "ledger"))
    server: S3Server = request.getfixturevalue("s3")
    new_store: Callable[[], str] = request.getfixturevalue("new_store")
    return open_storage(new_store(), endpoint_url=server.endpoint_url)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def lease(storage: Storage, clock: HandClock) -> StoredLease:
    return StoredLease(storage, "key/lease.json", clock=clock)


def test_a_held_lease_is_refused_with_the_holders_name_until_it_is_given_back(lease: StoredLease) -> None:
    assert lease.read() is None
    first = lease.take("night@host:1:a", seconds=30)
    with pytest.raises(LeaseHeldError, match=r"key/lease\.json is held by night@host:1:a until 2026-11-01T02:00:30"):
        lease.take("backfill@host:2:b", seconds=30)
    lease.release(first)
    second = lease.take("backfill@host:2:b", seconds=30)

    assert (first.fence, second.fence) == (1, 2)
    lease.release(first)  # too late: somebody else has it
    lease.renew(second, seconds=30)


def test_a_lease_that_ran_out_is_taken_over_with_a_higher_fence(lease: StoredLease, clock: HandClock) -> None:
    dead = lease.take("dead@host:1:a", seconds=30)
    clock.tick(30)
    heir = lease.take("heir@host:2:b", seconds=30)

    assert heir.fence == dead.fence + 1
    with pytest.raises(StaleLeaseError, match=r"fence 1 was lost, it is now with heir@host:2:b with fence 2"):
        lease.renew(dead, seconds=30)


def test_a_lease_that_ran_out_may_not_be_used_even_if_nobody_took_it(lease: StoredLease, clock: HandClock) -> None:
    mine = lease.take("slow@host:1:a", seconds=30)
    clock.tick(31)
    with pytest.raises(StaleLeaseError, match="ran out at 2026-11-01T02:00:30"):
        lease.renew(mine, seconds=30)


def test_a_holder_that_is_alive_keeps_its_lease_as_long_as_it_wants(lease: StoredLease, clock: HandClock) -> None:
    mine = lease.take("alive@host:1:a", seconds=30)
    for _ in range(10):
        clock.tick(20)
        mine = lease.renew(mine, seconds=30)
    with pytest.raises(LeaseHeldError):
        lease.take("other@host:2:b", seconds=30)
    assert mine.fence == 1


def test_a_lease_object_that_was_deleted_does_not_lower_the_fence(storage: Storage, clock: HandClock) -> None:
    lease = StoredLease(storage, "key/lease.json", clock=clock)
    assert lease.take("first@host:1:a", seconds=30, above_fence=41).fence == 42


def test_a_waiting_taker_gets_it_as_soon_as_it_is_free(storage: Storage) -> None:
    lease = StoredLease(storage, "key/lease.json", clock=utc_now)
    mine = lease.take("first@host:1:a", seconds=30)
    timer = threading.Timer(0.3, lease.release, [mine])
    timer.start()
    assert lease.take("second@host:2:b", seconds=30, wait_s=20).fence == 2
    timer.join()


def test_of_many_takers_one_at_a_time_holds_it_and_every_fence_is_another(storage: Storage) -> None:
    inside: list[str] = []
    fences: list[int] = []
    crowded: list[str] = []

    def work(number: int) -> None:
        lease = StoredLease(storage, "key/lease.json", clock=utc_now)
        name = holder_name(f"worker {number}")
        mine = lease.take(name, seconds=30, wait_s=60)
        inside.append(name)
        if inside != [name]:
            crowded.append(name)
        fences.append(mine.fence)
        inside.remove(name)
        lease.release(mine)

    with ThreadPoolExecutor(max_workers=6) as pool:
        list(pool.map(work, range(12)))

    assert crowded == []
    assert fences == list(range(1, 13))


def test_what_is_no_lease_is_named_with_what_to_do(lease: StoredLease, storage: Storage) -> None:
    for content in (b"", b"{", b'{"holder": "x", "fence": 0, "expires_at": "2026-11-01T00:00:00+00:00"}'):
        storage.put("key/lease.json", content)
        with pytest.raises(InputError, match=r"key/lease\.json is no lease .* delete it"):
            lease.take("mine@host:1:a", seconds=30)


def test_a_lease_that_is_lost_or_held_is_worth_another_try() -> None:
    assert issubclass(StaleLeaseError, TransientError)
    assert issubclass(LeaseHeldError, TransientError)
    assert holder_name("night") != holder_name("night")
