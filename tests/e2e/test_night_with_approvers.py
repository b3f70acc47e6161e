"""Nights that people decide, under Airflow's own scheduler: the question, who may answer, and silence."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.cli.ledger import alias_manager_of
from components.config import load_config
from components.core.contracts import PromotionRef
from components.core.errors import InputError
from components.core.run_records import read_night
from components.local_stack.airflow import LocalAirflow, password, start_airflow
from components.local_stack.airflow_api import AirflowApi
from components.local_stack.processes import ProcessGroup, free_port
from components.local_stack.workspace import Workspace, open_workspace
from tests.helpers.model_package import new_mlflow
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DAG_ID = f"nightly_retrain.{KEY.slug}"
PEOPLE = ("ada", "bob", "eve")


def _world(root: Path, hours: float) -> tuple[TinyWorld, Workspace]:
    new_mlflow(root / "mlflow")
    world = make_tiny_world(root)
    text = world.config_path.read_text()
    setting = f'recipe = "tiny"\napprovers = ["ada", "bob"]\napproval_hours = {hours}'
    world.config_path.write_text(text.replace('recipe = "tiny"', setting))
    world = TinyWorld(root=root, config_path=world.config_path, config=load_config(world.config_path))
    return world, open_workspace(str(world.config_path), str(root / "state"))


@contextlib.contextmanager
def _airflow(workspace: Workspace) -> Iterator[LocalAirflow]:
    with ProcessGroup(workspace.state) as programs:
        airflow = start_airflow(
            programs,
            workspace.airflow_home,
            workspace.config_path,
            api_port=free_port(),
            scheduled=False,
            with_triggerer=False,
            people=PEOPLE,
        )
        airflow.wait_for_dag(DAG_ID)
        airflow.api.pause(DAG_ID, False)
        yield airflow


def _until(airflow: LocalAirflow, check: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        airflow.check()
        if found := check():
            return found
        time.sleep(0.5)
    raise AssertionError("waited for too long")


def _ended(airflow: LocalAirflow, run_id: str, dag_id: str = DAG_ID) -> str:
    def state() -> str:
        found = str((airflow.api.run(dag_id, run_id) or {}).get("state"))
        return found if found in {"success", "failed"} else ""

    return str(_until(airflow, state))


def _waits(airflow: LocalAirflow, run_id: str) -> bool:
    tasks = {task["task_id"]: task["state"] for task in airflow.api.task_instances(DAG_ID, run_id)}
    assert "failed" not in tasks.values(), tasks
    return tasks.get("approve") == "awaiting_input"


def _answer(airflow: LocalAirflow, user: str, run_id: str, option: str) -> None:
    api = AirflowApi(airflow.url, user=user, password=password(airflow.home, user))
    place = f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"
    api._call("PATCH", place, {"chosen_options": [option], "params_input": {}})


def _by_hand(airflow: LocalAirflow, user: str, *, by: str) -> str:
    api = AirflowApi(airflow.url, user=user, password=password(airflow.home, user))
    conf = {"key": KEY.slug, "candidate": "1", "reason": "wanted", "by": by}
    body = {"dag_run_id": f"by-{user}", "logical_date": None, "conf": conf}
    api._call("POST", "/api/v2/dags/promote_model/dagRuns", body)
    return _ended(airflow, f"by-{user}", "promote_model")


def test_only_an_approver_lets_a_candidate_in_and_the_ledger_keeps_the_name(tmp_path: Path) -> None:
    world, workspace = _world(tmp_path, 1)
    world.feed(NIGHTS[0])
    with _airflow(workspace) as airflow:
        airflow.api.trigger(DAG_ID, "night", NIGHTS[0])
        _until(airflow, lambda: _waits(airflow, "night"))
        shown = airflow.api._call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns/night/taskInstances/approve/-1/hitlDetails")
        for nobody in ("eve", "admin"):
            with pytest.raises(InputError, match="is not a respondent"):
                _answer(airflow, nobody, "night", "Approve")
        assert _waits(airflow, "night")
        _answer(airflow, "bob", "night", "Approve")
        assert _ended(airflow, "night") == "success"

        # By hand, the account counts, not the name that somebody types.
        airflow.api.pause("promote_model", False)
        assert _by_hand(airflow, "admin", by="ada") == "failed"
        assert _by_hand(airflow, "ada", by="ada") == "success"

    records = read_night(world.run(NIGHTS[0]))
    promotion = PromotionRef.from_json(records["promote"].outputs)
    assert (promotion.outcome, promotion.champion_version) == ("PROMOTED", 1)
    package = records["export"].outputs
    assert package is not None
    assert package["digest"] in shown["body"]
    body = alias_manager_of(workspace, world.config.models[0]).snapshot()[0].entries[-1].body
    assert (body["by"], body["record"]["approver"]) == ("bob", "bob")
    assert body["record"]["approval"]["package_digest"] == package["digest"]


def test_silence_leaves_the_champion_and_the_night_succeeds(tmp_path: Path) -> None:
    world, workspace = _world(tmp_path, 6 / 3600)
    world.feed(NIGHTS[0])
    with _airflow(workspace) as airflow:
        airflow.api.trigger(DAG_ID, "silent", NIGHTS[0])
        assert _ended(airflow, "silent") == "success"

    promotion = PromotionRef.from_json(read_night(world.run(NIGHTS[0]))["promote"].outputs)
    assert (promotion.outcome, promotion.version, promotion.champion_version) == ("REFUSED", 1, None)
    assert promotion.detail == "version 1 is registered; none of ada, bob answered in time, which is a no"
    assert alias_manager_of(workspace, world.config.models[0]).snapshot()[0].entries == ()
