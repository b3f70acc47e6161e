"""Who may know whom is held by import-linter; here: what a fresh interpreter loads."""

import json
import os
import subprocess
import sys

import pytest

from components.core.telemetry import TELEMETRY_OFF
from components.local_stack.airflow_env import repository_root

ROOT = repository_root()
HEAVY = ["airflow", "boto3", "dvc", "great_expectations", "mlflow", "numpy", "pandas", "PIL", "torch"]


def _loaded(module: str) -> list[str]:
    script = f"import json, sys, {module}; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    loaded: list[str] = json.loads(result.stdout)
    return loaded


@pytest.mark.parametrize(
    "module",
    [
        "stlm",
        "components",
        "components.core.contracts",
        "components.config",
        "components.core.step_runner",
        "components.core.errors",
        "components.core.run_records",
        "components.local_stack.airflow_env",
        "components.cli",
    ],
)
def test_what_starts_often_loads_nothing_heavy(module: str) -> None:
    assert _loaded(module) == []


def test_the_library_works_without_the_pipeline() -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "stlm").rglob("*.py")
        if path.name not in {"__init__.py", "pyfunc.py"}  # what MLflow loads may know MLflow
    )
    assert {"airflow", "boto3", "dvc", "great_expectations", "mlflow"}.isdisjoint(_loaded(", ".join(modules)))


def test_whatever_is_imported_first_telemetry_is_off_unless_a_user_wants_it() -> None:
    script = "import os, {}; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ.get('GX_ANALYTICS_ENABLED'))"
    bare = {name: value for name, value in os.environ.items() if name not in TELEMETRY_OFF}

    def said(module: str, **environment: str) -> list[str]:
        command = [sys.executable, "-c", script.format(module)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=bare | environment)
        return done.stdout.split()

    assert said("components.steps.gate.step") == said("components.cli") == ["1", "false"]
    assert said("stlm.serving.predictor") == ["1", "None"]
    assert said("components.cli", ORT_DISABLE_TELEMETRY="0") == ["0", "false"]
