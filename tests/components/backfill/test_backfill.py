"""Old nights once more: planned, replayed beside what serves, and scored."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.adapters.data_repository import DataRepository
from components.adapters.run_lock import open_run_lock
from components.backfill.replay import BackfillInputs, evaluate_again, plan, replay
from components.cli import main as console
from components.config import load_config
from components.core.contracts import RunRef
from components.core.errors import InputError, TransientError
from components.core.run_records import StepRecord, write_record
from components.local_stack.airflow_env import repository_root
from tests.helpers.model_package import new_mlflow
from tests.helpers.old_nights import archive, backfill_inputs, corrupt, tree_digest, with_schedule
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def old_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Three nights in the data repository, none of them trained; no registry yet. Not to be changed."""
    world = make_tiny_world(tmp_path_factory.mktemp("old"))
    for night in NIGHTS:
        archive(world, night)
    return world


@pytest.fixture
def world(old_world: TinyWorld, tmp_path: Path) -> TinyWorld:
    """A copy of it, whose runs do not wait for the key."""
    root = shutil.copytree(old_world.root, tmp_path / "world", symlinks=True)
    path = root / old_world.config_path.name
    return with_schedule(TinyWorld(root=root, config_path=path, config=load_config(path)), lease_wait_s=0.0)


def _client(world: TinyWorld) -> MlflowClient:
    return MlflowClient(world.config.mlflow.tracking_uri)


def _aliases(world: TinyWorld) -> dict[str, int]:
    aliases = _client(world).get_registered_model(KEY.registered_model).aliases
    return {alias: int(version) for alias, version in aliases.items()}


def _actions(inputs: BackfillInputs) -> list[tuple[str, str, str]]:
    return [(row.night, row.replayed, row.action) for row in plan(inputs).nights]


