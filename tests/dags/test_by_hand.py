"""The DAGs that a person starts: what the trigger form refuses, and that the task does what the command line does."""

import ast
import dataclasses
import importlib

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

from components.config import PipelineConfig, load_config
from components.local_stack.airflow_env import repository_root
from dags import promote_model as promote_model_file
from dags import rollback_model as rollback_model_file
from dags._run import with_account
from dags.promote_model import promote_model
from dags.rollback_model import rollback_model

PERSON = {"key": "elpv-mono.line1.cam1", "reason": "false alarms", "by": "Ada"}


@pytest.fixture(scope="module")
def config() -> PipelineConfig:
    return load_config(repository_root() / "infra" / "quickstart.toml")


def _validate(dag: DAG, **given: object) -> None:
    for name, value in given.items():
        dag.params[name] = value
    dag.params.validate()


@pytest.mark.parametrize("make", [promote_model, rollback_model])
def test_it_is_started_by_hand_and_has_one_task_that_says_what_it_does(config: PipelineConfig, make: object) -> None:
    dag = make(config)  # type: ignore[operator]
    (task,) = dag.tasks
    assert dag.schedule is None
    assert (task.doc_md or "").strip()
    assert task.retries == config.schedule.retries
    assert task.pool == ("promotion" if dag.dag_id == "promote_model" else "default_pool")


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "bolts.line1.cam1"},
        {"candidate": "latest"},
        {"candidate": "0"},
        {"candidate": "abc123"},
        {"candidate": 7},
        {"reason": "  "},
        {"reason": None},
        {"by": ""},
    ],
)
def test_a_wrong_value_starts_no_promotion(config: PipelineConfig, wrong: dict[str, object]) -> None:
    _validate(promote_model(config), **PERSON, candidate="3")
    _validate(promote_model(config), **PERSON, candidate="0123456789ab")
    with pytest.raises(ParamValidationError):
        _validate(promote_model(config), **(PERSON | {"candidate": "3"} | wrong))


@pytest.mark.parametrize("wrong", [{"key": "elpv"}, {"to": 0}, {"to": "3"}, {"to": -1}, {"reason": ""}, {"by": " "}])
def test_a_wrong_value_starts_no_roll_back(config: PipelineConfig, wrong: dict[str, object]) -> None:
    _validate(rollback_model(config), **PERSON)
    _validate(rollback_model(config), **PERSON, to=2)
    with pytest.raises(ParamValidationError):
        _validate(rollback_model(config), **(PERSON | wrong))


@pytest.mark.parametrize("missing", ["reason", "by", "candidate"])
def test_a_value_that_is_not_given_starts_no_promotion(config: PipelineConfig, missing: str) -> None:
    given = {name: value for name, value in (PERSON | {"candidate": "3"}).items() if name != missing}
    with pytest.raises(ParamValidationError, match="No value passed"):
        _validate(promote_model(config), **given)


@pytest.mark.parametrize(
    ("dag", "module", "name"),
    [
        ("promote_model", "promotion.manual", "PromoteByHandInputs"),
        ("rollback_model", "promotion.rollback", "RollbackInputs"),
    ],
)
def test_no_input_is_left_to_its_default(dag: str, module: str, name: str) -> None:
    tree = ast.parse((repository_root() / "dags" / f"{dag}.py").read_text(encoding="utf-8"))
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]
    wanted = getattr(importlib.import_module(f"components.{module}"), name)
    assert {keyword.arg for keyword in call.keywords} == {field.name for field in dataclasses.fields(wanted)}


def test_the_ledger_is_told_of_an_account_that_is_not_the_name_given() -> None:
    assert [with_account("ada", account) for account in (None, "", "ada", "admin")] == [
        "ada",
        "ada",
        "ada",
        "ada (account admin)",
    ]


def test_reading_the_files_makes_the_two_dags() -> None:
    assert [*promote_model_file.DAGS, *rollback_model_file.DAGS] == ["promote_model", "rollback_model"]
