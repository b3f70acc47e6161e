"""What is old goes and can be told beforehand; what the ledger names, and what is at work, does not."""

import contextlib
import datetime as dt
import os
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components import retention as component
from components.adapters.mlflow.tracking import list_artifacts, log_artifacts, open_run
from components.adapters.run_lock import open_run_lock
from components.cli import main
from components.cli.ledger import alias_manager_of
from components.cli.maintenance import retention
from components.core.atomic_files import write_json
from components.core.contracts import RunRef
from components.core.errors import EXIT_TRANSIENT_ERROR
from components.core.run_records import StepRecord, read_night, write_record
from components.local_stack.workspace import Workspace, open_workspace
from components.retention import RetentionInputs, delete_expired, plan_retention
from tests.helpers.model_package import new_mlflow
from tests.helpers.old_nights import tree_digest
from tests.helpers.promotion import make_champion
from tests.helpers.receivers import web_server
from tests.helpers.tiny_nights import KEY, TinyWorld, make_tiny_world

NAME = KEY.registered_model
NAMED, STALE, REJECTED, CRASHED, AGAIN, YOUNG = (
    "2026-03-01",
    "2026-03-02",
    "2026-03-03",
    "2026-03-04",
    "2026-03-05",
    "2026-06-01",
)
TODAY = dt.date(2026, 6, 10)
LONG_AGO = dt.datetime(2026, 3, 6, tzinfo=dt.UTC).timestamp()


def night(world: TinyWorld, partition: str, number: int, *, ended: bool = True) -> RunRef:
    """A night as its steps leave it, with a little of everything."""
    run = world.run(partition)
    for place in (
        "collect/images/a/1.png", "collect/taken.json", "version/f/outputs.json", "validate/f/outputs.json",
        "fine_tune/f/images/1.png", "fine_tune/f/package/model.safetensors", "evaluate/f/outputs.json",
        "export/f/package/model.onnx", "report/f/report.html",
    ):  # fmt: skip
        (run.run_dir / place).parent.mkdir(parents=True, exist_ok=True)
        (run.run_dir / place).write_bytes(b"x" * 100)
    write_json(run.run_dir / "fine_tune" / "f" / "outputs.json", {"candidate_key": str(number) * 64})
    for step in ("collect", "fine_tune", *(["report"] if ended else [])):
        write_record(run, StepRecord(step=step, outcome="SUCCEEDED", seconds=1))
    run_id = open_run(world.config.mlflow, run)
    log_artifacts(world.config.mlflow, run_id, run.run_dir / "report" / "f" / "report.html", "report")
    log_artifacts(world.config.mlflow, run_id, run.run_dir / "export" / "f" / "package", f"model/{str(number) * 16}")
    for path in run.run_dir.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    mlflow = new_mlflow(root / "mlflow")
    world = make_tiny_world(root)
    for number, partition in enumerate((NAMED, STALE, REJECTED, CRASHED, AGAIN, YOUNG), 1):
        night(world, partition, number, ended=partition != CRASHED)
    client = MlflowClient(tracking_uri=mlflow.tracking_uri, registry_uri=mlflow.tracking_uri)
    client.create_registered_model(NAME)
    for number, partition in ((1, NAMED), (2, STALE), (6, YOUNG)):
        tags = {
            "stlm.candidate_key": str(number) * 64,
            "stlm.package_digest": str(number) * 64,
            "stlm.partition": partition,
        }
        client.create_model_version(NAME, f"{root}/model-{number}", tags=tags)
    workspace = open_workspace(str(world.config_path), str(root / "state"))
    make_champion(alias_manager_of(workspace, world.config.models[0]), 1, partition=NAMED, candidate_key="1" * 64)
    for version in (1, 2):
        package = root / "work" / "models" / NAME / str(version)
        package.mkdir(parents=True)
        (package / "model.onnx").write_bytes(b"x" * 100)
        os.utime(package, (LONG_AGO, LONG_AGO))
    return root


@pytest.fixture
def world(tmp_path: Path, template: Path) -> TinyWorld:
    """The nights in this test's own folder; MLflow's artifacts stay in the template's, and are put back."""
    root = tmp_path / "world"
    kept = template.with_name("artifacts-kept")
    if not kept.exists():
        shutil.copytree(template / "mlflow" / "artifacts", kept)
    shutil.rmtree(template / "mlflow" / "artifacts")
    shutil.copytree(kept, template / "mlflow" / "artifacts")
    shutil.copytree(template, root)
    return TinyWorld(root=root, config_path=root / "pipeline.toml", config=workspace_of(root).config)


def workspace_of(root: Path) -> Workspace:
    return open_workspace(str(root / "pipeline.toml"), str(root / "state"))


def inputs_of(world: TinyWorld, days: int = 30) -> RetentionInputs:
    config = world.config
    return RetentionInputs(
        key=KEY,
        work_dir=config.paths.work_dir,
        mlflow=config.mlflow,
        promote=config.promote,
        schedule=config.schedule,
        older_than_days=days,
        today=TODAY.isoformat(),
    )


def files(run: RunRef) -> set[str]:
    return {
        path.relative_to(run.run_dir).as_posix()
        for path in run.run_dir.rglob("*")
        if path.is_file() and "records" not in path.parts
    }


def artifacts(world: TinyWorld, partition: str) -> set[str]:
    run_id = open_run(world.config.mlflow, world.run(partition))
    return {top for top in ("report", "model") if list_artifacts(world.config.mlflow, run_id, top, depth=1)}


