"""What hosted runs and hooks call is what a developer calls, and nothing else; types travel with the wheel."""

import re

import pytest
import yaml

from components.local_stack.airflow_env import repository_root

ROOT = repository_root()


def test_the_hosted_workflow_calls_ci_run_and_nothing_else() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]

    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert {step["uses"].partition("@")[0] for step in steps if "uses" in step} == {
        "actions/checkout",
        "actions/setup-python",
    }
    assert [step["with"]["python-version"] for step in steps if "with" in step] == ["3.11"]


def test_the_hook_calls_make_check_and_nothing_else() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]] == ["make check"]
    assert {repo["repo"] for repo in hooks["repos"]} == {"local"}


def test_ci_run_calls_make_alone() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert [re.match(r"make [a-z]+", command) is not None for command in commands] == [True, True]
    assert any(command.startswith("make test") for command in commands)


@pytest.mark.parametrize("package", ["components", "dags", "stlm"])
def test_types_travel_with_the_packages(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
