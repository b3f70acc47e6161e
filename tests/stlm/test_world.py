"""Several processes of one training, on the CPU: their steps are those of one process."""

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from stlm.errors import ConfigError, TrainingDivergedError
from stlm.training import world
from stlm.training.checkpoint import Checkpointer
from stlm.training.steps import Shares, StageLoop, own_rows, parts_of, run_steps

STEPS, BATCH, COUNT = 6, 13, 2


def _draw(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=(BATCH, 3))).float()[own_rows(BATCH)]


def _loop(model: nn.Module, *, limit: float = math.inf, **changes: Any) -> StageLoop[torch.Tensor]:
    """Regression on random rows; where a row's target is above ``limit`` the loss is not finite."""

    def losses(inputs: torch.Tensor) -> Shares:
        targets = inputs.sum(dim=1, keepdim=True)
        for rows in parts_of(len(inputs), 2):
            error = (model(inputs[rows]) - targets[rows]).square()
            error = torch.where(targets[rows] > limit, torch.nan, error)
            yield len(error) / BATCH, {"square": error.mean(), "size": 1e-3 * model[0].weight.square().sum()}  # type: ignore[index]

    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    return StageLoop(
        model=model, name="fit", index=0, steps=STEPS, seed=7, optimizers=[optimizer], draw=_draw,
        losses=losses, rate=lambda step: 1.0, **changes,
    )  # fmt: skip


def _model(*, with_norm: bool = False) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), *([nn.BatchNorm1d(4)] if with_norm else []), nn.Tanh(), nn.Linear(4, 1))


def _member(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=COUNT)
    found = {}
    for task in (_trained, _with_norm, _diverging, _stopped, _refused):
        (place := Path(folder) / task.__name__).mkdir(exist_ok=True)
        world.wait_for_all()
        found[task.__name__] = task(rank, place)
    torch.save(found, f"{folder}/{rank}.pt")
    world.wait_for_all()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, by task."""
    folder = tmp_path_factory.mktemp("world")
    multiprocessing.spawn(_member, args=(str(folder),), nprocs=COUNT)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(COUNT)]


def _trained(rank: int, folder: Path) -> Any:
    del rank, folder
    model = _model()
    loop = _loop(model)
    assert run_steps(loop, None)
    return {"weights": model.state_dict(), "curve": loop.curves["fit"]}


def test_processes_that_share_a_batch_end_in_the_weights_of_one(members: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = _trained(0, tmp_path)
    for member in (found["_trained"] for found in members):
        for name, value in alone["weights"].items():
            torch.testing.assert_close(member["weights"][name], value, rtol=1e-4, atol=1e-6)
        assert [p["square"] for p in member["curve"]] == pytest.approx([p["square"] for p in alone["curve"]], rel=1e-4)


def _with_norm(rank: int, folder: Path) -> Any:
    model = _model(with_norm=True)
    checkpointer = Checkpointer(path=folder / "checkpoint.pt", identity="x", interval_s=0.0)
    assert run_steps(_loop(model, checkpointer=checkpointer), None)
    world.wait_for_all()
    saved = world.one_first(checkpointer.load)
    assert saved is not None
    assert saved["step"] == STEPS
    return {"mean": model[1].running_mean, "saved": saved["model"]["1.running_mean"]}  # type: ignore[index]


def test_running_statistics_are_the_mean_of_all_and_one_process_saves(members: list[dict[str, Any]]) -> None:
    first, second = (found["_with_norm"] for found in members)
    torch.testing.assert_close(first["mean"], second["mean"], rtol=0, atol=0)
    torch.testing.assert_close(first["mean"], first["saved"])


def _diverging(rank: int, folder: Path) -> Any:
    del rank, folder
    with pytest.raises(TrainingDivergedError, match="stage fit, step") as raised:
        run_steps(_loop(_model(), limit=1.5), None)
    return str(raised.value).partition("(")[0]


def test_a_loss_that_is_not_finite_in_one_process_stops_all_at_the_same_step(
    members: list[dict[str, Any]], tmp_path: Path
) -> None:
    said = [found["_diverging"] for found in members]
    assert said[0] == said[1] == _diverging(0, tmp_path)


def _stopped(rank: int, folder: Path) -> Any:
    checkpointer = Checkpointer(path=folder / "checkpoint.pt", identity="x", interval_s=1e9)
    checkpointer.load()
    checkpointer.stop_requested = rank == 1
    with pytest.raises(InterruptedError, match="after step 1"):
        run_steps(_loop(_model(), checkpointer=checkpointer), None)
    return (folder / "checkpoint.pt").exists()


def test_a_stop_that_one_process_is_asked_for_is_everyones(members: list[dict[str, Any]]) -> None:
    assert [found["_stopped"] for found in members] == [True, True]


def _refused(rank: int, folder: Path) -> Any:
    del rank, folder
    with pytest.raises(ConfigError, match="a batch of 1 cannot be shared by 2 processes"):
        own_rows(1)
    with pytest.raises(ConfigError, match="lets gradients pile up"):
        run_steps(_loop(_model(), clears=lambda step: step == 0), None)
    return world.any_of([world.is_first(), False], torch.device("cpu"))


def test_what_cannot_be_shared_is_refused_and_one_flag_is_everyones(members: list[dict[str, Any]]) -> None:
    assert [found["_refused"] for found in members] == [[True, False], [True, False]]


def _watched(model: nn.Module, *, ahead: int) -> tuple[StageLoop[torch.Tensor], list[bool]]:
    """A loop, and whether three batches beside its own were begun before the first step ended."""
    loop, begun, found = _loop(model, ahead=ahead), threading.Semaphore(0), list[bool]()
    losses = loop.losses

    def draw(rng: np.random.Generator) -> torch.Tensor:
        begun.release()
        return _draw(rng)

    def watched(batch: torch.Tensor) -> Shares:
        if not found:
            found.append(all(begun.acquire(timeout=5.0 if ahead else 0.01) for _ in range(4)))
        return losses(batch)

    loop.draw, loop.losses = draw, watched
    return loop, found


def test_batches_drawn_ahead_wait_for_no_step_and_are_the_same() -> None:
    models = [_model(), _model()]
    for model, ahead in zip(models, (0, 3), strict=True):
        loop, found = _watched(model, ahead=ahead)
        assert run_steps(loop, None)
        assert found == [ahead > 0]
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=0, atol=0)


def test_a_batch_that_cannot_be_drawn_ahead_stops_the_stage_and_leaves_no_thread() -> None:
    loop = _loop(_model(), ahead=2)
    steps = []

    def draw(rng: np.random.Generator) -> torch.Tensor:
        steps.append(rng)
        if len(steps) == 4:
            raise OSError("the disk is gone")
        return _draw(rng)

    loop.draw = draw
    with pytest.raises(OSError, match="the disk is gone"):
        run_steps(loop, None)
    assert len(loop.curves["fit"]) <= 3
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("draw")]


def test_one_process_is_a_world_of_its_own() -> None:
    assert (world.rank(), world.size(), world.is_first()) == (0, 1, True)
    assert world.one_first(lambda: 3) == 3
    assert own_rows(5) == slice(0, 5)
    assert parts_of(5, 2) == [slice(0, 3), slice(3, 5)]
    values = torch.tensor([1.0, 2.0])
    world.average([values])
    assert values.tolist() == [1.0, 2.0]
