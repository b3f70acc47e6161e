"""Both stages of STLM's night: their batches, losses, optimisers and learning rates."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stlm.config import OptimConfig, StageConfig
from stlm.config_isstad import IsstadStageConfig
from stlm.losses import focal_loss, hidden_distance, level_distance
from stlm.models.two_stream import Levels, TwoStream
from stlm.nn.encoders import Features, mask_features
from stlm.nn.teachers import Teacher
from stlm.training.batches import TrainingBatch
from stlm.training.checkpoint import Checkpointer
from stlm.training.samples import Samples
from stlm.training.steps import Point, Shares, StageLoop, autocast, own_rows, parts_of, run_steps

__all__ = ["StageRun", "num_steps", "pixel_losses", "run_stage"]

_IMAGE_GRID = (16, 16)
"""Cells hidden together where the students see the image itself; a trunk gives its coarsest grid."""


@dataclass(kw_only=True)
class StageRun:
    """What a stage works on."""

    model: TwoStream
    stage: StageConfig
    stage_index: int
    steps: int
    new: Samples
    replay: Samples | None
    replay_share: float
    teacher: Teacher | None
    seed: int
    champion: TwoStream | None = None
    """Frozen, as it was before the night; wanted where the stage distils."""
    lr_scale: float = 1.0
    """Factor on all learning rates of the stage."""
    parts: int = 1
    """Of each batch, that are on the device one after the other."""
    bf16: bool = False
    """Whether products within the losses are taken in bfloat16."""
    ahead: int | None = None
    """See :class:`StageLoop`."""
    watch: Callable[[str, int, int], None] | None = None
    """See :class:`StageLoop`."""
    checkpointer: Checkpointer | None = None
    deadline_s: float = math.inf
    """On the checkpointer's clock; the stage ends at the next step after it."""
    curves: dict[str, list[Point]] = field(default_factory=dict)
    """Stage -> points; this stage appends its own."""


def num_steps(stage: StageConfig | IsstadStageConfig, *, num_new: int, has_parent: bool, replay_share: float) -> int:
    """Steps of a stage: proportional to the new images alone, never to the history.

    Args:
        stage: Passes and batch size.
        num_new: New training images.
        has_parent: Later nights use ``update_passes``.
        replay_share: Share of each batch that is replayed.

    Returns:
        At least 1, or 0 where the stage is off.
    """
    passes = stage.update_passes if has_parent else stage.passes
    new_per_step = stage.batch_size * (1.0 - replay_share)
    return math.ceil(passes * num_new / new_per_step) if passes > 0 else 0


def _optimizers(model: TwoStream, config: OptimConfig) -> list[torch.optim.Optimizer]:
    streams = [p for part in (model.plain, model.denoising, model.decoder) for p in part.parameters()]
    head = list(model.aggregation.head.parameters())
    body = [p for name, p in model.aggregation.named_parameters() if not name.startswith("head.")]
    groups = [
        {"params": body, "lr": config.aggregation_lr},
        {"params": head, "lr": config.aggregation_head_lr},
    ]
    first: torch.optim.Optimizer
    if config.streams_weight_decay > 0:
        first = torch.optim.AdamW(
            streams, config.streams_lr, betas=config.streams_betas, weight_decay=config.streams_weight_decay
        )
    else:
        first = torch.optim.Adam(streams, config.streams_lr, betas=config.streams_betas)
    if config.aggregation == "adamw":
        return [first, torch.optim.AdamW(groups, betas=config.streams_betas, weight_decay=1e-4)]
    return [first, torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)]


def _rate(config: OptimConfig, step: int, steps: int) -> float:
    """Factor on every learning rate: constant, or up for 30 % of the stage and down along a cosine."""
    if config.schedule == "constant":
        return 1.0
    position, rise = (step + 0.5) / steps, 0.3
    if position < rise:
        return 0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * position / rise))
    return max(1e-3, 0.5 * (1.0 + math.cos(math.pi * (position - rise) / (1.0 - rise))))


def _draw(run: StageRun, rng: np.random.Generator) -> tuple[TrainingBatch, Tensor | None]:
    """This process's rows of a batch, new images first, and the cells that stay where the stage hides some."""
    count = run.stage.batch_size
    replayed = round(count * run.replay_share) if run.replay is not None else 0
    own, first = own_rows(count), 0
    parts = []
    for samples, size in ((run.new, count - replayed), (run.replay, replayed)):
        if samples is None or size == 0:
            continue
        choice = samples.choose(rng, size).rows(slice(max(0, own.start - first), max(0, own.stop - first)))
        if len(choice.indices) > 0:
            parts.append(samples.make(choice))
        first += size
    batch = TrainingBatch.joined(parts)
    return batch, _draw_kept(run, batch, rng)[own] if run.stage.name == "masked_reconstruction" else None


