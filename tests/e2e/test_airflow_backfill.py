"""Airflow's own backfill of three nights, under its own scheduler and from its own command line."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components.cli.progress import watch
from components.core.contracts import RunRef
from components.core.run_records import read_night
from components.local_stack.airflow import LocalAirflow, start_airflow
from components.local_stack.airflow_env import airflow_environment
from components.local_stack.processes import ProcessGroup, free_port
from tests.helpers.model_package import new_mlflow
from tests.helpers.old_nights import archive
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.filterwarnings("default")]

DAG_ID = f"nightly_retrain.{KEY.slug}"
BEFORE = "2026-02-28"


def _aliases(client: MlflowClient) -> dict[str, int]:
    aliases = client.get_registered_model(KEY.registered_model).aliases
    return {alias: int(version) for alias, version in aliases.items()}


def _create(world: TinyWorld, port: int, *options: str) -> None:
    """``airflow backfill create`` of the three nights."""
    env = airflow_environment(world.root / "airflow", world.config_path, api_port=port, scheduled=False)
    command = [sys.executable, "-m", "airflow", "backfill", "create", "--dag-id", DAG_ID]
    # A night's partition carries the hour of its schedule: the end of the range is the end of the last day.
    command += ["--from-date", NIGHTS[0], "--to-date", f"{NIGHTS[2]}T23:59:59", *options]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def _backfill_runs(airflow: LocalAirflow) -> list[dict[str, Any]]:
    path = f"/api/v2/dags/{DAG_ID}/dagRuns?run_type=backfill&limit=100"
    return list(airflow.api._call("GET", path)["dag_runs"])


def _backfills(airflow: LocalAirflow) -> list[dict[str, Any]]:
    return list(airflow.api._call("GET", f"/api/v2/backfills?dag_id={DAG_ID}")["backfills"])


def _ended(airflow: LocalAirflow, count: int) -> list[dict[str, Any]]:
    """All runs of backfills, oldest start first, once there are so many and Airflow calls every backfill completed.

    It does so some time after the last run has ended, and takes no other backfill of the DAG before.
    """
    deadline = time.monotonic() + 900
    while True:
        runs = _backfill_runs(airflow)
        ended = len(runs) == count and all(run["state"] in ("success", "failed") for run in runs)
        if ended and all(each["completed_at"] for each in _backfills(airflow)):
            return sorted(runs, key=lambda run: str(run["start_date"]))
        airflow.check()
        assert time.monotonic() < deadline, runs
        time.sleep(1)


def test_a_backfill_is_sequential_leaves_the_champion_alone_and_is_a_no_op_the_second_time(tmp_path: Path) -> None:
    new_mlflow(tmp_path / "mlflow")
    world = make_tiny_world(tmp_path)
    world.feed(BEFORE)
    port = free_port()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessGroup(tmp_path / "state") as programs:
        airflow = start_airflow(
            programs, tmp_path / "airflow", world.config_path, api_port=port, scheduled=False, with_triggerer=False
        )
        airflow.wait_for_dag(DAG_ID)
        airflow.api.pause(DAG_ID, False)
        airflow.api.trigger(DAG_ID, "first", BEFORE)
        assert watch(airflow, DAG_ID, "first") == "success"
        for night in NIGHTS:
            archive(world, night)

        _create(world, port, "--max-active-runs", "1")
        runs = _ended(airflow, 3)

        assert [(run["partition_key"], run["state"]) for run in runs] == [(night, "success") for night in NIGHTS]
        assert all(before["end_date"] <= after["start_date"] for before, after in itertools.pairwise(runs))
        client = MlflowClient(world.config.mlflow.tracking_uri)
        aliases = _aliases(client)
        assert aliases == {"champion": 1, "anchor": 1, "backfill-airflow": 4}
        parents = [_outputs(world, night, "fine_tune")["parent_version"] for night in NIGHTS]
        assert parents == [1, 2, 3]

        _create(world, port, "--max-active-runs", "1")
        assert len(_ended(airflow, 3)) == 3

        # Again and backwards: what would come too early is refused, and what was done is not done again.
        _create(world, port, "--max-active-runs", "1", "--reprocess-behavior", "completed", "--run-backwards")
        again = _ended(airflow, 6)[3:]
        assert [(run["partition_key"], run["state"]) for run in again] == [
            (NIGHTS[2], "failed"),
            (NIGHTS[1], "failed"),
            (NIGHTS[0], "success"),
        ]
        assert len(client.search_model_versions(f"name = '{KEY.registered_model}'")) == 4
        assert _aliases(client) == aliases


def _outputs(world: TinyWorld, night: str, step: str) -> dict[str, Any]:
    run = RunRef(key=KEY, partition=night, work_dir=world.config.paths.work_dir, backfill="airflow")
    return read_night(run)[step].outputs or {}
