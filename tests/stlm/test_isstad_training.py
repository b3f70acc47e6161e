"""ISSTAD's two stages on a handful of images: they learn, resume exactly, replay, and stop when they must."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stlm.config_isstad import IsstadDataConfig, IsstadRecipe, RepairConfig, ShapesConfig
from stlm.errors import TrainingDivergedError
from stlm.models.isstad import Isstad
from stlm.models.registry import build_model
from stlm.recipes import isstad_paper, isstad_tiny
from stlm.training.checkpoint import Checkpointer
from stlm.training.fit import FitResult, fit
from stlm.training.isstad import learning_rate, random_crop
from stlm.training.samples import Normals
from tests.stlm.test_training import EMPTY, KilledError, KillingClock, normals


def train(
    model: Isstad, *, checkpointer: Checkpointer | None = None, new: Normals | None = None, replay: Normals = EMPTY
) -> FitResult:
    return fit(
        model,
        new=new or normals(8),
        replay=replay,
        held_out=normals(4, seed=1),
        teacher=None,
        textures=(),
        has_parent=len(replay) > 0,
        seed=7,
        checkpointer=checkpointer,
    )


def with_repair(**changes: bool) -> IsstadRecipe:
    return dataclasses.replace(isstad_tiny(), repair=RepairConfig(**changes))  # type: ignore[arg-type]


def weights_of(model: Isstad) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_both_stages_run_and_both_losses_fall() -> None:
    model = build_model(isstad_tiny(), seed=0)
    result = train(model)
    assert result.complete
    assert set(result.curves) == {"masked_autoencoder", "repair"}
    assert result.num_steps == sum(len(points) for points in result.curves.values()) == 8 + 12
    masked = [point["masked_mse"] for point in result.curves["masked_autoencoder"]]
    judged = [point["classification"] for point in result.curves["repair"]]
    assert masked[-1] < masked[0]
    assert judged[-1] < judged[0]
    assert not any(p.requires_grad for p in model.parameters())


def test_equal_inputs_and_seed_give_equal_weights() -> None:
    states = []
    for _ in range(2):
        model = build_model(isstad_tiny(), seed=0)
        train(model)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("calls", "clear_gradients"), [(9, True), (30, False), (43, True)])
def test_resuming_after_a_kill_gives_the_weights_of_an_undisturbed_run(
    tmp_path: Path, calls: int, clear_gradients: bool
) -> None:
    recipe = with_repair(clear_gradients=clear_gradients)
    undisturbed = build_model(recipe, seed=0)
    expected = train(undisturbed)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KilledError):
        train(
            build_model(recipe, seed=0), checkpointer=Checkpointer(checkpoint, "work", 1.0, clock=KillingClock(calls))
        )
    done = torch.load(checkpoint, weights_only=True)
    resumed = build_model(recipe, seed=0)
    result = train(resumed, checkpointer=Checkpointer(checkpoint, "work", 1.0))
    assert (done["stage"], done["step"]) > (0, 0)
    assert result.curves == expected.curves
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in undisturbed.state_dict().items())


def test_gradients_pile_up_through_a_pass_only_where_the_published_slip_is_kept() -> None:
    first, second = (build_model(with_repair(clear_gradients=clear), seed=0) for clear in (True, False))
    train(first)
    train(second)
    assert torch.equal(first.encoder.norm.weight, second.encoder.norm.weight)
    assert not torch.equal(first.mask_pred.weight, second.mask_pred.weight)


def test_the_second_stage_leaves_the_encoder_as_the_first_left_it() -> None:
    first_only = build_model(isstad_tiny(), seed=0)
    both = build_model(isstad_tiny(), seed=0)
    first_only.config = dataclasses.replace(first_only.config, stages=first_only.config.stages[:1])
    train(first_only)
    train(both)
    for part in ("encoder", "mae_decoder"):
        before, after = getattr(first_only, part).state_dict(), getattr(both, part).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_later_night_goes_on_with_both_decoders() -> None:
    model = build_model(isstad_tiny(), seed=0)
    train(model)
    before = weights_of(model)
    never = dataclasses.replace(isstad_tiny().stages[0], update_passes=0)
    model.config = dataclasses.replace(model.config, stages=(never, model.config.stages[1]))
    result = train(model, new=normals(8, seed=3), replay=normals(4, seed=5))
    # Half of each batch of four is new: twice as many steps for the same passes over the new images.
    assert {stage: len(points) for stage, points in result.curves.items()} == {"repair": 4 * 8 // 2}
    after = model.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "mask_pred", "residual_scale", "score_scale"}
    # Deepening again would have thrown the second stage's blocks away.
    moved = (after["decoder.decoder_blocks.0.norm1.weight"] - before["decoder.decoder_blocks.0.norm1.weight"]).abs()
    assert moved.max() < 0.05


def test_clean_and_corrupted_targets_differ_in_the_painting_alone() -> None:
    shapes = ShapesConfig(probability=1.0, sides=(0.3, 0.5))
    curves = []
    for clean in (True, False):
        recipe = with_repair(clean_target=clean)
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, shapes=shapes))
        curves.append(train(build_model(recipe, seed=0)).curves["repair"][0])
    assert curves[0]["classification"] == curves[1]["classification"]
    assert curves[0]["mse"] != curves[1]["mse"]


def test_a_loss_that_is_not_finite_stops_training() -> None:
    model = build_model(isstad_tiny(), seed=0)
    with torch.no_grad():
        model.mask_pred.weight.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="stage repair, step 0: loss is not finite"):
        train(model)


def test_a_stop_request_saves_and_interrupts(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path / "checkpoint.pt", "work", 3600.0)
    checkpointer.stop_requested = True
    with pytest.raises(InterruptedError, match="masked_autoencoder stopped after step 1"):
        train(build_model(isstad_tiny(), seed=0), checkpointer=checkpointer)
    assert checkpointer.path.exists()


def test_the_time_limit_ends_each_stage_and_is_told(tmp_path: Path) -> None:
    model = build_model(isstad_tiny(), seed=0)
    checkpointer = Checkpointer(tmp_path / "checkpoint.pt", "work", 3600.0)
    result = fit(
        model,
        new=normals(8),
        replay=EMPTY,
        held_out=normals(4, seed=1),
        teacher=None,
        textures=(),
        has_parent=False,
        seed=7,
        checkpointer=checkpointer,
        max_seconds=0.0,
    )
    assert not result.complete
    assert {stage: len(points) for stage, points in result.curves.items()} == {"masked_autoencoder": 1, "repair": 1}


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    stage = dataclasses.replace(isstad_tiny().stages[0], warmup_share=0.2)
    rates = [learning_rate(stage, step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.5 / 20)
    assert rates[9] == pytest.approx(9.5 / 20)
    assert max(rates) == pytest.approx(1.0, abs=0.03)
    # Half of the fall is over in the middle between warm-up and end.
    assert (rates[59] + rates[60]) / 2 == pytest.approx(0.5, abs=1e-6)
    assert rates[-1] < 1e-3


def test_the_published_rate_of_the_second_stage_goes_down_and_up_again() -> None:
    stage = isstad_paper().stages[1]
    rate = [learning_rate(stage, epoch * 7, 200 * 7, 7) for epoch in range(200)]
    assert rate[0] == rate[60] == rate[180] == pytest.approx(1.0)
    assert rate[30] == rate[90] == pytest.approx(1e-3)
    assert rate[15] == pytest.approx((1 + 1e-3) / 2)
    assert learning_rate(stage, 15 * 7 + 6, 1400, 7) == rate[15]


def test_crops_keep_size_and_range_and_see_parts_of_the_image() -> None:
    image = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    data = IsstadDataConfig(image_size=(32, 48))
    rng = np.random.default_rng(0)
    for _ in range(30):
        part = random_crop(image, data, rng)
        assert part.shape == image.shape
        assert 0.0 <= part.min() <= part.max() <= 1.0
    gradient = torch.linspace(0, 1, 48).expand(3, 32, 48)
    spans = []
    for _ in range(200):
        part = random_crop(gradient, data, rng)
        spans.append(float(part.max() - part.min()))
    assert min(spans) < 0.6
    assert max(spans) > 0.9
