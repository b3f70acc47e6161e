"""Nights in the data repository: added without the old ones, brought back, the same after any crash or race."""

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from filelock import FileLock

from components.adapters.data_repository import DataRepository
from components.core.atomic_files import write_json
from components.core.contracts import BatchRef, DatasetRef, ModelKey, RunRef, digest_of
from components.core.errors import InputError, TransientError
from tests.helpers.s3_server import S3Server

KEY = ModelKey(product="tile", line="line1", camera="cam1")
TAG = "tile.line1.cam1/2026-11-01"


def night(
    folder: Path, partition: str, *, key: ModelKey = KEY, salt: str = "", lots: int = 2
) -> tuple[RunRef, BatchRef]:
    """A collected batch of three images a lot."""
    folder = folder / key.slug / f"{partition}{salt}"
    found = []
    for lot in (f"{partition}-{number}" for number in range(lots)):
        entries = []
        for name in ("1.png", "2.png", "3.png"):
            content = f"{key.slug} {lot} {name} {salt}".encode() * 40
            path = folder / "images" / lot / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            entries.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        found.append({"lot": lot, "date": partition, "late": False, "images": entries})
    manifest = {"key": key.slug, "partition": partition, "lots": found}
    write_json(folder / "manifest.json", manifest)
    batch = BatchRef(
        manifest_path=str(folder / "manifest.json"), image_dir=str(folder / "images"), digest=digest_of(manifest),
        num_lots=lots, num_images=3 * lots,
    )  # fmt: skip
    return RunRef(key=key, partition=partition, work_dir=str(folder)), batch


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(batch: BatchRef) -> dict[str, bytes]:
    return contents(Path(batch.image_dir)) | {"manifest.json": Path(batch.manifest_path).read_bytes()}


def git(repo: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *arguments], cwd=repo, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def forget_cache(repo: Path, *, listings: bool = True) -> None:
    """Remove cached objects, as on a machine that never had them."""
    for path in list((repo / ".dvc" / "cache").rglob("*")):
        if path.is_file() and (listings or path.suffix != ".dir"):
            path.unlink()


@pytest.fixture
def repository(tmp_path: Path) -> DataRepository:
    return DataRepository(tmp_path / "repo", str(tmp_path / "remote"))


def test_nights_grow_one_listing_as_dvc_itself_would_make_it(repository: DataRepository, tmp_path: Path) -> None:
    batches = [night(tmp_path / "in", f"2026-11-0{day}") for day in (1, 2, 3)]
    references = [repository.add_partition(*batch) for batch in batches]
    assert [reference.path for reference in references] == [f"data/tile/line1/cam1/2026-11-0{d}" for d in (1, 2, 3)]
    assert git(tmp_path / "repo", "tag").split() == [f"tile.line1.cam1/2026-11-0{day}" for day in (1, 2, 3)]
    assert git(tmp_path / "repo", "status", "--porcelain") == ""
    assert not (tmp_path / "repo" / "data").exists()

    other = tmp_path / "other"
    for reference, (_, batch) in zip(references, batches, strict=True):
        for name, content in expected(batch).items():
            path = other / reference.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    with contextlib.closing(Repo.init(str(other), no_scm=True)) as repo:
        (stage,) = repo.add(str(other / "data"))
        assert references[-1].dvc_md5 == stage.outs[0].hash_info.value


def test_a_plain_clone_and_dvc_pull_bring_every_night_back(repository: DataRepository, tmp_path: Path) -> None:
    batches = [night(tmp_path / "in", f"2026-11-0{day}") for day in (1, 2)]
    references = [repository.add_partition(*batch) for batch in batches]
    git(tmp_path, "clone", "-q", str(tmp_path / "repo"), "clone")
    command = [sys.executable, "-m", "dvc", "pull", "-q"]
    subprocess.run(command, cwd=tmp_path / "clone", check=True, capture_output=True, timeout=60)
    for reference, (_, batch) in zip(references, batches, strict=True):
        assert contents(tmp_path / "clone" / reference.path) == expected(batch)


