"""The wiring: what depends on what, when it runs, and what reading the file costs."""

import datetime as dt
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

from components.config import MlflowSettings, load_config
from components.core.contracts import Approval, Verdict
from components.core.run_records import STEPS
from components.local_stack.airflow_env import repository_root
from dags._approval import AskApprovers
from dags.nightly_retrain import nightly_retrain
from tests.helpers.promotion import inputs_for
from tests.helpers.tiny_nights import make_tiny_world

HEAVY = ("torch", "mlflow", "dvc", "great_expectations", "pandas", "numpy", "boto3")


@pytest.fixture(scope="module")
def dag() -> DAG:
    config = load_config(repository_root() / "infra" / "quickstart.toml")
    return nightly_retrain(config, config.models[0])


def test_every_step_waits_for_what_it_reads(dag: DAG) -> None:
    assert {task.task_id: set(task.downstream_task_ids) for task in dag.tasks} == {
        "collect": {"version", "report"},
        "version": {"validate", "fine_tune", "promote", "report"},
        "validate": {"fine_tune", "evaluate", "export", "promote", "report"},
        "fine_tune": {"evaluate", "export", "promote", "report"},
        "evaluate": {"export", "gate", "promote", "report"},
        "export": {"gate", "promote", "report"},
        "gate": {"promote", "report"},
        "promote": {"report", "finish"},
        "report": {"finish"},
        "finish": set(),
    }


def test_approvers_are_asked_between_gate_and_promotion_and_nobody_else_can_answer(tmp_path: Path) -> None:
    path = make_tiny_world(tmp_path).config_path
    path.write_text(path.read_text().replace('recipe = "tiny"', 'recipe = "tiny"\napprovers = ["ada", "bob"]'))
    config = load_config(path)
    dag = nightly_retrain(config, config.models[0])
    ask = dag.task_dict["approve"]
    assert ask.upstream_task_ids == {"gate", "export"}
    assert ask.downstream_task_ids == {"promote"}
    assert isinstance(ask, AskApprovers)
    assert ask.assigned_users == [{"id": "ada", "name": "ada"}, {"id": "bob", "name": "bob"}]
    assert (ask.options, ask.defaults) == (["Approve", "Reject"], ["Reject"])
    assert ask.response_timeout == dt.timedelta(hours=24)


def test_a_challenger_is_scored_before_the_nights_own_candidate_comes_up(tmp_path: Path) -> None:
    path = make_tiny_world(tmp_path).config_path
    path.write_text(path.read_text().replace('recipe = "tiny"', 'recipe = "tiny"\nshadow_nights = 2'))
    config = load_config(path)
    dag = nightly_retrain(config, config.models[0])
    assert dag.task_dict["shadow"].upstream_task_ids == {"version", "validate"}
    assert dag.task_dict["shadow"].downstream_task_ids == {"fine_tune", "report"}
    assert dag.task_dict["shadow"].pool == "promotion"


@pytest.mark.parametrize(
    "settings", ["", "shadow_nights = 2", 'approvers = ["ada"]', 'shadow_nights = 2\napprovers = ["ada"]']
)
def test_of_two_steps_that_hold_the_key_one_always_waits_for_the_other(tmp_path: Path, settings: str) -> None:
    path = make_tiny_world(tmp_path).config_path
    path.write_text(path.read_text().replace('recipe = "tiny"', f'recipe = "tiny"\n{settings}'))
    config = load_config(path)
    dag = nightly_retrain(config, config.models[0])
    holders = [task for task in dag.tasks if task.task_id in {*STEPS, "shadow"}]

    together = [
        (one.task_id, other.task_id)
        for one, other in itertools.combinations(holders, 2)
        if other.task_id not in one.get_flat_relative_ids(upstream=True)
        and one.task_id not in other.get_flat_relative_ids(upstream=True)
    ]

    assert len(holders) == len(STEPS) + ("shadow" in settings)
    assert together == []


def test_a_candidate_that_did_not_pass_is_not_asked_about(tmp_path: Path) -> None:
    inputs = inputs_for(tmp_path, MlflowSettings(tracking_uri="", artifact_root=""), verdict=Verdict.REJECT)
    ask = AskApprovers(
        task_id="approve",
        approvers=["ada"],
        hours=1,
        model="m",
        package=inputs.package.to_json(),
        decision=inputs.decision.to_json(),
    )
    answer = Approval.from_json(ask.execute({}))
    assert (answer.answer, answer.by) == ("NOT_ASKED", "")
    assert (answer.candidate_key, answer.package_digest) == (inputs.package.candidate_key, inputs.package.digest)


