"""One run at a time builds on a key's models; who lost the key writes nothing for others any more."""

import datetime as dt
import subprocess
from pathlib import Path

import pytest

from components.adapters.lease import LeaseHeldError, StaleLeaseError, utc_now
from components.adapters.mlflow.registry import ModelRegistry
from components.adapters.mlflow.tracking import open_run
from components.adapters.run_lock import RunLock, open_run_lock
from components.config import PromoteSettings, ScheduleSettings
from components.core.contracts import Fence
from components.core.run_records import StepRecord, read_night, write_record
from tests.helpers.model_package import KEY as CELLS
from tests.helpers.model_package import new_mlflow, night
from tests.helpers.old_nights import archive, tree_digest
from tests.helpers.promotion import another_package
from tests.helpers.tiny_nights import KEY, NIGHTS, make_tiny_world


class _Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> dt.datetime:
        return utc_now() + dt.timedelta(seconds=self.ahead_s)


def _run_lock(folder: Path, clock: _Clock, *, wait_s: float = 0.0) -> RunLock:
    schedule = ScheduleSettings(lease_s=60.0, lease_wait_s=wait_s)
    return open_run_lock(KEY, work_dir=str(folder), promote=PromoteSettings(), schedule=schedule, clock=clock)


def test_another_run_is_told_who_holds_the_key_and_gets_it_when_it_is_given_back(tmp_path: Path) -> None:
    run_lock = _run_lock(tmp_path, _Clock())
    with run_lock.held("nightly run 1", release=False):
        pass
    assert run_lock.holder() == "nightly run 1"
    with pytest.raises(LeaseHeldError, match="held by nightly run 1@"), run_lock.held("backfill b", release=True):
        pass
    with run_lock.held("nightly run 1", release=True):
        pass
    assert run_lock.holder() == ""
    with run_lock.held("backfill b", release=True):
        assert run_lock.holder() == "backfill b"


def test_the_next_step_of_a_run_goes_on_and_makes_an_attempt_that_was_given_up_late(tmp_path: Path) -> None:
    run_lock = _run_lock(tmp_path, _Clock())
    with run_lock.held("nightly run 1", release=False) as given_up:
        given_up.check_token(0, "records")
        with run_lock.held("nightly run 1", release=False) as present:
            assert present.number > given_up.number
            present.check_token(given_up.number, "records")
            with pytest.raises(StaleLeaseError, match="was lost"):
                given_up.check_token(0, "records")


@pytest.mark.chaos("a run dies while it holds the key", outcome="given up after its lease; the next one goes on")
def test_a_dead_run_is_given_up_after_its_time_and_a_waiting_one_takes_its_place(tmp_path: Path) -> None:
    clock = _Clock()
    dead = _run_lock(tmp_path, clock)
    with dead.held("nightly run 1", release=False) as before:
        pass
    clock.ahead_s = 61.0
    with _run_lock(tmp_path, clock).held("nightly run 2", release=True) as after:
        assert after.number > before.number
        with pytest.raises(StaleLeaseError):
            before.check_token(0, "records")


def _lost(folder: Path) -> tuple[Fence, Fence]:
    """Two fences: of a run that overslept, and of the one that took its place."""
    clock = _Clock()
    with _run_lock(folder, clock).held("nightly run 1", release=False) as late:
        pass
    clock.ahead_s = 61.0
    with _run_lock(folder, clock).held("nightly run 2", release=False) as present:
        pass
    return late, present


class _Asleep:
    """A late run that looked at its lease just before it lost it: only the number can tell."""

    def __init__(self, number: int) -> None:
        self.number = number

    def check_token(self, seen: int, where: str) -> None:
        if seen > self.number:
            raise StaleLeaseError(f"{where} was written under fence {seen}, this run's is {self.number}: it is late")


@pytest.mark.chaos("the attempt that was given up writes a record", outcome="refused")
def test_late_records_are_refused(tmp_path: Path) -> None:
    late, present = _lost(tmp_path)
    run = make_tiny_world(tmp_path / "world").run(NIGHTS[0])
    record = StepRecord(step="gate", outcome="SUCCEEDED", seconds=1.0)
    write_record(run, record, present)
    for fence in (late, _Asleep(late.number)):
        with pytest.raises(StaleLeaseError):
            write_record(run, StepRecord(step="promote", outcome="SUCCEEDED", seconds=1.0), fence)
    assert list(read_night(run)) == ["gate"]


@pytest.mark.chaos("the attempt that was given up commits a night", outcome="refused; no ref changed")
@pytest.mark.filterwarnings("default")
def test_a_late_commit_to_the_data_repository_is_refused(tmp_path: Path) -> None:
    late, present = _lost(tmp_path)
    world = make_tiny_world(tmp_path / "world")
    first = archive(world, NIGHTS[0], num_images=4, fence=present)
    message = ["git", "-C", world.config.paths.data_repo, "show", "-s", "--format=%B", first.revision]
    refs = Path(world.config.paths.data_repo) / ".git" / "refs"
    before = tree_digest(refs)
    for fence in (late, _Asleep(late.number)):
        with pytest.raises(StaleLeaseError):
            archive(world, NIGHTS[1], num_images=4, fence=fence)
    assert tree_digest(refs) == before
    # A fence is no part of a commit, or the same night would have another revision after a retry.
    assert "ence" not in subprocess.run(message, capture_output=True, text=True, check=True).stdout


@pytest.mark.chaos("the attempt that was given up registers a version", outcome="refused; no version")
@pytest.mark.filterwarnings("default")
def test_a_late_version_is_refused_by_the_registry(tmp_path: Path) -> None:
    late, present = _lost(tmp_path)
    mlflow = new_mlflow(tmp_path / "mlflow")
    registry = ModelRegistry(mlflow.tracking_uri, tmp_path / "models")
    run_id = open_run(mlflow, night(tmp_path))
    registry.register(CELLS, another_package(tmp_path / "present", 1), run_id=run_id, tags={}, fence=present)
    package = another_package(tmp_path / "late", 2)
    for fence in (late, _Asleep(late.number)):
        with pytest.raises(StaleLeaseError, match=f"written under fence {present.number}, this run's is {late.number}"):
            registry.register(CELLS, package, run_id=run_id, tags={}, fence=fence)
    assert len(registry.versions(CELLS)) == 1
    assert registry.champion(CELLS) is None
