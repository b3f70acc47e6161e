"""The plain loop below every stage: steps, learning rates, checkpoints, limits; it stops where a loss is not finite."""

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from stlm.errors import ConfigError, TrainingDivergedError
from stlm.training import world
from stlm.training.checkpoint import Checkpointer

__all__ = ["FitResult", "Point", "Shares", "StageLoop", "autocast", "draws_ahead", "own_rows", "parts_of", "run_steps"]

logger = logging.getLogger(__name__)
BatchT = TypeVar("BatchT")
Point = dict[str, float]
Shares = Iterable[tuple[float, dict[str, Tensor]]]
"""For each part of a batch: its share of the batch, and the terms of its loss."""
_AHEAD = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """How training went."""

    num_steps: int
    curves: dict[str, list[Point]]
    """Stage -> points with the losses of each step."""
    complete: bool
    """False when the time limit ended a stage early."""


def _always(step: int) -> bool:
    del step
    return True


@dataclass(kw_only=True)
class StageLoop(Generic[BatchT]):
    """What a stage repeats."""

    model: nn.Module
    name: str
    index: int
    """Of the stage among those of the night."""
    steps: int
    seed: int
    optimizers: Sequence[torch.optim.Optimizer]
    """At their full learning rates."""
    draw: Callable[[np.random.Generator], BatchT]
    """This process's rows of a batch, by the step's own generator and nothing that a step changes."""
    losses: Callable[[BatchT], Shares]
    """A part's loss is computed when the one before is done with."""
    rate: Callable[[int], float]
    """Step -> factor on every learning rate."""
    ahead: int | None = None
    """Batches that threads draw while a step computes; ``None``: as :func:`draws_ahead` has it."""
    clears: Callable[[int], bool] = _always
    """Step -> whether gradients of earlier steps are forgotten before it."""
    watch: Callable[[str, int, int], None] | None = None
    """Called with the stage's name, its steps done and all of them, the model in evaluation mode; must leave it so."""
    checkpointer: Checkpointer | None = None
    deadline_s: float = math.inf
    """On the checkpointer's clock; the stage ends at the next step after it."""
    curves: dict[str, list[Point]] = field(default_factory=dict)
    """Stage -> points; this stage appends its own."""


def run_steps(loop: StageLoop[BatchT], resumed: dict[str, Any] | None) -> bool:
    """Train one stage in place.

    Args:
        loop: What to repeat, and limits.
        resumed: State of this stage from a checkpoint, or ``None``.

    Returns:
        True when all steps were done, False when the deadline came first.

    Raises:
        TrainingDivergedError: A loss is not finite.
        ConfigError: There are more processes than images in a batch, or the stage lets gradients pile up.
        InterruptedError: The checkpointer was asked to stop; its file holds the state.
    """
    if world.size() > 1 and not all(loop.clears(step) for step in range(loop.steps)):
        raise ConfigError(f"stage {loop.name} lets gradients pile up, which several processes cannot share")
    full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in loop.optimizers]
    first = _resume(loop, resumed) if resumed is not None else 0
    loop.model.train()
    steps = tqdm(range(first, loop.steps), initial=first, total=loop.steps, desc=loop.name, unit="step", disable=None)
    try:
        with contextlib.closing(_batches(loop, first)) as batches:
            for step, (noise_seed, batch) in zip(steps, batches, strict=True):
                torch.manual_seed(noise_seed + world.rank())  # dropout: each process has rows of its own
                _prepare(loop, step, full_rates)
                values = _backward(loop, step, batch)
                for optimizer in loop.optimizers:
                    optimizer.step()
                _record(loop, step, values)
                if loop.watch is not None:
                    loop.model.eval()
                    loop.watch(loop.name, step + 1, loop.steps)
                    loop.model.train()
                if loop.checkpointer is not None and not _goes_on(loop, loop.checkpointer, step):
                    return False
        world.average(_running_statistics(loop.model))
    finally:
        loop.model.eval()
    return True


def _prepare(loop: StageLoop[Any], step: int, full_rates: Sequence[Sequence[float]]) -> None:
    """Set the step's learning rates, and forget the gradients of earlier ones where it is time to."""
    factor = loop.rate(step)
    for optimizer, rates in zip(loop.optimizers, full_rates, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        if loop.clears(step):
            optimizer.zero_grad(set_to_none=True)


def _batches(loop: StageLoop[BatchT], first: int) -> Generator[tuple[int, BatchT]]:
    """Each step's seed of its noise, and its batch."""

    def draw(step: int) -> tuple[int, BatchT]:
        rng = np.random.default_rng([loop.seed, loop.index, step])
        return int(rng.integers(2**31)), loop.draw(rng)

    ahead = draws_ahead(next(loop.model.parameters()).device) if loop.ahead is None else loop.ahead
    if ahead == 0:
        yield from map(draw, range(first, loop.steps))
        return
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="draw")
    try:
        waiting: deque[Future[tuple[int, BatchT]]] = deque()
        for step in range(first, loop.steps):
            waiting.append(pool.submit(draw, step))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def draws_ahead(device: torch.device) -> int:
    """How many batches to draw while a step computes.

    At 1024 px a corruption takes a core about as long as a GPU takes for its step, or longer. On a CPU drawing would
    only take from the step what it gives to the next one.
    """
    return 0 if device.type == "cpu" else _AHEAD


