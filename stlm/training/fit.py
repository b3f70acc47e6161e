"""A night's training: two self-supervised stages after ISSTAD, then distribution, memory and fusion.

"Incremental" in ISSTAD means masked reconstruction first and pixel-level learning second, on one network. Carrying the
champion on over nights with replay is this product's own doing.
"""

import copy
import functools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stlm.data.synthesis import FloatImage
from stlm.models.isstad import Isstad
from stlm.models.registry import AnomalyModel
from stlm.models.two_stream import TwoStream
from stlm.nn.encoders import Features, PlainProjection
from stlm.nn.teachers import SamTeacher
from stlm.training import world
from stlm.training.checkpoint import Checkpointer
from stlm.training.isstad import fit_isstad
from stlm.training.loop import StageRun, num_steps, run_stage
from stlm.training.samples import Normals, Samples, build_samples, trunk_features_of
from stlm.training.steps import FitResult, Point

__all__ = ["FitResult", "fit"]

logger = logging.getLogger(__name__)


def fit(
    model: AnomalyModel,
    *,
    new: Normals,
    replay: Normals,
    held_out: Normals,
    teacher: SamTeacher | None,
    textures: Sequence[FloatImage],
    has_parent: bool,
    seed: int,
    checkpointer: Checkpointer | None = None,
    cache_dir: Path | None = None,
    max_seconds: float = math.inf,
    parts: int = 1,
    bf16: bool = False,
    watch: Callable[[str, int, int], None] | None = None,
) -> FitResult:
    """Train ``model`` in place on new normals, with replay of earlier ones.

    Args:
        model: Fresh for a first night, the champion's weights otherwise.
        new: New normals to learn.
        replay: A bounded choice of earlier normals; may be empty.
        held_out: Normals that are not trained on; they make the maps comparable.
        teacher: For STLM's recipes without a shared trunk.
        textures: Anomaly textures of STLM.
        has_parent: Whether ``model`` carries a champion on.
        seed: Decides every draw.
        checkpointer: Resumes where it left off, and saves on its interval.
        cache_dir: Where pre-made corruptions are kept.
        max_seconds: Limit on the checkpointer's clock from now.
        parts: Of each batch, that are on the device one after the other; the step is that of the whole batch.
        bf16: Products within the losses are taken in bfloat16 (autocast); weights and statistics stay float32.
        watch: Called after every step of STLM's stages with the stage's name, its steps done and all of them, the model
            in evaluation mode. Maps other than the aggregation's are not fitted yet.

    Returns:
        Steps and curves.

    Raises:
        TrainingDivergedError: A loss is not finite.
        ConfigError: More processes train than a batch has images.
    """
    if isinstance(model, Isstad):
        return fit_isstad(
            model,
            new=new,
            replay=replay,
            held_out=held_out,
            has_parent=has_parent,
            seed=seed,
            checkpointer=checkpointer,
            max_seconds=max_seconds,
            parts=parts,
            bf16=bf16,
        )
    state = world.one_first(checkpointer.load) if checkpointer is not None else None
    deadline = checkpointer.clock() + max_seconds if checkpointer is not None else math.inf
    # The trunk is frozen: what a first night begins with is what it ends with.
    new_features = functools.cache(functools.partial(trunk_features_of, model, new))
    if not has_parent and model.embedding is not None:
        model.embedding.fit(new_features())
        with torch.no_grad():
            assert isinstance(model.plain, PlainProjection)
            model.plain.projection.weight.copy_(model.embedding.projection[:, :, None, None])
    share = model.config.replay_share if len(replay) else 0.0
    stages = [
        (stage, num_steps(stage, num_new=len(new), has_parent=has_parent, replay_share=share))
        for stage in model.config.stages
    ]

    @functools.cache
    def samples() -> tuple[Samples, Samples | None]:
        data = model.config.data
        kept = data.corruptions_per_image * len(new) + data.replay_corruptions_per_image * len(replay)
        # Making more than will be drawn costs more than it spares; then every draw is made anew.
        draws = sum(steps * stage.batch_size for stage, steps in stages)
        banked = kept <= draws
        make = functools.partial(
            build_samples,
            model,
            keep_clean=len(new) + len(replay) <= draws,
            textures=textures,
            seed=seed,
            cache_dir=cache_dir,
            teacher=teacher,
        )
        fresh = make(new, repetitions=data.corruptions_per_image if banked else 0, label="new")
        assert fresh is not None
        return fresh, make(replay, repetitions=data.replay_corruptions_per_image if banked else 0, label="replay")

    distils = has_parent and any(stage.distillation > 0 for stage in model.config.stages)
    champion = copy.deepcopy(model).eval() if distils else None
    trained_before = copy.deepcopy(_trained_state(model)) if has_parent and model.config.champion_share > 0 else {}
    first_stage, curves, total, complete = 0, dict[str, list[Point]](), 0, True
    if state is not None:
        model.load_state_dict(state["model"])
        first_stage = int(state["stage"])
        curves = state["curves"]
        logger.info("resuming stage=%d step=%d", first_stage, state["step"])
    for index, (stage, steps) in enumerate(stages):
        if steps == 0:
            continue
        total += steps
        if index < first_stage:
            continue
        resumed = state if state is not None and index == first_stage else None
        new_samples, replay_samples = samples()  # a night whose stages are off corrupts nothing
        run = StageRun(
            model=model,
            stage=stage,
            stage_index=index,
            steps=steps,
            new=new_samples,
            replay=replay_samples,
            replay_share=share,
            teacher=teacher,
            seed=seed,
            champion=champion,
            lr_scale=stage.update_lr_scale if has_parent else 1.0,
            parts=parts,
            bf16=bf16,
            watch=watch,
            checkpointer=checkpointer,
            deadline_s=deadline,
            curves=curves,
        )
        complete = run_stage(run, resumed) and complete
    for name, value in _trained_state(model).items():
        if name in trained_before:
            value.lerp_(trained_before[name].to(value), model.config.champion_share)
    _finish(model, new_features, held_out, seed)
    return FitResult(num_steps=total, curves=curves, complete=complete)


def _trained_state(model: TwoStream) -> dict[str, Tensor]:
    """What training changes: floating-point weights and running statistics."""
    return {
        f"{part}.{name}": value
        for part in ("plain", "denoising", "decoder", "aggregation")
        for name, value in model.get_submodule(part).state_dict().items()
        if value.is_floating_point()
    }


@torch.no_grad()
def _finish(model: TwoStream, new_features: Callable[[], Features], held_out: Normals, seed: int) -> None:
    device = next(model.parameters()).device
    if model.distribution is not None:
        whole = tuple(level.float().to(device) for level in new_features())
        model.distribution.update(model.standardise(whole))
    if model.memory is not None and model.embedding is not None:
        vectors: list[Tensor] = []
        features = new_features()
        for start in range(0, len(features[0]), 16):
            chunk = tuple(level[start : start + 16].float().to(device) for level in features)
            embedding = model.embedding(model.standardise(chunk))
            vectors.append(embedding.flatten(2).transpose(1, 2).reshape(-1, embedding.shape[1]).cpu())
        model.memory.update(torch.cat(vectors), seed=seed)
    features = trunk_features_of(model, held_out)
    maps = [
        model.raw_maps(tuple(level[start : start + 8].float().to(device) for level in features)).cpu()
        for start in range(0, len(held_out), 8)
    ]
    model.fit_fusion(torch.cat(maps))
