"""The nightly DAG as a backfill's run, and beside one, without a scheduler."""

from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.models.dagrun import DagRun
from airflow.sdk.exceptions import ParamValidationError
from mlflow import MlflowClient

from components.adapters.run_lock import open_run_lock
from components.backfill.replay import plan
from components.cli.summary import verdict_of
from components.core.contracts import RunRef
from components.core.run_records import is_finished, read_night
from tests.helpers.model_package import new_mlflow
from tests.helpers.old_nights import archive, backfill_inputs, with_schedule
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world

pytestmark = pytest.mark.filterwarnings("default")

RunNight = Callable[..., dict[str, str]]


def _aliases(client: MlflowClient) -> dict[str, int]:
    aliases = client.get_registered_model(KEY.registered_model).aliases
    return {alias: int(version) for alias, version in aliases.items()}


@pytest.fixture
def run_night(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> RunNight:
    """Runs a night with ``dag.test()``; gives the state of every task, and of the run under the name "run"."""

    def run(world: TinyWorld, night: str, **params: str) -> dict[str, str]:
        from dags.nightly_retrain import nightly_retrain

        monkeypatch.setenv("STLM_CONFIG", str(world.config_path))
        dag = nightly_retrain(world.config, world.config.models[0])
        dag_run: DagRun = dag.test(run_conf={"partition": night, **params})
        return {ti.task_id: str(ti.state) for ti in dag_run.get_task_instances()} | {"run": str(dag_run.state)}

    return run


@pytest.mark.chaos("a nightly run meets a backfill", outcome="skipped as locked; its lots stay")
def test_a_nightly_run_that_does_not_get_the_key_is_skipped_and_its_lots_stay(
    tmp_path: Path, run_night: RunNight
) -> None:
    world = with_schedule(make_tiny_world(tmp_path), lease_wait_s=0.0)
    world.feed(NIGHTS[0])
    config = world.config
    run_lock = open_run_lock(KEY, work_dir=config.paths.work_dir, promote=config.promote, schedule=config.schedule)

    with run_lock.held("backfill 20260201-on-v3 abc", release=True):
        states = run_night(world, NIGHTS[0])
        assert run_lock.holder() == "backfill 20260201-on-v3 abc"

    assert states.pop("run") == states.pop("finish") == "success"
    assert set(states.values()) == {"skipped"}
    records = read_night(world.run(NIGHTS[0]))
    assert records["collect"].detail.startswith("locked by backfill 20260201-on-v3 abc: ")
    assert (is_finished(records), verdict_of(records)) == (False, "LOCKED")
    assert not (world.run(NIGHTS[0]).run_dir / "collect").exists()
    assert not (tmp_path / "data-repo").exists()


def test_a_backfill_without_a_proper_name_starts_no_task(tmp_path: Path, run_night: RunNight) -> None:
    with pytest.raises(ParamValidationError):
        run_night(make_tiny_world(tmp_path), NIGHTS[0], backfill="../main")
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_runs_of_a_backfill_replay_nights_in_order_beside_the_champion(tmp_path: Path, run_night: RunNight) -> None:
    new_mlflow(tmp_path / "mlflow")
    world = with_schedule(make_tiny_world(tmp_path), lease_wait_s=0.0)
    world.feed(NIGHTS[0])
    assert run_night(world, NIGHTS[0])["run"] == "success"
    for night in NIGHTS[1:]:
        archive(world, night)
    client = MlflowClient(world.config.mlflow.tracking_uri)

    def replayed(night: str) -> RunRef:
        return RunRef(key=KEY, partition=night, work_dir=world.config.paths.work_dir, backfill="again")

    second = run_night(world, NIGHTS[1], backfill="again")
    assert set(second.values()) == {"success"}
    third = run_night(world, NIGHTS[2], backfill="again")
    assert set(third.values()) == {"success"}
    before = run_night(world, NIGHTS[0], backfill="again")
    assert (before["collect"], before["run"]) == ("failed", "failed")
    assert "begins with night 2026-03-02" in read_night(replayed(NIGHTS[0]))["collect"].detail

    aliases = _aliases(client)
    assert aliases == {"champion": 1, "anchor": 1, "backfill-again": 3}
    records = [read_night(replayed(night)) for night in NIGHTS[1:]]
    assert [of["promote"].outputs["outcome"] for of in records if of["promote"].outputs] == ["REPLAYED", "REPLAYED"]
    parents = [of["fine_tune"].outputs["parent_version"] for of in records if of["fine_tune"].outputs]
    assert parents == [1, 2]
    judged = [of["evaluate"].outputs["champion_version"] for of in records if of["evaluate"].outputs]
    assert judged == [1, 1]
    # A plan of the same nights is another backfill, named for its ancestor, and knows nothing of this one.
    assert plan(backfill_inputs(world, NIGHTS[1], NIGHTS[2])).name == "20260302-on-v1"

    # Once more changes nothing.
    assert set(run_night(world, NIGHTS[1], backfill="again").values()) == {"success"}
    assert len(client.search_model_versions(f"name = '{KEY.registered_model}'")) == 3
    assert _aliases(client)["champion"] == 1
