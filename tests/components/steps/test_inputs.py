"""The one place that builds the inputs of a night's steps."""

import ast
import dataclasses
import importlib

import pytest

from components.core.run_records import STEPS
from components.local_stack.airflow_env import repository_root
from dags.nightly_retrain import _report_fields


@pytest.mark.parametrize("step", [*STEPS, "shadow"])
def test_no_input_of_a_step_is_left_to_its_default(step: str) -> None:
    name = f"{step.title().replace('_', '')}Inputs"
    tree = ast.parse((repository_root() / "components" / "steps" / "inputs.py").read_text(encoding="utf-8"))
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]
    passed = {keyword.arg for keyword in call.keywords if keyword.arg}
    if step == "report":
        passed |= set(_report_fields(*[None] * 9))
    wanted = getattr(importlib.import_module(f"components.steps.{step}.step"), name)
    assert passed == {field.name for field in dataclasses.fields(wanted)}