@pytest.fixture
def _touched_again(world: TinyWorld) -> None:
    yesterday = dt.datetime(2026, 6, 9, tzinfo=dt.UTC).timestamp()
    os.utime(world.run(AGAIN).run_dir / "records" / "report.json", (yesterday, yesterday))


@pytest.mark.usefixtures("_touched_again")
def test_only_what_is_old_ended_and_unnamed_goes(world: TinyWorld) -> None:
    whole = {partition: files(world.run(partition)) for partition in (CRASHED, AGAIN, YOUNG)}

    found = delete_expired(inputs_of(world))

    assert {partition: files(world.run(partition)) for partition in whole} == whole
    copies = {"collect/images/a/1.png", "fine_tune/f/images/1.png"}
    assert files(world.run(NAMED)) == whole[YOUNG] - copies
    for partition in (STALE, REJECTED):
        # Which lots it took and where its data are, or the next night would take them again.
        assert files(world.run(partition)) == {"collect/taken.json", "version/f/outputs.json"}
        assert set(read_night(world.run(partition))) == {"collect", "fine_tune", "report"}
    assert artifacts(world, NAMED) == artifacts(world, YOUNG) == {"report", "model"}
    assert artifacts(world, STALE) == artifacts(world, REJECTED) == set()
    uri = world.config.mlflow.tracking_uri
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    assert {int(version.version) for version in client.search_model_versions(f"name = '{NAME}'")} == {1, 3}
    downloads = Path(world.config.paths.work_dir) / "models" / NAME
    assert {path.name for path in downloads.iterdir()} == {"1"}
    assert found.kept == (
        f"night {CRASHED}: it did not end",
        "1 nights whose candidates the ledger names; only copies of their images go",
    )
    assert delete_expired(inputs_of(world)).doomed == ()


def test_the_plan_is_what_the_sweep_does_and_changes_nothing(world: TinyWorld) -> None:
    before = tree_digest(Path(world.config.paths.work_dir))
    planned = plan_retention(inputs_of(world))
    assert tree_digest(Path(world.config.paths.work_dir)) == before
    assert delete_expired(inputs_of(world)) == planned
    assert planned.num_bytes > 0


def test_a_sweep_that_was_killed_anywhere_is_finished_by_the_next(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.rmtree
    for alive in range(0, 16, 3):
        left = alive

        def dies(path: str | Path) -> None:
            nonlocal left
            left -= 1
            assert not Path(path, "outputs.json").exists()  # or a step would find half of its files
            if left < 0:
                raise KeyboardInterrupt
            real(path)

        monkeypatch.setattr(component.shutil, "rmtree", dies)
        with contextlib.suppress(KeyboardInterrupt):
            delete_expired(inputs_of(world))
    monkeypatch.setattr(component.shutil, "rmtree", real)
    delete_expired(inputs_of(world))
    assert delete_expired(inputs_of(world)).doomed == ()
    assert files(world.run(REJECTED)) == {"collect/taken.json", "version/f/outputs.json"}
    assert "fine_tune/f/package/model.safetensors" in files(world.run(NAMED))


def test_nothing_is_deleted_while_a_run_has_the_key(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree_digest(world.root / "work" / "runs")
    config = world.config
    run_lock = open_run_lock(KEY, work_dir=config.paths.work_dir, promote=config.promote, schedule=config.schedule)
    with run_lock.held("nightly run 2026-06-10", release=True):
        code = retention(workspace_of(world.root), key="", days=30, only_plan=False, today=TODAY)
    assert code == EXIT_TRANSIENT_ERROR
    assert "a run is at work, nothing was deleted" in capsys.readouterr().out
    assert tree_digest(world.root / "work" / "runs") == before


def test_a_broken_ledger_stops_it_before_anything_is_deleted(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = world.root / "work" / "ledger" / NAME / "00000001.json"
    entry.write_bytes(entry.read_bytes().replace(b"verdict PROMOTE", b"verdict of Eve.."))
    before = tree_digest(world.root / "work" / "runs")
    assert main(["--config", str(world.config_path), "retention", "--older-than", "30"]) == 65
    assert "altered" in capsys.readouterr().err
    assert tree_digest(world.root / "work" / "runs") == before


def test_people_see_what_would_be_freed(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    assert retention(workspace_of(world.root), key="", days=30, only_plan=True, today=TODAY) == 0
    out = capsys.readouterr().out
    assert f"{KEY.slug}: would free" in out
    assert f"night {REJECTED}: checkpoints, candidate and page\n" in out
    assert "version 2, which never served\n" in out
    assert f"kept  night {CRASHED}: it did not end\n" in out


def test_a_trial_message_tells_which_channel_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STLM_WEBHOOK_SECRET", "s")
    world = make_tiny_world(tmp_path)
    arguments = ["--config", str(world.config_path), "notify"]
    assert main(arguments) == 65
    assert "nobody is to be told" in capsys.readouterr().err
    with web_server(200, 400) as web:
        told = f'[notify]\nattempts = 1\nwebhook_url = "http://127.0.0.1:{web.port}/"\n'
        world.config_path.write_text(world.config_path.read_text() + told)
        assert [main(arguments), main(arguments)] == [0, 1]
    assert capsys.readouterr().out == "webhook  delivered\nwebhook  webhook at 127.0.0.1 answered 400\n"