def test_the_same_batch_again_is_the_same_reference_and_no_commit(repository: DataRepository, tmp_path: Path) -> None:
    batch = night(tmp_path / "in", "2026-11-01")
    first = repository.add_partition(*batch)
    repository.add_partition(*night(tmp_path / "in", "2026-11-02"))
    head = git(tmp_path / "repo", "rev-parse", "HEAD")
    assert repository.add_partition(*batch) == first
    assert git(tmp_path / "repo", "rev-parse", "HEAD") == head


def test_a_changed_night_is_a_new_revision_and_the_old_one_stays(repository: DataRepository, tmp_path: Path) -> None:
    old_batch = night(tmp_path / "in", "2026-11-01", lots=2)
    new_batch = night(tmp_path / "in", "2026-11-01", salt="x", lots=1)
    old, new = repository.add_partition(*old_batch), repository.add_partition(*new_batch)
    assert (old.tag, new.tag) == (TAG, f"{TAG}-r2")
    assert repository.add_partition(*old_batch) == old
    for reference, (_, batch) in ((old, old_batch), (new, new_batch)):
        repository.fetch(reference.tag, [reference.path], tmp_path / reference.tag)
        assert contents(tmp_path / reference.tag / reference.path) == expected(batch)


def test_a_night_is_added_without_any_older_image(repository: DataRepository, tmp_path: Path) -> None:
    repository.add_partition(*night(tmp_path / "in", "2026-11-01"))
    forget_cache(tmp_path / "repo", listings=False)
    shutil.rmtree(tmp_path / "remote")
    batch = night(tmp_path / "in", "2026-11-02")
    reference = repository.add_partition(*batch)
    # Six images, the manifest and the listing: not one object of the first night.
    assert len(contents(tmp_path / "remote")) == 8
    repository.fetch(reference.revision, [reference.path], tmp_path / "out")
    assert contents(tmp_path / "out" / reference.path) == expected(batch[1])