@pytest.mark.slow
def test_two_nights_are_replayed_beside_what_serves_and_a_second_call_runs_nothing(
    world: TinyWorld,
) -> None:
    new_mlflow(world.root / "mlflow")
    inputs = backfill_inputs(world, *NIGHTS[:2])
    main_before = DataRepository(Path(world.config.paths.data_repo), world.config.paths.dvc_remote).nights(KEY)

    result = replay(inputs)

    first, second = result.nights
    assert (result.name, result.num_run, result.champion_version) == ("20260301-on-scratch", 2, None)
    assert first.model is not None
    assert second.model is not None
    run_lock = json.loads((Path(second.model.package_dir) / "lineage.json").read_text())
    assert run_lock["parent_candidate_key"] == first.model.candidate_key
    assert (run_lock["parent_version"], run_lock["partition"]) == (first.model.version, NIGHTS[1])
    assert _aliases(world) == {"backfill-20260301-on-scratch": second.model.version}
    tags = _client(world).get_model_version(KEY.registered_model, str(second.model.version)).tags
    assert (tags["stlm.backfill"], tags["stlm.partition"]) == (result.name, NIGHTS[1])
    repository = DataRepository(Path(world.config.paths.data_repo), world.config.paths.dvc_remote)
    assert repository.nights(KEY) == main_before
    log = ["git", "-C", world.config.paths.data_repo, "log", "--format=%s", f"backfill/{KEY.slug}/{result.name}"]
    subjects = subprocess.run(log, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [subject[:14] for subject in subjects] == ["Add 2026-03-02", "Add 2026-03-01", "Begin the data"]
    assert not (Path(world.config.paths.work_dir) / "index").exists()

    before = tree_digest(world.root)
    assert [action for *_, action in _actions(inputs)] == ["keep", "keep"]
    assert tree_digest(world.root) == before
    again = replay(inputs)
    assert (again.num_run, again.nights) == (0, result.nights)

    longer = backfill_inputs(world, NIGHTS[0], NIGHTS[2])
    assert [action for *_, action in _actions(longer)] == ["keep", "keep", "replay"]
    # Nights that were scored then are scored again, on the images of today.
    for night in (first, second):
        assert night.model is not None
        outputs = {"package_dir": night.model.package_dir}
        write_record(world.run(night.night), StepRecord(step="export", outcome="SUCCEEDED", seconds=1, outputs=outputs))
    scores = evaluate_again(inputs)
    assert [(row.night, row.same_golden_set) for row in scores.rows] == [(night, True) for night in NIGHTS[:2]]
    assert scores.rows[1].metrics["image_auroc"].value == second.metrics["image_auroc"]
    assert (Path(scores.folder) / "scores.html").read_text().count("<tr><td>") == 2
    assert evaluate_again(inputs) == scores
    assert len(_client(world).search_model_versions(f"name = '{KEY.registered_model}'")) == 2

    # Images that have changed make their night, and what was built on it, due again; the old revision stays.
    archive(world, NIGHTS[1], num_images=18, again=True)
    assert [(row.revision, row.num_images, row.replayed, row.action) for row in plan(longer).nights] == [
        (1, 16, first.verdict, "keep"),
        (2, 18, "outdated", "replay"),
        (1, 16, "", "replay"),
    ]
    changed = replay(inputs)
    assert changed.num_run == 1
    assert changed.nights[0] == first
    assert changed.nights[1].revision.revision == 2
    tags_then = subprocess.run(
        ["git", "-C", world.config.paths.data_repo, "tag", "--list", "backfill/*"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert f"backfill/{KEY.slug}/{result.name}/{KEY.slug}/{NIGHTS[1]}-r2" in tags_then
    assert f"backfill/{KEY.slug}/{result.name}/{KEY.slug}/{NIGHTS[1]}" in tags_then


def test_a_plan_shows_nights_and_sizes_and_changes_nothing(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree_digest(world.root)

    arguments = ["backfill", "--from", NIGHTS[0], "--to", NIGHTS[2], "--plan", "--key", KEY.path]
    assert console(["--config", str(world.config_path), "--state", str(world.root / "state"), *arguments]) == 0

    assert tree_digest(world.root) == before
    shown = capsys.readouterr().out
    assert "Backfill 20260301-on-scratch of tiles.line1.cam1; ancestor: none" in shown
    assert "2026-03-02       16     1    1  -            -            replay   unknown" in shown
    assert "3 of 3 nights to replay, expected time unknown" in shown


def test_the_expected_time_comes_from_earlier_records(world: TinyWorld) -> None:
    outputs = {"batch": {"num_images": 16}}
    write_record(world.run(NIGHTS[0]), StepRecord(step="collect", outcome="SUCCEEDED", seconds=2, outputs=outputs))
    write_record(world.run(NIGHTS[0]), StepRecord(step="fine_tune", outcome="SUCCEEDED", seconds=50))
    verdict = {"verdict": "REJECT"}
    write_record(world.run(NIGHTS[0]), StepRecord(step="gate", outcome="SUCCEEDED", seconds=12, outputs=verdict))

    planned = plan(backfill_inputs(world, NIGHTS[0], NIGHTS[1]))

    assert [(row.original, row.expected_s) for row in planned.nights] == [("REJECT", 64.0), ("", 64.0)]
    assert planned.expected_s == 128.0


@pytest.mark.chaos("a corrupt old night in a backfill", outcome="the chain stops there, naming it")
def test_a_corrupt_night_stops_the_chain_and_can_be_marked_as_a_gap(world: TinyWorld) -> None:
    new_mlflow(world.root / "mlflow")
    corrupt(world, NIGHTS[0])
    inputs = backfill_inputs(world, NIGHTS[0], NIGHTS[0])

    with pytest.raises(InputError, match=r"stops at night 2026-03-01, .* collect: .*/000.png.* --skip-bad"):
        replay(inputs)
    assert _actions(inputs) == [(NIGHTS[0], "", "replay")]

    result = replay(dataclasses.replace(inputs, skip_bad=True))

    assert "000.png" in result.nights[0].gap
    assert _actions(inputs) == [(NIGHTS[0], "gap", "keep")]
    assert replay(inputs).num_run == 0


def test_a_key_that_a_nightly_run_holds_is_locked(world: TinyWorld) -> None:
    run_lock = open_run_lock(
        KEY,
        work_dir=world.config.paths.work_dir,
        promote=world.config.promote,
        schedule=world.config.schedule,
    )
    with (
        run_lock.held("nightly run 2026-03-03 (scheduled)", release=True),
        pytest.raises(TransientError, match=r"locked by nightly run 2026-03-03 \(scheduled\): .* one at a time"),
    ):
        replay(backfill_inputs(world, *NIGHTS[:2]))
    assert not RunRef(key=KEY, partition=NIGHTS[0], work_dir=world.config.paths.work_dir, backfill="x").run_dir.exists()


def test_two_backfills_of_one_key_at_once_are_refused(world: TinyWorld) -> None:
    short = with_schedule(world, lease_s=1.0)
    config = short.config
    run_lock = open_run_lock(KEY, work_dir=config.paths.work_dir, promote=config.promote, schedule=config.schedule)
    with (
        run_lock.held("backfill 20260301-on-v7 abc", release=True),
        pytest.raises(TransientError, match="locked by backfill 20260301-on-v7 abc"),
    ):
        replay(backfill_inputs(short, *NIGHTS[:2]))


@pytest.mark.chaos("kill -9 of a backfill at its fifth night of ten", outcome="goes on at the fifth; the same lineage")
@pytest.mark.slow
def test_a_replay_killed_at_the_fifth_of_ten_nights_goes_on_at_the_fifth(tmp_path: Path) -> None:
    new_mlflow(tmp_path / "mlflow")
    world = make_tiny_world(tmp_path)
    text = world.config_path.read_text().replace("[schedule]", "[schedule]\nlease_s = 5.0")
    world.config_path.write_text(text)
    world = dataclasses.replace(world, config=load_config(world.config_path))
    ten = [f"2026-03-{day:02d}" for day in range(1, 11)]
    for night in ten:
        archive(world, night, num_images=8)
    inputs = backfill_inputs(world, ten[0], ten[-1])

    def replayed(night: str) -> Path:
        run = RunRef(key=KEY, partition=night, work_dir=world.config.paths.work_dir, backfill="20260301-on-scratch")
        return run.run_dir

    command = [sys.executable, "-m", "components.cli", "--config", str(world.config_path), "--state"]
    command += [str(tmp_path / "state"), "backfill", "--from", ten[0], "--to", ten[-1]]
    with subprocess.Popen(command, cwd=repository_root(), stdout=subprocess.DEVNULL) as process:
        while not (replayed(ten[4]) / "fine_tune").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    before = {night: (replayed(night) / "replayed.json").read_bytes() for night in ten[:4]}
    assert not (replayed(ten[4]) / "replayed.json").exists()

    result = replay(inputs)

    assert result.num_run == 6
    assert {night: (replayed(night) / "replayed.json").read_bytes() for night in ten[:4]} == before
    assert [of.model is not None and of.model.version for of in result.nights] == list(range(1, 11))
    assert len(_client(world).search_model_versions(f"name = '{KEY.registered_model}'")) == 10
    assert replay(inputs).num_run == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "2026-02-30", "--to", "2026-03-02"], "first must be a night, YYYY-MM-DD, got '2026-02-30'"),
        (["--from", "2026-03-01", "--to", "tomorrow"], "last must be a night, YYYY-MM-DD, got 'tomorrow'"),
        (["--from", "2026-03-03", "--to", "2026-03-01"], "nights run forwards only"),
        (["--from", "2026-04-01", "--to", "2026-04-03"], "has no night of tiles.line1.cam1 from 2026-04-01"),
        (["--from", "2026-03-01", "--to", "2026-03-02", "--key", "tiles/line1/cam9"], "unknown model key"),
        (["--from", "2026-03-01", "--to", "2026-03-02", "--key", "../x"], "unknown model key"),
        (["--from", "2026-03-02", "--to", "2026-03-03", "--ancestor", "latest"], "ancestor must be a night"),
        (["--from", "2026-03-02", "--to", "2026-03-03", "--ancestor", "2026-03-01"], "there is no registry yet"),
        (["--from", "2026-03-01", "--to", "2026-03-02", "--mode", "evaluate-only", "--plan"], "belong to a replay"),
        (["--from", "2026-03-01", "--to", "2026-03-02", "--mode", "evaluate-only"], "is left to score"),
    ],
)
def test_bad_parameters_are_refused_in_one_line_before_anything_is_changed(
    old_world: TinyWorld, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree_digest(old_world.root)
    state = old_world.root / "state"
    assert console(["--config", str(old_world.config_path), "--state", str(state), "backfill", *arguments]) == 65
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert tree_digest(old_world.root) == before
