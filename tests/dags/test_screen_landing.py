"""The wiring of the screening: two tasks, started by hand, with a work folder of their own."""

import ast
import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

from components.config import load_config
from components.core.run_records import StepRecord, begin_step, read_night, write_record
from components.local_stack.airflow_env import repository_root
from dags.screen_landing import screen_landing
from tests.dags.test_nightly_retrain import HEAVY
from tests.helpers.tiny_nights import NIGHTS, make_tiny_world


@pytest.fixture(scope="module")
def dag() -> DAG:
    config = load_config(repository_root() / "infra" / "quickstart.toml")
    return screen_landing(config, config.models[0])


def test_screening_waits_for_collecting_and_starts_by_hand_only(dag: DAG) -> None:
    assert {task.task_id: set(task.downstream_task_ids) for task in dag.tasks} == {
        "collect": {"screen"},
        "screen": set(),
    }
    assert dag.schedule is None
    assert (dag.max_active_runs, dag.catchup) == (1, False)
    assert all((task.doc_md or "").strip() for task in dag.tasks)
    with pytest.raises(ParamValidationError):
        dag.params["partition"] = "yesterday"


def test_one_dag_per_key_and_nothing_heavy_when_the_file_is_read(tmp_path: Path) -> None:
    path = make_tiny_world(tmp_path).config_path
    script = (
        "import json, sys, time, airflow.sdk\n"
        "started = time.perf_counter()\n"
        "import dags.screen_landing as module\n"
        "seconds = time.perf_counter() - started\n"
        f"print(json.dumps([seconds, [n for n in {HEAVY} if n in sys.modules], sorted(module.DAGS)]))\n"
    )
    environment = os.environ | {"STLM_CONFIG": str(path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    seconds, heavy, dag_ids = json.loads(result.stdout.splitlines()[-1])

    assert dag_ids == ["screen_landing.tiles.line1.cam1"]
    assert heavy == []
    assert seconds < 1.0


@pytest.mark.parametrize(
    ("module", "name"), [("steps.collect.step", "CollectInputs"), ("annotation.screen", "ScreenInputs")]
)
def test_no_input_is_left_to_its_default(module: str, name: str) -> None:
    tree = ast.parse((repository_root() / "dags" / "screen_landing.py").read_text(encoding="utf-8"))
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]
    wanted = getattr(importlib.import_module(f"components.{module}"), name)

    assert {keyword.arg for keyword in call.keywords} == {field.name for field in dataclasses.fields(wanted)}


def test_a_step_outside_the_night_leaves_the_nights_records_alone(tmp_path: Path) -> None:
    run = make_tiny_world(tmp_path).run(NIGHTS[0])
    write_record(run, StepRecord(step="collect", outcome="SUCCEEDED", seconds=1.0))

    begin_step(run, "screen")

    assert set(read_night(run)) == {"collect"}
