"""A night of ISSTAD: masked reconstruction of normals, then repair and pixel classification of corrupted ones.

Every batch is a function of (seed, stage, step) alone, so a resumed run sees what an undisturbed one would have seen.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stlm.config_isstad import IsstadDataConfig, IsstadStageConfig, RepairConfig
from stlm.data.self_corruption import corrupt_by_shapes
from stlm.losses import masked_patch_error, structural_similarity, weighted_pixel_cross_entropy
from stlm.models.isstad import Isstad
from stlm.training import world
from stlm.training.checkpoint import Checkpointer
from stlm.training.loop import num_steps
from stlm.training.samples import Normals
from stlm.training.steps import FitResult, Point, Shares, StageLoop, autocast, own_rows, parts_of, run_steps

__all__ = ["fit_isstad", "learning_rate", "random_crop", "repair_losses"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """What a stage draws from."""

    model: Isstad
    stage: IsstadStageConfig
    new: Tensor
    """``(N, 3, H, W)`` in [0, 1], at the recipe's exposure."""
    replay: Tensor
    """The same of earlier nights; may be empty."""
    share: float
    """Of replayed images in a batch."""
    parts: int
    """Of each batch, that are on the device one after the other."""
    bf16: bool
    """Whether products within the losses are taken in bfloat16."""

    def draw(self, rng: np.random.Generator) -> Tensor:
        """A batch, new images first; with replacement."""
        replayed = round(self.stage.batch_size * self.share)
        chosen = [
            images[torch.from_numpy(rng.integers(len(images), size=count))]
            for images, count in ((self.new, self.stage.batch_size - replayed), (self.replay, replayed))
            if count > 0
        ]
        return torch.cat(chosen)

    def own(self, *drawn: Tensor) -> tuple[Tensor, ...]:
        """This process's rows, on the model's device."""
        rows = own_rows(self.stage.batch_size)
        return tuple(tensor[rows].to(self.model.mean.device) for tensor in drawn)


def fit_isstad(
    model: Isstad,
    *,
    new: Normals,
    replay: Normals,
    held_out: Normals,
    has_parent: bool,
    seed: int,
    checkpointer: Checkpointer | None = None,
    max_seconds: float = math.inf,
    parts: int = 1,
    bf16: bool = False,
) -> FitResult:
    """Train ``model`` in place on new normals, with replay of earlier ones.

    Args:
        model: Fresh for a first night, the champion's weights otherwise.
        new: New normals to learn.
        replay: A bounded choice of earlier normals; may be empty.
        held_out: Normals that are not trained on; they set the scales of residual and score.
        has_parent: Whether ``model`` carries a champion on.
        seed: Decides every draw.
        checkpointer: Resumes where it left off, and saves on its interval.
        max_seconds: Limit on the checkpointer's clock from now.
        parts: Of each batch, that are on the device one after the other; the step is that of the whole batch.
        bf16: Products within the losses are taken in bfloat16 (autocast); weights and statistics stay float32.

    Returns:
        Steps and curves.

    Raises:
        TrainingDivergedError: A loss is not finite.
        ConfigError: More processes train than a batch has images.
    """
    state = world.one_first(checkpointer.load) if checkpointer is not None else None
    deadline = checkpointer.clock() + max_seconds if checkpointer is not None else math.inf
    share = model.config.replay_share if len(replay) else 0.0
    images = [_exposed(model, normals) for normals in (new, replay)]
    first_stage, curves, total, complete = 0, dict[str, list[Point]](), 0, True
    if state is not None:
        model.load_state_dict(state["model"])
        first_stage, curves = int(state["stage"]), state["curves"]
        logger.info("resuming stage=%d step=%d", first_stage, state["step"])
    for index, stage in enumerate(model.config.stages):
        steps = num_steps(stage, num_new=len(new), has_parent=has_parent, replay_share=share)
        total += steps
        if index < first_stage:
            continue
        resumed = state if state is not None and index == first_stage else None
        if stage.name == "repair" and not has_parent and resumed is None:
            model.deepen()
        source = _Source(model=model, stage=stage, new=images[0], replay=images[1], share=share, parts=parts, bf16=bf16)
        steps_per_pass = max(1, round(len(new) / (stage.batch_size * (1.0 - share))))
        loop = _loop(source, index, steps, steps_per_pass, seed=seed, has_parent=has_parent)
        loop.checkpointer, loop.deadline_s, loop.curves = checkpointer, deadline, curves
        complete = run_steps(loop, resumed) and complete
    model.requires_grad_(False)
    model.fit_scales(_tensor(held_out))
    return FitResult(num_steps=total, curves=curves, complete=complete)


def _loop(
    source: _Source, index: int, steps: int, steps_per_pass: int, *, seed: int, has_parent: bool
) -> StageLoop[tuple[Tensor, ...]]:
    model, stage = source.model, source.stage
    repair = stage.name == "repair"
    model.requires_grad_(False)
    for part in (model.decoder, model.mask_pred) if repair else (model.encoder, model.mae_decoder):
        part.requires_grad_(True)
    if repair:
        model.decoder.mask_token.requires_grad_(False)
    scale = stage.update_lr_scale if has_parent else 1.0
    clear = model.config.repair.clear_gradients or not repair
    return StageLoop(
        model=model,
        name=stage.name,
        index=index,
        steps=steps,
        seed=seed,
        optimizers=[_optimizer(model, stage)],
        draw=lambda rng: (_draw_repair if repair else _draw_masked)(source, rng),
        losses=lambda drawn: (_repair_step if repair else _masked_step)(source, drawn),
        rate=lambda step: scale * learning_rate(stage, step, steps, steps_per_pass),
        clears=lambda step: clear or step % steps_per_pass == 0,
    )