def test_an_answer_is_about_what_was_asked_and_no_answer_is_a_no(tmp_path: Path) -> None:
    ask = AskApprovers(task_id="approve", approvers=["ada"], hours=1, model="m", package={}, decision={})
    asked = {"candidate_key": "c" * 64, "package_digest": "d" * 64}
    event = {
        "chosen_options": ["Approve"],
        "params_input": {},
        "responded_at": dt.datetime(2026, 3, 1, 8, tzinfo=dt.UTC),
        "responded_by_user": {"id": "ada", "name": "Ada"},
        "timedout": False,
    }
    said = Approval.from_json(ask.execute_complete({}, event, asked))
    assert said == Approval(answer="APPROVED", by="ada", at="2026-03-01T08:00:00+00:00", **asked)
    rejected = event | {"chosen_options": ["Reject"]}
    assert Approval.from_json(ask.execute_complete({}, rejected, asked)).answer == "REJECTED"
    silence = rejected | {"responded_by_user": None, "timedout": True}
    assert Approval.from_json(ask.execute_complete({}, silence, asked)) == Approval(answer="TIMED_OUT", **asked)


def test_tasks_are_named_like_components_and_say_what_they_do(dag: DAG) -> None:
    assert {task.task_id for task in dag.tasks} == {*STEPS, "finish"}
    assert all((task.doc_md or "").strip() for task in dag.tasks if task.task_id != "finish")


def test_the_report_runs_whatever_happened_and_the_run_fails_where_a_step_failed(dag: DAG) -> None:
    rules = {task.task_id: task.trigger_rule.value for task in dag.tasks}
    assert rules.pop("report") == "all_done"
    assert rules.pop("finish") == "none_failed"
    assert set(rules.values()) == {"all_success"}


def test_scarce_things_have_pools_that_the_set_up_makes(dag: DAG) -> None:
    pools = {task.task_id: task.pool for task in dag.tasks if task.pool != "default_pool"}
    assert pools == {"version": "dvc", "fine_tune": "gpu", "promote": "promotion"}
    made = json.loads((repository_root() / "infra" / "airflow" / "pools.json").read_text())
    assert {name: pool["slots"] for name, pool in made.items()} == {"dvc": 1, "gpu": 1, "promotion": 1}


def test_steps_are_tried_again_as_the_configuration_says(tmp_path: Path) -> None:
    config = make_tiny_world(tmp_path).config
    tasks = nightly_retrain(config, config.models[0]).task_dict
    assert {tasks[step].retries for step in STEPS} == {1}
    assert {tasks[step].retry_delay.total_seconds() for step in STEPS} == {0.5}


def test_nights_of_a_key_run_one_after_the_other_without_catching_up(dag: DAG) -> None:
    assert dag.max_active_runs == 1
    assert dag.catchup is False
    assert dag.start_date is not None
    assert dag.start_date.isoformat() == "2026-01-01T00:00:00+00:00"
    assert dag.timetable.key_format == "%Y-%m-%d"
    assert dag.tags == {"nightly_retrain", "elpv-mono", "line1", "cam1"}


@pytest.mark.parametrize("partition", ["2026-13-01", "yesterday", "01.03.2026", 20260301])
def test_a_night_that_is_no_date_is_refused_before_any_task_runs(dag: DAG, partition: object) -> None:
    with pytest.raises(ParamValidationError):
        dag.params["partition"] = partition


def test_one_dag_per_model_key_comes_out_of_the_configuration(tmp_path: Path) -> None:
    path = make_tiny_world(tmp_path).config_path
    second = '[[models]]\nproduct = "tiles"\nline = "line1"\ncamera = "cam2"\ngolden = "golden"\nrecipe = "tiny"\n'
    path.write_text(path.read_text() + second)
    script = (
        "import json, sys, time, airflow.sdk, airflow.providers.standard.operators.empty\n"
        "started = time.perf_counter()\n"
        "import dags.nightly_retrain as module\n"
        "seconds = time.perf_counter() - started\n"
        "import dags.promote_model, dags.rollback_model\n"
        f"print(json.dumps([seconds, [n for n in {HEAVY} if n in sys.modules], sorted(module.DAGS)]))\n"
    )
    environment = os.environ | {"STLM_CONFIG": str(path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    seconds, heavy, dag_ids = json.loads(result.stdout.splitlines()[-1])
    assert dag_ids == ["nightly_retrain.tiles.line1.cam1", "nightly_retrain.tiles.line1.cam2"]
    assert heavy == []
    assert seconds < 1.0
