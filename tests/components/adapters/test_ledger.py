"""No entry can be edited, removed, put in or moved without being found."""

import datetime as dt
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.adapters.lease import StaleLeaseError
from components.adapters.ledger import Ledger, LedgerBrokenError, LedgerEntries
from components.adapters.storage import open_storage
from components.adapters.storage.base import Storage
from components.core.contracts import canonical_json
from tests.helpers.s3_server import S3Server

MODEL = "stlm.cells.line1.cam1"
START = dt.datetime(2026, 11, 1, 2, 0, tzinfo=dt.UTC)
NUM_ENTRIES = 6


def _written(storage: Storage, count: int = NUM_ENTRIES) -> tuple[Ledger, LedgerEntries]:
    ledger, chain = Ledger(storage, MODEL), LedgerEntries()
    for number in range(count):
        chain = ledger.append(
            chain,
            kind="freeze",
            at=START + dt.timedelta(hours=number),
            fence=1 + number // 2,
            writer=f"writer {number}",
            body={"by": "Ada", "reason": f"reason {number}", "figures": [number, number / 7, None]},
        )
    return ledger, chain


@pytest.fixture(params=["folder", "s3://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "ledger"))
    server: S3Server = request.getfixturevalue("s3")
    new_store: Callable[[], str] = request.getfixturevalue("new_store")
    return open_storage(new_store(), endpoint_url=server.endpoint_url)


def test_what_was_written_is_read_again_and_holds(storage: Storage) -> None:
    ledger, chain = _written(storage)
    again = ledger.read()

    assert again == chain
    assert [entry.seq for entry in again.entries] == [1, 2, 3, 4, 5, 6]
    assert again.entries[3].body == {"by": "Ada", "reason": "reason 3", "figures": [3, 3 / 7, None]}
    assert again.entries[0].previous_sha256 == "0" * 64
    first = storage.read(f"{MODEL}/00000001.json")
    assert again.entries[1].previous_sha256 == hashlib.sha256(first).hexdigest()
    ledger.check_head(again, chain.head)
    assert ledger.read(LedgerEntries(entries=chain.entries[:2], digests=chain.digests[:2])) == chain


def test_an_unwritten_ledger_is_empty_and_is_not_made_by_reading(tmp_path: Path) -> None:
    ledger = Ledger(open_storage(str(tmp_path / "ledger")), MODEL)
    assert ledger.read() == LedgerEntries()
    assert not (tmp_path / "ledger").exists()
    with pytest.raises(LedgerBrokenError, match=r"ends with entry 0, but the registry knows of entry 3: .*not mounted"):
        ledger.check_head(LedgerEntries(), f"3:{'a' * 64}")


def test_of_two_writers_of_one_entry_one_is_refused_and_nothing_is_lost(storage: Storage) -> None:
    ledger, chain = _written(storage, 1)
    ledger.append(chain, kind="freeze", at=START, fence=5, writer="first", body={"by": "A", "reason": "a"})
    with pytest.raises(StaleLeaseError, match="entry 2 was written by somebody else meanwhile"):
        ledger.append(chain, kind="freeze", at=START, fence=6, writer="second", body={"by": "B", "reason": "b"})
    assert [entry.writer for entry in ledger.read().entries] == ["writer 0", "first"]


def test_a_writer_with_a_lower_fence_than_the_ledgers_is_refused(storage: Storage) -> None:
    ledger, chain = _written(storage)
    with pytest.raises(StaleLeaseError, match="has an entry with fence 3, the writer's is 2"):
        ledger.append(chain, kind="unfreeze", at=START, fence=2, writer="late", body={"by": "A", "reason": "a"})
    assert ledger.read() == chain


def test_a_clock_that_was_set_back_does_not_turn_the_order_round(storage: Storage) -> None:
    ledger, chain = _written(storage, 2)
    late = START - dt.timedelta(days=1)
    chain = ledger.append(chain, kind="unfreeze", at=late, fence=9, writer="w", body={"by": "A", "reason": "a"})
    assert chain.entries[2].time == chain.entries[1].time


def test_another_models_entries_are_refused(storage: Storage) -> None:
    ledger, _ = _written(storage, 1)
    storage.put("stlm.other.line1.cam1/00000001.json", storage.read(f"{MODEL}/00000001.json"))
    with pytest.raises(LedgerBrokenError, match=rf"entry 1 says that it is entry 1 of {MODEL}"):
        Ledger(storage, "stlm.other.line1.cam1").read()
    assert len(ledger.read().entries) == 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The bytes of a ledger's entries."""
    root = tmp_path_factory.mktemp("ledger")
    _written(open_storage(str(root)))
    return [path.read_bytes() for path in sorted((root / MODEL).iterdir())]


def _is_found(before: list[bytes], after: dict[int, bytes]) -> bool:
    head = f"{len(before)}:{hashlib.sha256(before[-1]).hexdigest()}"
    with TemporaryDirectory() as folder:
        (Path(folder) / MODEL).mkdir()
        for number, content in after.items():
            (Path(folder) / MODEL / f"{number:08d}.json").write_bytes(content)
        ledger = Ledger(open_storage(folder), MODEL)
        try:
            ledger.check_head(ledger.read(), head)
        except LedgerBrokenError as error:
            return "\n" not in str(error)
    return False


def _numbered(contents: list[bytes]) -> dict[int, bytes]:
    return dict(enumerate(contents, start=1))


def test_an_untouched_ledger_is_not_suspected(files: list[bytes]) -> None:
    assert not _is_found(files, _numbered(files))


_ENTRY = st.integers(0, NUM_ENTRIES - 1)


@given(entry=_ENTRY, position=st.integers(0, 10_000), bits=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_any_changed_byte_is_found(files: list[bytes], entry: int, position: int, bits: int) -> None:
    content = bytearray(files[entry])
    content[position % len(content)] ^= bits
    assert _is_found(files, _numbered([*files[:entry], bytes(content), *files[entry + 1 :]]))


@given(entry=_ENTRY, content=st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_other_content_is_found(files: list[bytes], entry: int, content: bytes) -> None:
    assert _is_found(files, _numbered([*files[:entry], content, *files[entry + 1 :]]))


_FORGERIES = st.sampled_from(
    [
        ("body", {"by": "Eve", "reason": "reason"}),
        ("writer", "Eve"),
        ("at", "2026-10-01T00:00:00.000+00:00"),
        ("fence", 99),
        ("kind", "unfreeze"),
        ("seq", 3),
        ("model", "stlm.other.line1.cam1"),
        ("previous_sha256", "f" * 64),
    ]
)


@given(entry=_ENTRY, forgery=_FORGERIES, chained=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_forged_entry_is_found_also_where_the_chain_was_mended_after_it(
    files: list[bytes], entry: int, forgery: tuple[str, object], chained: bool
) -> None:
    contents = [json.loads(content) for content in files]
    field, value = forgery
    if contents[entry][field] == value:
        return
    contents[entry][field] = value
    forged = [canonical_json(content).encode() for content in contents]
    if chained:
        for number in range(entry + 1, NUM_ENTRIES):
            contents[number]["previous_sha256"] = hashlib.sha256(forged[number - 1]).hexdigest()
            forged[number] = canonical_json(contents[number]).encode()
    assert _is_found(files, _numbered(forged))


@given(removed=st.sets(_ENTRY, min_size=1), closed_up=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_removed_entries_are_found(files: list[bytes], removed: set[int], closed_up: bool) -> None:
    kept = {number + 1: content for number, content in enumerate(files) if number not in removed}
    assert _is_found(files, _numbered(list(kept.values())) if closed_up else kept)


@given(order=st.permutations(range(NUM_ENTRIES)))
@settings(max_examples=60, deadline=None)
def test_any_other_order_is_found(files: list[bytes], order: list[int]) -> None:
    if order != sorted(order):
        assert _is_found(files, _numbered([files[number] for number in order]))


@given(place=st.integers(0, NUM_ENTRIES), copied=_ENTRY)
@settings(max_examples=40, deadline=None)
def test_any_entry_that_was_put_in_is_found(files: list[bytes], place: int, copied: int) -> None:
    assert _is_found(files, _numbered([*files[:place], files[copied], *files[place:]]))
