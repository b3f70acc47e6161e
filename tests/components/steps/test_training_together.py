"""Several processes that share one training: really started by ``torchrun``, on the CPU."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from components.config import FineTuneSettings
from components.core.atomic_files import write_json
from components.core.contracts import CandidateRef
from components.core.errors import EXIT_TRANSIENT_ERROR, InputError
from components.core.step_runner import step_dir
from components.local_stack.airflow_env import repository_root
from components.steps.fine_tune.step import FineTuneInputs, fine_tune
from stlm.models.registry import load_model
from tests.components.steps.test_fine_tune import champion_from, inputs_for
from tests.helpers.tiny_nights import NIGHTS, make_tiny_world

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[FineTuneInputs]:
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0], num_images=20)
    threads = torch.get_num_threads()
    # Another number of threads is another order of sums, and other principal directions.
    yield _with(inputs_for(world, NIGHTS[0]), num_threads=1)
    torch.set_num_threads(threads)


def _with(inputs: FineTuneInputs, **changes: Any) -> FineTuneInputs:
    return dataclasses.replace(inputs, settings=dataclasses.replace(inputs.settings, **changes))


def _points(candidate: CandidateRef) -> list[dict[str, float]]:
    curves = json.loads(Path(candidate.curves_path).read_text(encoding="utf-8"))
    return [point for stage in ("masked_reconstruction", "pixel") for point in curves[stage]]


def _sum(point: dict[str, float]) -> float:
    return sum(value for name, value in point.items() if name != "step")


def test_two_processes_take_the_steps_of_one(alone: FineTuneInputs) -> None:
    one = fine_tune(alone)
    two = fine_tune(_with(alone, processes=2))

    assert two.num_steps == one.num_steps
    # The same draws but for dropout, and batch norm sees the halves of a batch.
    assert all(_sum(a) == pytest.approx(_sum(b), rel=0.15) for a, b in zip(_points(two), _points(one), strict=True))
    # The plain student knows neither dropout nor batch norm: before its first step the rows of both are those of one.
    assert _points(two)[0]["plain"] == pytest.approx(_points(one)[0]["plain"], rel=1e-4)
    package = Path(two.package_dir)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(load_model(package)(image).score).all()
    assert not {"trained", "corruptions", "error.json"} & {path.name for path in package.parent.iterdir()}


def test_a_later_night_goes_on_from_the_champion_together(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0], num_images=20)
    world.feed(NIGHTS[1], num_images=12)
    first = fine_tune(inputs_for(world, NIGHTS[0]))
    second = fine_tune(_with(inputs_for(world, NIGHTS[1], champion_from(first)), processes=2))
    assert second.parent_version == 1
    assert second.num_replay_images == world.config.fine_tune.replay_images


def test_what_is_wrong_in_a_process_is_told_as_if_there_were_one(alone: FineTuneInputs) -> None:
    with pytest.raises(InputError, match="a batch of 4 cannot be shared by 5 processes; start at most 4"):
        fine_tune(_with(alone, processes=5))
    assert not list(Path(step_dir("fine_tune", _with(alone, processes=5))).glob("outputs.json"))


@pytest.mark.slow
@pytest.mark.chaos(
    "SIGTERM to a training that several processes share", outcome="saved, worth a retry; the retry goes on from there"
)
def test_sigterm_reaches_every_process_and_the_next_attempt_resumes(alone: FineTuneInputs, tmp_path: Path) -> None:
    inputs = _with(alone, processes=2, checkpoint_seconds=0.0)
    process, folder = _started(inputs, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == EXIT_TRANSIENT_ERROR
    assert (folder / "checkpoint.pt").exists()
    assert _workers(folder) == []

    candidate = fine_tune(inputs)
    assert candidate.num_steps == len(_points(candidate))


@pytest.mark.slow
@pytest.mark.chaos(
    "kill -9 of a training that several processes share",
    outcome="its processes end with it; the retry goes on from there",
)
def test_processes_do_not_outlive_the_step_that_started_them(alone: FineTuneInputs, tmp_path: Path) -> None:
    inputs = _with(alone, processes=2, checkpoint_seconds=0.0)
    process, folder = _started(inputs, tmp_path)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while _workers(folder):
        assert time.monotonic() < deadline, "processes of a dead step train on"
        time.sleep(0.2)
    candidate = fine_tune(inputs)
    assert candidate.num_steps == len(_points(candidate))


def _started(inputs: FineTuneInputs, tmp_path: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """The step in a process of its own, in the middle of its training."""
    write_json(tmp_path / "in.json", inputs)
    command = [sys.executable, "-m", "components.steps", "fine_tune", "--inputs", str(tmp_path / "in.json")]
    process = subprocess.Popen([*command, "--outputs", str(tmp_path / "out.json")], env=os.environ)
    folder = step_dir("fine_tune", inputs)
    deadline = time.monotonic() + 300
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, folder


def _workers(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(folder) in words and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def test_a_process_does_not_train_on_for_another_one_that_got_its_owners_id() -> None:
    owner = psutil.Process()
    watch = "import sys; from components.steps.fine_tune.trainer import _end_with; _end_with(int(sys.argv[1]), 1.0)"

    done = subprocess.run([sys.executable, "-c", watch, str(owner.pid)], timeout=60, check=False, cwd=repository_root())

    assert done.returncode == 1


def test_bfloat16_learns_like_float32(alone: FineTuneInputs) -> None:
    wanted, found = _points(fine_tune(alone)), _points(fine_tune(_with(alone, precision="bf16")))
    assert found != wanted
    assert all(_sum(a) == pytest.approx(_sum(b), rel=0.1) for a, b in zip(found, wanted, strict=True))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        FineTuneSettings(processes=0)
