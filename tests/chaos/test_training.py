"""A night's training on a machine that lets it down: memory, disk, checkpoint, a second attempt beside the first."""

import contextlib
import dataclasses
import json
import pickle
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from components.core import step_runner as _cli
from components.core.contracts import CandidateRef
from components.core.errors import InputError, TransientError
from components.core.step_runner import step_dir
from components.steps.fine_tune.step import FineTuneInputs, fine_tune
from tests.components.steps.test_fine_tune import inputs_for
from tests.helpers.tiny_nights import NIGHTS, make_tiny_world

pytestmark = pytest.mark.filterwarnings("default")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Night:
    """What is to be trained, and what an undisturbed run makes of it."""

    inputs: FineTuneInputs
    folder: Path
    undisturbed: CandidateRef
    curves: dict[str, list[dict[str, float]]]

    def files(self) -> set[str]:
        """What lies in the step's folder, but for the images."""
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Night:
    world = make_tiny_world(tmp_path_factory.mktemp("world"))
    world.feed(NIGHTS[0], num_images=12)
    inputs = inputs_for(world, NIGHTS[0])
    # A checkpoint after every step.
    inputs = dataclasses.replace(inputs, settings=dataclasses.replace(inputs.settings, checkpoint_seconds=0.0))
    undisturbed = fine_tune(inputs)
    curves = json.loads(Path(undisturbed.curves_path).read_text(encoding="utf-8"))
    return Night(inputs=inputs, folder=step_dir("fine_tune", inputs), undisturbed=undisturbed, curves=curves)


@pytest.fixture
def night(trained: Night) -> Night:
    """Nothing is trained yet; the images are there."""
    for path in trained.folder.iterdir():
        if path.name != "images":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return trained


@contextlib.contextmanager
def out_of_memory(monkeypatch: pytest.MonkeyPatch, *, first: int, last: int) -> Iterator[list[int]]:
    """The device refuses the backward passes ``first`` to ``last``, from 1; counts all of them."""
    real, passes = torch.Tensor.backward, [0]

    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        passes[0] += 1
        if first <= passes[0] <= last:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", backward)
        yield passes


def _interrupted(night: Night, monkeypatch: pytest.MonkeyPatch, *, after: int) -> Path:
    """A checkpoint in the middle of the training."""
    with out_of_memory(monkeypatch, first=after + 1, last=10_000), pytest.raises(InputError):
        fine_tune(night.inputs)
    return night.folder / "checkpoint.pt"