def _optimizer(model: Isstad, stage: IsstadStageConfig) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    vectors = [p for p in trained if p.ndim < 2 or p is model.encoder.cls_token or p is model.mae_decoder.mask_token]
    undecayed = {id(p) for p in vectors} if not stage.decay_vectors else set()
    groups = [
        {"params": [p for p in trained if id(p) not in undecayed], "weight_decay": stage.weight_decay},
        {"params": [p for p in trained if id(p) in undecayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], stage.lr, betas=stage.betas)


def learning_rate(stage: IsstadStageConfig, step: int, steps: int, steps_per_pass: int) -> float:
    """Learning rate as a share of the stage's.

    Args:
        stage: Warm-up, cosine, and the lowest rate.
        step: From 0.
        steps: Of the whole stage.
        steps_per_pass: Steps in which every new image is seen once.

    Returns:
        A factor in [min_lr / lr, 1].
    """
    low = stage.min_lr / stage.lr
    if stage.cosine_passes > 0:
        # As published: set once a pass, and past its lowest point it rises again.
        position = (step // steps_per_pass) / stage.cosine_passes
        return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * position))
    done, warmup = (step + 0.5) / steps, stage.warmup_share
    if done < warmup:
        return low + (1.0 - low) * done / warmup
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


def _draw_masked(source: _Source, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Cropped images, and the noise by which patches are hidden."""
    model = source.model
    images = torch.stack([random_crop(image, model.config.data, rng) for image in source.draw(rng)])
    noise = torch.from_numpy(rng.random((len(images), model.grid[0] * model.grid[1])))
    return source.own(images, noise)


def _masked_step(source: _Source, drawn: tuple[Tensor, ...]) -> Shares:
    model = source.model
    images, noise = drawn
    for rows in parts_of(len(images), source.parts):
        normalised = model.normalise(images[rows], stage=0)
        with autocast(images.device, bf16=source.bf16):
            hidden = model.predict_hidden(normalised, noise[rows], source.stage.mask_ratio)
            error = masked_patch_error(*hidden)
        yield len(normalised) / source.stage.batch_size, {"masked_mse": error}


def random_crop(image: Tensor, data: IsstadDataConfig, rng: np.random.Generator) -> Tensor:
    """A part of an image at the image's size, perhaps mirrored.

    Args:
        image: ``(3, H, W)`` in [0, 1].
        data: ``crop_scale`` (share of the area) and ``flip``; the part's sides are in a ratio of 3:4 to 4:3.
        rng: Source of the draw.

    Returns:
        The same shape and range.
    """
    height, width = image.shape[1:]
    area = rng.uniform(*data.crop_scale)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    rows = min(height, max(1, round(height * math.sqrt(area / ratio))))
    columns = min(width, max(1, round(width * math.sqrt(area * ratio))))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    part = image[None, :, top : top + rows, left : left + columns]
    if (rows, columns) != (height, width):
        part = F.interpolate(part, size=(height, width), mode="bicubic", align_corners=False).clamp(0.0, 1.0)
    if data.flip and rng.random() < 0.5:
        part = part.flip(3)
    return part[0]


def _draw_repair(source: _Source, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """What the network sees, what it shall paint, and where the two differ."""
    config = source.model.config
    clean, corrupted, masks = [], [], []
    for image in source.draw(rng):
        gain = 1.0 + rng.uniform(-config.data.brightness, config.data.brightness)
        lit = (image * gain).clamp(0.0, 1.0)
        pixels, mask = corrupt_by_shapes(lit.permute(1, 2, 0).numpy(), config.data.shapes, rng)
        clean.append(lit)
        corrupted.append(torch.from_numpy(pixels).permute(2, 0, 1))
        masks.append(torch.from_numpy(mask))
    target = clean if config.repair.clean_target else corrupted
    return source.own(*(torch.stack(rows) for rows in (corrupted, target, masks)))


def _repair_step(source: _Source, drawn: tuple[Tensor, ...]) -> Shares:
    dirty, target, painted = drawn
    for rows in parts_of(len(painted), source.parts):
        with autocast(dirty.device, bf16=source.bf16):
            losses = repair_losses(source.model, dirty[rows], target[rows], painted[rows], source.model.config.repair)
        yield len(painted[rows]) / source.stage.batch_size, losses


def repair_losses(
    model: Isstad, corrupted: Tensor, target: Tensor, mask: Tensor, config: RepairConfig
) -> dict[str, Tensor]:
    """The weighted terms of the second stage's loss.

    Args:
        model: The network.
        corrupted: ``(B, 3, H, W)`` in [0, 1], what it sees.
        target: The same shape, what it shall paint.
        mask: ``(B, H, W)`` bool, True where corrupted.
        config: Weights.

    Returns:
        Scalars that sum to the loss.
    """
    repaired = model.repair(model.normalise(corrupted))
    similarity = structural_similarity(model.denormalise(repaired.image), target, window=config.ssim_window)
    return {
        "classification": weighted_pixel_cross_entropy(
            repaired.logits, mask, normal_weight=config.normal_weight, anomalous_weight=config.anomalous_weight
        ),
        "mse": config.mse_weight * F.mse_loss(repaired.image, model.normalise(target)),
        "ssim": config.ssim_weight * (1.0 - similarity),
    }


def _tensor(normals: Normals) -> Tensor:
    return torch.from_numpy(normals.images).permute(0, 3, 1, 2).to(torch.float32) / 255.0


def _exposed(model: Isstad, normals: Normals) -> Tensor:
    # Before the corruption, so that image and target stay at one exposure.
    return model.expose(_tensor(normals)).contiguous()
