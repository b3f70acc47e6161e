"""Two nights under Airflow's own scheduler, in processes of its own, through the console."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.run_records import read_night
from components.local_stack.airflow_env import repository_root
from tests.helpers.model_package import new_mlflow
from tests.helpers.tiny_nights import NIGHTS, TinyWorld, make_tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _stlm(world: TinyWorld, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.cli", "--config", str(world.config_path)]
    command += ["--state", str(world.root / "state"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ), cwd=repository_root()
    )


def test_nights_run_under_the_scheduler_and_a_second_call_finds_them_done(tmp_path: Path) -> None:
    new_mlflow(tmp_path / "mlflow")
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0])

    # The second night finds an empty landing zone.
    first = _stlm(world, "nightly", "--night", NIGHTS[0], "--night", NIGHTS[1])

    assert first.returncode == 0, first.stdout + first.stderr
    assert "Night 2026-03-01 of tiles.line1.cam1: promoted, champion is version 1" in first.stdout
    assert "Night 2026-03-02 of tiles.line1.cam1: nothing new, champion untouched" in first.stdout
    records = [read_night(world.run(night)) for night in NIGHTS[:2]]

    second = _stlm(world, "nightly", "--night", NIGHTS[0], "--night", NIGHTS[1])

    assert second.returncode == 0
    assert "nothing was run" in second.stdout
    assert [read_night(world.run(night)) for night in NIGHTS[:2]] == records
    assert "OK       pools: gpu 1, dvc 1, promotion 1" in _stlm(world, "doctor").stdout
    assert not (tmp_path / "state" / "running.json").exists()


def test_a_failed_night_fails_the_command_and_says_why(tmp_path: Path) -> None:
    new_mlflow(tmp_path / "mlflow")
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0], dark=True)

    result = _stlm(world, "nightly", "--night", NIGHTS[0])

    assert result.returncode == 1
    assert "  FAILED     validate: " in result.stdout
    assert "  page       " in result.stdout
