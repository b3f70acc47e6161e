"""Airflow's own scheduler, killed in the middle of a night."""

import os
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from components._promotion.desk import open_desk
from components.airflow_env import airflow_environment
from components.console._airflow import start_airflow
from components.console._processes import Programs, free_port
from components.console._progress import watch
from components.night_record import read_night
from tests.helpers.model_package import new_mlflow
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]

DAG_ID = f"nightly_retrain.{KEY.slug}"


def _wait_for_step(world: TinyWorld, night: str, step: str) -> None:
    """Until a step of the night is at work."""
    deadline = time.monotonic() + 300
    while not (world.run(night).run_dir / step).exists():
        assert time.monotonic() < deadline, f"{step} did not start"
        time.sleep(0.02)


@pytest.mark.chaos(
    "kill -9 of Airflow's scheduler and of every task it started, while a night is trained",
    outcome="a new scheduler takes the night up; promoted once",
)
def test_a_killed_scheduler_is_replaced_and_its_night_ends_as_if_it_had_lived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    new_mlflow(tmp_path / "mlflow")
    world, night = make_tiny_world(tmp_path), NIGHTS[0]
    world.feed(night)
    home, port = tmp_path / "airflow", free_port()
    with Programs(tmp_path / "state") as programs:
        airflow = start_airflow(programs, home, world.config_path, api_port=port, scheduled=False, with_triggerer=False)
        airflow.wait_for_dag(DAG_ID)
        airflow.api.pause(DAG_ID, False)
        airflow.api.trigger(DAG_ID, night, night)
        _wait_for_step(world, night, "fine_tune")

        name = "airflow scheduler"
        process, log = programs._running.pop(name)
        scheduler = psutil.Process(process.pid)
        for victim in [*scheduler.children(recursive=True), scheduler]:
            victim.kill()
        process.wait()
        assert "report" not in read_night(world.run(night))
        environment = airflow_environment(home, world.config_path, api_port=port, scheduled=False)
        programs.start(name, process.args, environment, log)  # type: ignore[arg-type]

        assert watch(airflow, DAG_ID, night) == "success"

    records = read_night(world.run(night))
    assert {record.outcome for record in records.values()} == {"SUCCEEDED"}
    assert len(list((world.run(night).run_dir / "fine_tune").glob("*/outputs.json"))) == 1
    client = MlflowClient(world.config.mlflow.tracking_uri, registry_uri=world.config.mlflow.tracking_uri)
    assert len(client.search_model_versions(f"name = '{KEY.registered_model}'")) == 1
    desk = open_desk(
        KEY, work_dir=world.config.paths.work_dir, mlflow=world.config.mlflow, settings=world.config.promote
    )
    chain, posted = desk.look()
    assert posted.aliases == {"champion": 1, "anchor": 1}
    assert [entry.body["champion"] for entry in chain.entries if entry.kind == "commit"] == [1]
