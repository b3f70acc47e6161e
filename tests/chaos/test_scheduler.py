"""Airflow's own scheduler, or the database under it, killed in the middle of a night."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from components.cli.progress import watch
from components.core.errors import TransientError
from components.core.run_records import read_night
from components.local_stack.airflow import LocalAirflow, start_airflow
from components.local_stack.airflow_env import airflow_environment
from components.local_stack.processes import ProcessGroup, free_port
from components.promotion.alias_transaction import open_alias_manager
from tests.helpers.model_package import new_mlflow
from tests.helpers.mortal import mortal
from tests.helpers.postgres import postgres_server
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]

DAG_ID, NIGHT = f"nightly_retrain.{KEY.slug}", NIGHTS[0]
SCHEDULER = "airflow scheduler"


@dataclass(frozen=True, slots=True)
class _Site:
    """Airflow, and power over its processes."""

    airflow: LocalAirflow
    programs: ProcessGroup
    environment: dict[str, str]

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self.programs._running[name][0]

    def replace(self, name: str) -> None:
        """Start again what has ended, as the machine's service manager does."""
        process, log = self.programs._running.pop(name)
        process.wait(timeout=20)
        self.programs.start(name, process.args, self.environment, log)  # type: ignore[arg-type]

    def watch(self) -> str:
        """See the night to its end, and start again whatever of Airflow ends before it."""
        while True:
            try:
                return watch(self.airflow, DAG_ID, NIGHT)
            except TransientError as error:
                print(error)
                time.sleep(1)
                running = self.programs._running.items()
                for name in [name for name, (process, _) in running if process.poll() is not None]:
                    self.replace(name)


@contextlib.contextmanager
def _training(world: TinyWorld, monkeypatch: pytest.MonkeyPatch, services: Mapping[str, str]) -> Iterator[_Site]:
    """Airflow with a night that is being trained."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    new_mlflow(world.root / "mlflow")
    world.feed(NIGHT)
    home, port = world.root / "airflow", free_port()
    options = {"api_port": port, "scheduled": False, "services": services}
    with ProcessGroup(world.root / "state") as programs:
        airflow = start_airflow(programs, home, world.config_path, with_triggerer=False, **options)  # type: ignore[arg-type]
        airflow.wait_for_dag(DAG_ID)
        airflow.api.pause(DAG_ID, False)
        airflow.api.trigger(DAG_ID, NIGHT, NIGHT)
        deadline = time.monotonic() + 300
        while not (world.run(NIGHT).run_dir / "fine_tune").exists():
            assert time.monotonic() < deadline, "training did not start"
            time.sleep(0.02)
        environment = airflow_environment(home, world.config_path, **options)  # type: ignore[arg-type]
        yield _Site(airflow, programs, environment)


def _check_promoted_once(world: TinyWorld) -> None:
    """The end of a night in which nothing happened."""
    records = read_night(world.run(NIGHT))
    assert {record.outcome for record in records.values()} == {"SUCCEEDED"}
    assert len(list((world.run(NIGHT).run_dir / "fine_tune").glob("*/outputs.json"))) == 1
    client = MlflowClient(world.config.mlflow.tracking_uri, registry_uri=world.config.mlflow.tracking_uri)
    assert len(client.search_model_versions(f"name = '{KEY.registered_model}'")) == 1
    manager = open_alias_manager(
        KEY, work_dir=world.config.paths.work_dir, mlflow=world.config.mlflow, settings=world.config.promote
    )
    chain, posted = manager.snapshot()
    assert posted.aliases == {"champion": 1, "anchor": 1}
    assert [entry.body["champion"] for entry in chain.entries if entry.kind == "commit"] == [1]


@pytest.mark.chaos(
    "kill -9 of Airflow's scheduler and of every task it started, while a night is trained",
    outcome="a new scheduler takes the night up; promoted once",
)
def test_a_killed_scheduler_is_replaced_and_its_night_ends_as_if_it_had_lived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_tiny_world(tmp_path)
    with _training(world, monkeypatch, {}) as site:
        scheduler = psutil.Process(site.process(SCHEDULER).pid)
        for victim in [*scheduler.children(recursive=True), scheduler]:
            victim.kill()
        site.replace(SCHEDULER)
        assert "report" not in read_night(world.run(NIGHT))
        assert site.watch() == "success"
    _check_promoted_once(world)


@pytest.mark.chaos(
    "kill -9 of Airflow's scheduler alone, while the task it started trains on",
    outcome="a new scheduler takes the night up; trained and promoted once",
)
def test_a_task_that_outlives_its_scheduler_is_not_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_tiny_world(tmp_path)
    with _training(world, monkeypatch, {}) as site:
        scheduler = psutil.Process(site.process(SCHEDULER).pid)
        started = scheduler.children(recursive=True)
        scheduler.kill()
        try:
            site.replace(SCHEDULER)
            assert [task for task in started if task.is_running() and task.status() != psutil.STATUS_ZOMBIE]
            assert site.watch() == "success"
        finally:
            for orphan in started:  # a service manager ends them with the scheduler's control group
                with contextlib.suppress(psutil.NoSuchProcess):
                    orphan.kill()
    _check_promoted_once(world)


@pytest.mark.chaos(
    "PostgreSQL under Airflow itself is killed while a night is trained, and is back after ten seconds",
    outcome="whatever of Airflow ended over it is started again and takes the night up; promoted once",
)
def test_a_database_that_restarts_under_airflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_tiny_world(tmp_path)
    with (
        postgres_server() as database,
        mortal(database) as server,
        _training(world, monkeypatch, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database}) as site,
    ):
        server.kill()
        time.sleep(10)
        server.revive()
        assert site.watch() == "success"
    _check_promoted_once(world)