def test_single_files_of_any_night_come_back_from_the_remote(repository: DataRepository, tmp_path: Path) -> None:
    (_, batch), second = night(tmp_path / "in", "2026-11-01"), night(tmp_path / "in", "2026-11-02")
    first = repository.add_partition(*night(tmp_path / "in", "2026-11-01"))
    latest = repository.add_partition(*second)
    forget_cache(tmp_path / "repo")
    wanted = [f"{first.path}/2026-11-01-0/2.png", f"{first.path}/2026-11-01-1/3.png"]
    repository.fetch(latest.revision, wanted, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == set(wanted)
    for name in wanted:
        assert (tmp_path / "out" / name).read_bytes() == expected(batch)[name.removeprefix(f"{first.path}/")]
    # Only what was asked for, and one listing.
    assert len(contents(tmp_path / "repo" / ".dvc" / "cache")) == 3


def test_fetching_into_a_folder_keeps_what_is_right_and_mends_what_is_not(
    repository: DataRepository, tmp_path: Path
) -> None:
    run, batch = night(tmp_path / "in", "2026-11-01")
    reference = repository.add_partition(run, batch)
    out = tmp_path / "out" / reference.path
    repository.fetch(reference.revision, [reference.path], tmp_path / "out")
    (out / "2026-11-01-0" / "1.png").write_bytes(b"damaged")
    (out / "2026-11-01-0" / "2.png").unlink()
    kept = (out / "2026-11-01-0" / "3.png").stat()
    repository.fetch(reference.revision, [reference.path], tmp_path / "out")
    assert contents(out) == expected(batch)
    assert (out / "2026-11-01-0" / "3.png").stat().st_ino == kept.st_ino


@pytest.mark.chaos("a rotten object in DVC's cache", outcome="replaced from the remote")
def test_a_cached_object_that_rotted_is_replaced_from_the_remote(repository: DataRepository, tmp_path: Path) -> None:
    run, batch = night(tmp_path / "in", "2026-11-01")
    reference = repository.add_partition(run, batch)
    objects = [path for path in (tmp_path / "repo" / ".dvc" / "cache").rglob("*") if path.is_file()]
    for path in objects:
        if path.suffix != ".dir":
            path.chmod(0o644)
            path.write_bytes(b"rot")
            path.chmod(0o444)
    repository.fetch(reference.revision, [reference.path], tmp_path / "out")
    assert contents(tmp_path / "out" / reference.path) == expected(batch)


def test_what_is_gone_or_unknown_is_named(repository: DataRepository, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data repository"):
        repository.fetch("HEAD", ["data"], tmp_path / "out")
    run, batch = night(tmp_path / "in", "2026-11-01")
    reference = repository.add_partition(run, batch)
    with pytest.raises(InputError, match=r"data/tile/nothing\.png"):
        repository.fetch(reference.revision, ["data/tile/nothing.png"], tmp_path / "out")
    with pytest.raises(InputError, match="no-such-tag"):
        repository.fetch("no-such-tag", [reference.path], tmp_path / "out")
    forget_cache(tmp_path / "repo", listings=False)
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises(InputError, match=r"neither in the cache .* nor in DVC remote"):
        repository.fetch(reference.revision, [reference.path], tmp_path / "out")


def test_a_batch_that_is_not_what_was_collected_is_refused(repository: DataRepository, tmp_path: Path) -> None:
    run, batch = night(tmp_path / "in", "2026-11-01")
    with pytest.raises(InputError, match="lists 6 images, expected 7"):
        repository.add_partition(run, replace(batch, num_images=7))
    (Path(batch.image_dir) / "2026-11-01-0" / "1.png").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"1\.png is gone or has changed"):
        repository.add_partition(run, batch)


def test_a_folder_with_something_else_in_it_is_left_alone(repository: DataRepository, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "thesis.tex").write_text("all my work")
    with pytest.raises(InputError, match="neither empty nor"):
        repository.add_partition(*night(tmp_path / "in", "2026-11-01"))
    assert contents(tmp_path / "repo") == {"thesis.tex": b"all my work"}


@pytest.mark.chaos("three keys version at once", outcome="one after the other; nothing lost")
def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    def add(camera: str) -> DatasetRef:
        batch = night(tmp_path / "in", "2026-11-01", key=replace(KEY, camera=camera))
        return DataRepository(tmp_path / "repo", str(tmp_path / "remote")).add_partition(*batch)

    with ThreadPoolExecutor(3) as pool:
        references = list(pool.map(add, ("cam1", "cam2", "cam3")))
    assert len(set(git(tmp_path / "repo", "log", "--format=%H").split())) == 4
    head = git(tmp_path / "repo", "rev-parse", "HEAD")
    repository = DataRepository(tmp_path / "repo", str(tmp_path / "remote"))
    repository.fetch(head, [reference.path for reference in references], tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 21


@pytest.mark.chaos("the data repository's lock held for ever", outcome="tried again later")
def test_a_lock_that_is_never_given_back_is_worth_another_try_later(tmp_path: Path) -> None:
    repository = DataRepository(tmp_path / "repo", str(tmp_path / "remote"), lock_seconds=0.2)
    with FileLock(tmp_path / ".repo.lock"), pytest.raises(TransientError, match="held by another writer"):
        repository.add_partition(*night(tmp_path / "in", "2026-11-01"))


@pytest.mark.chaos("DVC's lock held by a person's command", outcome="waited for")
def test_a_persons_own_dvc_command_is_waited_for(repository: DataRepository, tmp_path: Path) -> None:
    repository.add_partition(*night(tmp_path / "in", "2026-11-01"))
    held, release = threading.Event(), threading.Event()

    def person() -> None:
        with contextlib.closing(Repo(str(tmp_path / "repo"))) as repo, repo.lock:
            held.set()
            release.wait(10)

    thread = threading.Thread(target=person)
    thread.start()
    assert held.wait(10)
    # DVC's API gives up after 3 s.
    threading.Timer(4.0, release.set).start()
    started = time.monotonic()
    repository.add_partition(*night(tmp_path / "in", "2026-11-02"))
    thread.join()
    assert time.monotonic() - started > 3


@pytest.mark.chaos("dead locks and half files of killed git and DVC", outcome="cleared away; the night goes in whole")
def test_what_killed_processes_leave_behind_stops_nobody(repository: DataRepository, tmp_path: Path) -> None:
    repository.add_partition(*night(tmp_path / "in", "2026-11-01"))
    repo = tmp_path / "repo"
    info = {"pid": os.getpid(), "cmd": "dvc add of a process whose number is ours by now"}
    write_json(repo / ".dvc" / "tmp" / "rwlock", {"write": {str(repo / "data"): info}})
    index_lock = repo / ".git" / "index.lock"
    index_lock.touch()
    os.utime(index_lock, (time.time() - 3600,) * 2)
    (repo / "data" / "half").mkdir(parents=True)
    (repo / "data.dvc").write_text("half a fi")
    batch = night(tmp_path / "in", "2026-11-02")
    reference = repository.add_partition(*batch)
    repository.fetch(reference.revision, ["data"], tmp_path / "out")
    assert contents(tmp_path / "out" / reference.path) == expected(batch[1])
    assert len(contents(tmp_path / "out")) == 14


def _killed_at(moment: int, folder: Path, batch: tuple[RunRef, BatchRef], count_file: Path | None = None) -> bool:
    """Add in a process that dies at its n-th change of the file system or git command; False when it lived."""
    if (child := os.fork()) == 0:
        seen = 0

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writing or event in ("os.rename", "os.remove", "os.mkdir", "shutil.rmtree", "subprocess.Popen"):
                seen += 1
                if seen == moment:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            DataRepository(folder / "repo", str(folder / "remote")).add_partition(*batch)
        finally:
            if count_file is not None:
                count_file.write_text(str(seen))
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.chaos(
    "kill -9 of version at changes all over add, push, commit and tag", outcome="the same commit, objects and tag"
)
@pytest.mark.parametrize("first_night", [True, False])
def test_a_crash_at_any_moment_leads_to_the_same_end(tmp_path: Path, *, first_night: bool) -> None:
    template, folder = tmp_path / "template", tmp_path / "state"
    folder.mkdir()
    if not first_night:
        DataRepository(folder / "repo", str(folder / "remote")).add_partition(*night(tmp_path / "in", "2026-11-01"))
    shutil.move(folder, template)

    def start() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)

    batch = night(tmp_path / "in", "2026-11-02")
    start()
    reference = DataRepository(folder / "repo", str(folder / "remote")).add_partition(*batch)
    objects = set(contents(folder / "remote"))
    start()
    assert not _killed_at(-1, folder, batch, tmp_path / "count")
    num_moments = int((tmp_path / "count").read_text())
    assert num_moments > 50
    died = 0
    # Evenly over the whole, and each of the last ones, where commit and tag are made.
    for moment in [*range(1, num_moments - 4, num_moments // 5), *range(num_moments - 4, num_moments)]:
        start()
        # DVC works in threads, so that a moment may be another one, or none, in the next run.
        died += _killed_at(moment, folder, batch)
        repository = DataRepository(folder / "repo", str(folder / "remote"))
        assert repository.add_partition(*batch) == reference, f"after a crash at change {moment}"
        # A commit is content: the same id means the same history.
        assert git(folder / "repo", "rev-parse", "HEAD") == reference.revision
        assert git(folder / "repo", "status", "--porcelain") == ""
        # A killed DVC may leave a half-written temporary file in the store, under no object's name.
        assert {name for name in contents(folder / "remote") if not name.endswith(".tmp")} == objects
        assert not (folder / "repo" / "data").exists()
    assert died >= 5


def test_two_machines_share_an_origin(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "origin.git")
    ours = DataRepository(tmp_path / "ours", str(tmp_path / "remote"))
    ours.add_partition(*night(tmp_path / "in", "2026-11-01"))
    git(tmp_path / "ours", "remote", "add", "origin", str(tmp_path / "origin.git"))
    ours.add_partition(*night(tmp_path / "in", "2026-11-02"))
    git(tmp_path, "clone", "-q", str(tmp_path / "origin.git"), "theirs")
    theirs = DataRepository(tmp_path / "theirs", str(tmp_path / "remote"))
    third = theirs.add_partition(*night(tmp_path / "in", "2026-11-03"))
    fourth = ours.add_partition(*night(tmp_path / "in", "2026-11-04"))
    assert git(tmp_path / "origin.git", "rev-parse", "main") == fourth.revision
    ours.fetch(fourth.revision, ["data"], tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 4 * 7
    assert third.tag in git(tmp_path / "origin.git", "tag").split()


@pytest.mark.chaos("git push refused, as another machine was first", outcome="made anew on top of the winner")
def test_a_lost_race_for_the_origin_is_run_again_on_top_of_the_winner(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "origin.git")
    ours = DataRepository(tmp_path / "ours", str(tmp_path / "remote"))
    ours.add_partition(*night(tmp_path / "in", "2026-11-01"))
    git(tmp_path / "ours", "remote", "add", "origin", str(tmp_path / "origin.git"))
    git(tmp_path / "ours", "push", "-q", "origin", "main")
    git(tmp_path, "clone", "-q", str(tmp_path / "origin.git"), "theirs")
    git(tmp_path / "theirs", "remote", "rename", "origin", "later")
    DataRepository(tmp_path / "theirs", str(tmp_path / "remote")).add_partition(*night(tmp_path / "in", "2026-11-02"))
    # The other machine's push lands after we looked and before ours arrives.
    hook = tmp_path / "ours" / ".git" / "hooks" / "pre-push"
    hook.write_text(f"#!/bin/sh\nunset GIT_DIR GIT_WORK_TREE\ncd '{tmp_path}/theirs' && git push -q later main\n")
    hook.chmod(hook.stat().st_mode | stat.S_IXUSR)
    reference = ours.add_partition(*night(tmp_path / "in", "2026-11-03"))
    assert git(tmp_path / "origin.git", "rev-parse", "main") == reference.revision
    assert git(tmp_path / "origin.git", "rev-parse", f"refs/tags/{reference.tag}") == reference.revision
    assert git(tmp_path / "ours", "log", "--format=%s").count("Add 2026-11-0") == 3
    ours.fetch(reference.revision, ["data"], tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 3 * 7


@pytest.mark.chaos("git push refused by the origin's own rules", outcome="tried again; then the same commit, once")
def test_an_origin_that_refuses_for_a_while_gets_the_same_commit_later(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "origin.git")
    repository = DataRepository(tmp_path / "repo", str(tmp_path / "remote"))
    repository.add_partition(*night(tmp_path / "in", "2026-11-01"))
    git(tmp_path / "repo", "remote", "add", "origin", str(tmp_path / "origin.git"))
    hook = tmp_path / "origin.git" / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'no pushes during the backup' >&2\nexit 1\n")
    hook.chmod(hook.stat().st_mode | stat.S_IXUSR)
    second = night(tmp_path / "in", "2026-11-02")
    with pytest.raises(TransientError, match="no pushes during the backup"):
        repository.add_partition(*second)
    assert git(tmp_path / "origin.git", "for-each-ref") == ""

    hook.unlink()
    reference = repository.add_partition(*second)

    assert (
        git(tmp_path / "origin.git", "rev-parse", "main", f"refs/tags/{reference.tag}").split()
        == [reference.revision] * 2
    )
    assert git(tmp_path / "repo", "log", "--format=%s").count("Add 2026-11-0") == 2


def test_the_remote_may_be_a_bucket(s3: S3Server, new_store: Callable[[], str], tmp_path: Path) -> None:
    repository = DataRepository(tmp_path / "repo", f"{new_store()}/dvc", s3.endpoint_url)
    run, batch = night(tmp_path / "in", "2026-11-01")
    reference = repository.add_partition(run, batch)
    forget_cache(tmp_path / "repo")
    repository.fetch(reference.revision, [reference.path], tmp_path / "out")
    assert contents(tmp_path / "out" / reference.path) == expected(batch)
    config = (tmp_path / "repo" / ".dvc" / "config").read_text()
    assert s3.secret_key not in config
    assert s3.access_key not in config


@pytest.mark.chaos("a DVC remote that does not answer", outcome="tried again; no tag until all is there")
def test_a_remote_that_does_not_answer_is_worth_another_try(
    s3: S3Server, new_store: Callable[[], str], tmp_path: Path
) -> None:
    run, batch = night(tmp_path / "in", "2026-11-01")
    remote = f"{new_store()}/dvc"
    port = int(s3.endpoint_url.rsplit(":", 1)[1])
    nowhere = f"http://127.0.0.1:{port + 1}"
    with pytest.raises(TransientError, match=nowhere):
        DataRepository(tmp_path / "repo", remote, nowhere).add_partition(run, batch)
    assert git(tmp_path / "repo", "tag") == ""
    # The same night later, when the server is where it should be.
    reference = DataRepository(tmp_path / "repo", remote, s3.endpoint_url).add_partition(run, batch)
    assert reference.tag == TAG