@pytest.mark.chaos(
    "the device runs out of memory once", outcome="once more with half of each batch at a time; the same steps"
)
def test_out_of_memory_halves_what_is_on_the_device_and_not_the_batch(
    night: Night, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = night.undisturbed.num_steps
    with out_of_memory(monkeypatch, first=4, last=4) as passes:
        candidate = fine_tune(night.inputs)

    assert candidate.num_steps == steps
    assert passes[0] == 4 + 2 * (steps - 3)  # three steps were done, and are not done again
    assert "out of memory, going on with half of each batch at a time" in caplog.text
    curves = json.loads(Path(candidate.curves_path).read_text(encoding="utf-8"))
    expected, points = ([point for stage in night.curves for point in found[stage]] for found in (night.curves, curves))
    assert points[:3] == expected[:3]
    # From the same weights nearly the same losses: batch norm sees the halves. Adam then makes more of the difference.
    assert points[3] == pytest.approx(expected[3], rel=0.05)
    assert all(
        sum(point.values()) == pytest.approx(sum(wanted.values()), rel=0.1)
        for wanted, point in zip(expected, points, strict=True)
    )


@pytest.mark.chaos("the device runs out of memory for half a batch, too", outcome="refused for good, saying what to do")
def test_out_of_memory_twice_is_refused_and_leaves_no_candidate(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        out_of_memory(monkeypatch, first=4, last=5) as passes,
        pytest.raises(InputError, match=r"ran out of memory.* half of each batch.* set fine_tune\.device: CUDA out of"),
    ):
        fine_tune(night.inputs)
    assert passes[0] == 5
    assert not {"outputs.json", "package"} & night.files()
    # On another device, or on this one when it is free again.
    assert fine_tune(night.inputs).weights_sha256 == night.undisturbed.weights_sha256


@pytest.mark.slow
@pytest.mark.chaos("a checkpoint cut short", outcome="put aside; the same weights bit by bit")
def test_a_truncated_checkpoint_costs_time_and_nothing_else(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _interrupted(night, monkeypatch, after=5)
    with checkpoint.open("rb+") as file:
        file.truncate(checkpoint.stat().st_size // 2)
    assert fine_tune(night.inputs).weights_sha256 == night.undisturbed.weights_sha256
    assert "checkpoint.damaged" in night.files()


class _Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.chaos("a checkpoint that is a pickle with code in it", outcome="put aside; no code runs; the same weights")
@pytest.mark.parametrize("form", [pytest.param("plain", marks=pytest.mark.slow), "torch's"])
def test_a_checkpoint_with_code_in_it_is_put_aside_unrun(night: Night, tmp_path: Path, form: str) -> None:
    evil = {"identity": _Evil(tmp_path / "was here")}
    path = night.folder / "checkpoint.pt"
    if form == "plain":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path)
    assert fine_tune(night.inputs).weights_sha256 == night.undisturbed.weights_sha256
    assert not (tmp_path / "was here").exists()
    assert "checkpoint.damaged" in night.files()


@contextlib.contextmanager
def no_room_beyond(num_bytes: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.chaos("the disk is full", outcome="tried again later, naming the folder; no half file; the same weights")
@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=pytest.mark.slow) for w in ("checkpoint.pt", "corruptions")] + ["inputs.json"]
)
def test_a_full_disk_is_told_as_what_it_is_and_leaves_no_half_file(
    night: Night, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    inputs = night.inputs
    if what == "checkpoint.pt":
        checkpoint = _interrupted(night, monkeypatch, after=1)
        room = checkpoint.stat().st_size - 1
        checkpoint.unlink()
    else:
        settings = dataclasses.replace(inputs.settings, checkpoint_seconds=3600.0)
        inputs = dataclasses.replace(inputs, settings=settings)
        shutil.rmtree(step_dir("fine_tune", inputs))
        room = 100_000 if what == "corruptions" else 0  # more than the images and less than a shard; nothing at all
    folder = step_dir("fine_tune", inputs)

    with no_room_beyond(room), pytest.raises(TransientError, match=r"fine_tune: .*File too large; make room"):
        fine_tune(inputs)

    assert not (folder / "checkpoint.part").exists()
    assert not (folder / "outputs.json").exists()
    assert fine_tune(inputs).weights_sha256 == night.undisturbed.weights_sha256


@pytest.mark.chaos("two attempts of one step alive at once", outcome="one works, the other takes its outputs")
def test_of_two_attempts_one_trains_and_the_other_finds_its_outputs(
    night: Night, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fine_tune, [night.inputs] * 2)
    assert first == second
    assert first.weights_sha256 == night.undisturbed.weights_sha256
    assert caplog.text.count("step=fine_tune remembered") == 1
    assert caplog.text.count("fine_tune steps=") == 1


@pytest.mark.chaos("an attempt that was given up hangs", outcome="the next one waits, then ends as worth a retry")
def test_an_attempt_that_hangs_is_named_and_its_folder_left_alone(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cli, "_ANOTHER_ATTEMPT_S", 0.1)
    with (
        FileLock(night.folder / ".lock"),
        pytest.raises(TransientError, match=r"another attempt has been at work in .*when it is done"),
    ):
        fine_tune(night.inputs)
    assert night.files() <= {"images", ".lock"}