def _targets(run: StageRun, view: Features, kept: tuple[Tensor, ...]) -> Levels:
    """The teacher's levels of a view, kept with the samples or made now."""
    if kept:
        return kept[0], kept[1]
    with torch.no_grad():
        if run.teacher is not None:
            return run.teacher.levels(view[0])
        return run.model.teacher_levels(run.model.standardise(view))


def _corrupted_targets(run: StageRun, batch: TrainingBatch, of_clean: Levels) -> Levels:
    """The teacher sees only what is not clean: there both views are one."""
    if batch.corrupted_targets or run.teacher is None:
        return _targets(run, batch.corrupted, batch.corrupted_targets)
    first, second = of_clean[0].clone(), of_clean[1].clone()
    dirty = (~batch.is_clean).nonzero()[:, 0].to(first.device)
    if len(dirty) > 0:
        made = _targets(run, tuple(level[dirty] for level in batch.corrupted), ())
        first[dirty], second[dirty] = made[0].to(first), made[1].to(second)
    return first, second


def _draw_kept(run: StageRun, batch: TrainingBatch, rng: np.random.Generator) -> Tensor:
    """``(batch_size, gh, gw)`` bool: the cells that are not hidden, for the rows of all processes."""
    rows, columns = batch.clean[-1].shape[-2:] if run.model.trunk is not None else _IMAGE_GRID
    cells = rows * columns
    hidden = max(1, round(cells * run.stage.mask_ratio))
    keep = np.ones((run.stage.batch_size, cells), dtype=np.bool_)
    for row in keep:
        row[rng.permutation(cells)[:hidden]] = False
    return torch.from_numpy(keep).view(-1, rows, columns).to(batch.mask.device)


def _masked_losses(run: StageRun, batch: TrainingBatch, kept: Tensor) -> dict[str, Tensor]:
    clean = run.model.standardise(batch.clean)
    targets = _targets(run, batch.clean, batch.clean_targets)
    streams = run.model.streams(clean, mask_features(clean, kept))
    return {
        "masked_reconstruction": hidden_distance(streams.denoising, targets, kept),
        "plain": level_distance(streams.plain, targets),
    }


def pixel_losses(run: StageRun, batch: TrainingBatch) -> dict[str, Tensor]:
    """The published losses of one step.

    Args:
        run: Gives model, teacher and stage.
        batch: Corrupted and clean views, mask, and a teacher's levels where they are kept.

    Returns:
        Loss by name, each a scalar; a step minimises their sum.
    """
    streams = run.model.streams(run.model.standardise(batch.corrupted))
    mask = batch.mask
    if mask.shape[-2:] != streams.logits.shape[-2:]:
        size = streams.logits.shape[-2:]
        mask = (nn.functional.interpolate(mask.unsqueeze(1), size=size, mode="bilinear") > 0.5).float().squeeze(1)
    of_clean = _targets(run, batch.clean, batch.clean_targets)
    losses = {
        "plain": level_distance(streams.plain, _corrupted_targets(run, batch, of_clean)),
        "denoising": level_distance(streams.denoising, of_clean),
        "focal": focal_loss(streams.logits, mask),
        "l1": (streams.logits.sigmoid() - mask).abs().mean(),
    }
    if run.champion is not None and run.stage.distillation > 0:
        with torch.no_grad():
            before = run.champion.streams(run.champion.standardise(batch.corrupted))
        losses["distillation"] = run.stage.distillation * level_distance(streams.denoising, before.denoising)
    return losses


def run_stage(run: StageRun, resumed: dict[str, Any] | None) -> bool:
    """Train one stage in place.

    Args:
        run: Model, data and limits.
        resumed: State of this stage from a checkpoint, or ``None``.

    Returns:
        True when all steps were done, False when the deadline came first.

    Raises:
        TrainingDivergedError: A loss is not finite.
        InterruptedError: The checkpointer was asked to stop; its file holds the state.
    """

    def losses(drawn: tuple[TrainingBatch, Tensor | None]) -> Shares:
        batch, kept = drawn
        for rows in parts_of(len(batch.mask), run.parts):
            part = batch.rows(rows)
            with autocast(part.mask.device, bf16=run.bf16):
                losses = pixel_losses(run, part) if kept is None else _masked_losses(run, part, kept[rows])
            yield len(part.mask) / run.stage.batch_size, losses

    loop = StageLoop(
        model=run.model,
        name=run.stage.name,
        index=run.stage_index,
        steps=run.steps,
        seed=run.seed,
        optimizers=_optimizers(run.model, run.stage.optim),
        draw=lambda rng: _draw(run, rng),
        losses=losses,
        ahead=run.ahead,
        rate=lambda step: run.lr_scale * _rate(run.stage.optim, step, run.steps),
        watch=run.watch,
        checkpointer=run.checkpointer,
        deadline_s=run.deadline_s,
        curves=run.curves,
    )
    return run_steps(loop, resumed)