def _goes_on(loop: StageLoop[Any], checkpointer: Checkpointer, step: int) -> bool:
    """Save where it is time to; False when there is no time left."""
    flags = (checkpointer.due(), checkpointer.stop_requested, checkpointer.clock() > loop.deadline_s)
    due, stopped, late = world.any_of(flags, next(loop.model.parameters()).device)
    if due:
        world.average(_running_statistics(loop.model))
        if world.is_first():
            checkpointer.save(_state(loop, step + 1))
        else:
            checkpointer.saved_elsewhere()
        world.wait_for_all()
    if stopped:
        raise InterruptedError(f"stage {loop.name} stopped after step {step + 1}")
    if late:
        logger.warning("stage=%s stopped by its time limit at step %d", loop.name, step + 1)
    return not late


def _running_statistics(model: nn.Module) -> list[Tensor]:
    """Of batch norm: each process has seen its own rows only."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


def own_rows(count: int) -> slice:
    """This process's share of a batch.

    Args:
        count: Rows of the whole batch.

    Returns:
        At least one of them.

    Raises:
        ConfigError: There are more processes than rows.
    """
    rank, size = world.rank(), world.size()
    if count < size:
        raise ConfigError(f"a batch of {count} cannot be shared by {size} processes; start at most {count}")
    return slice(count * rank // size, count * (rank + 1) // size)


def parts_of(count: int, parts: int) -> list[slice]:
    """``count`` rows in at most so many runs of one length, but for the last."""
    length = max(1, math.ceil(count / parts))
    return [slice(first, min(first + length, count)) for first in range(0, count, length)]


def autocast(device: torch.device, *, bf16: bool) -> torch.autocast:
    """Products are taken in bfloat16 within it, if they shall be."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def _backward(loop: StageLoop[BatchT], step: int, batch: BatchT) -> Point:
    """Add the gradients of the step's batch; the terms of its loss."""
    terms: dict[str, Tensor] = {}
    for share, losses in loop.losses(batch):
        (torch.stack([value.float() for value in losses.values()]).sum() * share).backward()  # type: ignore[no-untyped-call]
        for name, value in losses.items():
            terms[name] = terms.get(name, 0.0) + share * value.detach().float()
    world.add_up([p.grad for p in _trained(loop) if p.grad is not None])
    world.add_up(list(terms.values()))
    values = {name: value.item() for name, value in terms.items()}
    if not math.isfinite(sum(values.values())):
        found = " ".join(f"{name}={value:.4g}" for name, value in values.items())
        raise TrainingDivergedError(f"stage {loop.name}, step {step}: loss is not finite ({found})")
    return values


def _record(loop: StageLoop[Any], step: int, values: Point) -> None:
    loop.curves.setdefault(loop.name, []).append({"step": float(step), **values})
    if step % 25 == 0 or step == loop.steps - 1:
        terms = " ".join(f"{name}={value:.4f}" for name, value in values.items())
        logger.info("stage=%s step=%d/%d loss=%.4f %s", loop.name, step + 1, loop.steps, sum(values.values()), terms)


def _resume(loop: StageLoop[Any], resumed: dict[str, Any]) -> int:
    for optimizer, state in zip(loop.optimizers, resumed["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    for parameter, gradient in zip(_trained(loop), resumed.get("gradients", ()), strict=False):
        parameter.grad = gradient.to(parameter.device)
    return int(resumed["step"])


def _trained(loop: StageLoop[Any]) -> list[nn.Parameter]:
    groups = (group for optimizer in loop.optimizers for group in optimizer.param_groups)
    return [parameter for group in groups for parameter in group["params"]]


def _state(loop: StageLoop[Any], step: int) -> dict[str, Any]:
    state = {
        "stage": loop.index,
        "step": step,
        "model": loop.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in loop.optimizers],
        "curves": loop.curves,
    }
    if step < loop.steps and not loop.clears(step):
        # The next step adds to them.
        state["gradients"] = [p.grad if p.grad is not None else torch.zeros_like(p) for p in _trained(loop)]
    return state
