"""Folders and buckets behave alike."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from components.adapters.storage import open_storage
from components.adapters.storage.base import Storage, StoredFile
from components.core.errors import InputError, TransientError
from tests.helpers.s3_server import S3Server

NewStore = Callable[[], str]


@pytest.fixture(params=["folder", "file://", "s3://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3://":
        server: S3Server = request.getfixturevalue("s3")
        new_store: Callable[[], str] = request.getfixturevalue("new_store")
        return open_storage(f"{new_store()}/some/prefix", endpoint_url=server.endpoint_url)
    (tmp_path / "store").mkdir()
    return open_storage(str(tmp_path / "store") if request.param == "folder" else (tmp_path / "store").as_uri())


def test_what_is_put_can_be_listed_read_and_downloaded(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"x" * 3_000_000)
    storage.put("line/lot/a.bin", source)
    storage.put("line/lot/sub/b.txt", b"second")
    storage.put("line/other/c.txt", b"")

    assert storage.folders() == ["line"]
    assert storage.folders("line") == ["lot", "other"]
    assert storage.files("line/lot") == [
        StoredFile(name="line/lot/a.bin", num_bytes=3_000_000),
        StoredFile(name="line/lot/sub/b.txt", num_bytes=6),
    ]
    assert storage.read("line/lot/sub/b.txt") == b"second"
    storage.download("line/lot/a.bin", tmp_path / "deep" / "copy.bin")
    assert (tmp_path / "deep" / "copy.bin").read_bytes() == source.read_bytes()


def test_put_replaces_the_whole_file(storage: Storage) -> None:
    storage.put("a.txt", b"a long first version")
    storage.put("a.txt", b"new")
    assert storage.read("a.txt") == b"new"
    assert [file.name for file in storage.files()] == ["a.txt"]


def test_a_folder_is_not_confused_with_another_that_begins_alike(storage: Storage) -> None:
    storage.put("lot/a.txt", b"1")
    storage.put("lot-2/a.txt", b"2")
    assert [file.name for file in storage.files("lot")] == ["lot/a.txt"]


def test_what_is_not_there_is_empty_or_an_error_that_names_it(storage: Storage, tmp_path: Path) -> None:
    assert storage.folders("nothing") == []
    assert storage.files("nothing") == []
    assert not storage.exists("nothing/a.txt")
    with pytest.raises(InputError, match=r"nothing/a\.txt"):
        storage.read("nothing/a.txt")
    with pytest.raises(InputError):
        storage.download("nothing/a.txt", tmp_path / "copy")
    assert list(tmp_path.glob("*copy*")) == []


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "a//b", "./a", "a\\b", "", "a/\0"])
def test_names_that_lead_elsewhere_are_refused(storage: Storage, name: str) -> None:
    with pytest.raises(InputError, match="refused"):
        storage.read(name)
    with pytest.raises(InputError, match="refused"):
        storage.put(name, b"")


def test_symbolic_links_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.txt").write_text("secret")
    root = tmp_path / "root"
    (root / "lot").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "lot" / "a.txt").symlink_to(tmp_path / "secret" / "a.txt")
    storage = open_storage(str(root))
    for attempt in (
        lambda: storage.read("link/a.txt"),
        lambda: storage.read("lot/a.txt"),
        lambda: storage.put("link/b.txt", b""),
        lambda: storage.files("lot"),
        storage.folders,
    ):
        with pytest.raises(InputError, match="symbolic link"):
            attempt()


def test_a_folder_that_is_not_mounted_is_worth_another_try(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="not mounted"):
        open_storage(str(tmp_path / "gone")).folders("line")


def test_an_unknown_kind_of_address_is_refused() -> None:
    for uri in ("ftp://host/folder", "", "s3:///prefix"):
        with pytest.raises(InputError, match="storage address"):
            open_storage(uri)


def test_a_server_that_does_not_answer_is_named_and_soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(TransientError, match=endpoint):
        open_storage("s3://bucket/prefix", endpoint_url=endpoint).folders()
    assert time.monotonic() - started < 30


def test_a_missing_bucket_and_wrong_credentials_are_errors_for_good(
    s3: S3Server, new_store: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no-such-bucket"):
        open_storage("s3://no-such-bucket", endpoint_url=s3.endpoint_url).folders()
    bucket = new_store()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match=bucket):
        open_storage(bucket, endpoint_url=s3.endpoint_url).folders()


def test_the_server_of_these_tests_listens_on_loopback_only(s3: S3Server) -> None:
    port = int(s3.endpoint_url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=2):
        pass
    listening = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
    addresses = {fields[1].split(":")[0] for fields in listening if int(fields[1].split(":")[1], 16) == port}
    assert addresses == {"0100007F"}, f"{addresses} seen from process {os.getpid()}"


def test_of_many_that_put_where_nothing_is_exactly_one_wins(storage: Storage) -> None:
    contents = [f"writer {number}".encode() for number in range(8)]

    won = _at_once([lambda content=content: storage.put_if_absent("ledger/1.json", content) for content in contents])

    assert sum(won) == 1
    assert storage.read("ledger/1.json") == contents[won.index(True)]
    assert not storage.put_if_absent("ledger/1.json", b"later")
    assert [file.name for file in storage.files("ledger")] == ["ledger/1.json"]


def test_of_many_that_replace_what_they_read_exactly_one_wins(storage: Storage) -> None:
    assert storage.read_with_etag("lease.json") is None
    storage.put_if_absent("lease.json", b"first")
    found = storage.read_with_etag("lease.json")
    assert found is not None
    content, tag = found
    contents = [f"writer {number}".encode() for number in range(8)]

    won = _at_once([lambda mine=mine: storage.put_if_match("lease.json", mine, tag) for mine in contents])

    assert content == b"first"
    assert sum(won) == 1
    assert storage.read("lease.json") == contents[won.index(True)]


def test_files_that_come_and_go_while_a_folder_is_listed_are_no_error(storage: Storage) -> None:
    storage.put("in/lasting", b"1")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            storage.put("in/rewritten", b"2")

    with ThreadPoolExecutor(max_workers=2) as writers:
        writing = [writers.submit(write) for _ in range(2)]
        try:
            listed = [{file.name for file in storage.files("in")} for _ in range(200)]
        finally:
            done.set()
    assert all("in/lasting" in names for names in listed)
    assert [each.exception() for each in writing] == [None, None]


def test_nothing_replaces_what_is_not_there(storage: Storage) -> None:
    assert not storage.put_if_match("lease.json", b"mine", "0" * 64)
    assert not storage.exists("lease.json")


@pytest.mark.chaos("the answer to a conditional put is lost", outcome="known by its content; written once")
def test_a_conditional_put_whose_answer_was_lost_is_known_by_its_content(s3: S3Server, new_store: NewStore) -> None:
    """boto3 repeats a request that timed out; the repetition is refused because of the first one."""
    storage = open_storage(new_store(), endpoint_url=s3.endpoint_url)

    assert storage.put_if_absent("a.json", b"mine")
    assert storage.put_if_absent("a.json", b"mine")
    assert not storage.put_if_absent("a.json", b"another's")


@pytest.mark.chaos("a writer dies within a put", outcome="no half file, nobody waiting")
def test_a_writer_that_dies_leaves_no_half_file_and_nobody_waiting(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    code = (
        "import os, sys; from components.adapters.storage import open_storage\n"
        "os.link = lambda *_: os._exit(77)\n"
        "open_storage(sys.argv[1]).put_if_absent('1.json', b'x' * 1_000_000)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 77

    assert not storage.exists("1.json")
    assert storage.put_if_absent("1.json", b"second")


def test_a_folder_that_may_not_be_written_or_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for attempt in (
        lambda: open_storage(str(tmp_path / "file")).put_if_absent("1.json", b""),
        lambda: open_storage(str(tmp_path / "file")).read_with_etag("1.json"),
        lambda: open_storage(str(tmp_path / "file")).files(),
    ):
        with pytest.raises(InputError, match=str(tmp_path / "file")):
            attempt()


def _at_once(tasks: list[Callable[[], bool]]) -> list[bool]:
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], bool]) -> bool:
        barrier.wait()
        return task()

    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        return list(pool.map(run, tasks))


class _Refusing(BaseHTTPRequestHandler):
    """A server that says no, with another reason than that there is nothing."""

    def do_HEAD(self) -> None:
        self.send_response(403, "signature 404 is not known")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        del args


def test_a_refusal_whose_words_hold_404_is_not_taken_for_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        storage = open_storage("s3://bucket", endpoint_url=f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(InputError, match="403"):
            storage.exists("manifest.json")
        server.shutdown()
