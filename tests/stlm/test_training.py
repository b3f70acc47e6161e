"""Two-stage training on a handful of images: it learns, resumes exactly, and stops when it must."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from stlm.data.synthesis import corrupt, embedded_textures, perlin_noise
from stlm.errors import TrainingDivergedError
from stlm.losses import focal_loss, hidden_distance, level_distance
from stlm.models.registry import build_model
from stlm.models.two_stream import TwoStream
from stlm.recipes import recipe
from stlm.training.checkpoint import Checkpointer
from stlm.training.fit import FitResult, fit
from stlm.training.loop import StageRun, num_steps, run_stage
from stlm.training.replay import NormalImage, choose_replay, split_held_out
from stlm.training.samples import Normals, build_samples

EMPTY = Normals(images=np.zeros((0, 64, 64, 3), dtype=np.uint8), digests=())


def normals(count: int, seed: int = 0) -> Normals:
    rng = np.random.default_rng(seed)
    base = np.linspace(40, 200, 64)[None, :, None] * np.ones((64, 1, 3))
    images = np.clip(base + rng.normal(0, 6, (count, 64, 64, 3)), 0, 255).astype(np.uint8)
    return Normals(images=images, digests=tuple(hashlib.sha256(i.tobytes()).hexdigest() for i in images))


def train(model: TwoStream, *, checkpointer: Checkpointer | None = None, replay: Normals = EMPTY) -> FitResult:
    return fit(
        model,
        new=normals(8),
        replay=replay,
        held_out=normals(4, seed=1),
        teacher=None,
        textures=embedded_textures(),
        has_parent=len(replay) > 0,
        seed=7,
        checkpointer=checkpointer,
    )


def test_both_stages_run_and_the_denoising_loss_falls() -> None:
    torch.manual_seed(0)
    result = train(build_model(recipe("tiny"), seed=0))
    assert set(result.curves) == {"masked_reconstruction", "pixel"}
    denoising = [point["denoising"] for point in result.curves["pixel"]]
    assert denoising[-1] < denoising[0]
    assert result.complete


def test_equal_inputs_and_seed_give_equal_weights() -> None:
    states = []
    for _ in range(2):
        model = build_model(recipe("tiny"), seed=0)
        train(model)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_changes_neither_trunk_nor_teacher_decoder() -> None:
    model = build_model(recipe("tiny"), seed=0)
    frozen = [p.clone() for part in (model.trunk, model.teacher_decoder) if part is not None for p in part.parameters()]
    train(model)
    after = [p for part in (model.trunk, model.teacher_decoder) if part is not None for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))


def test_an_update_keeps_the_teachers_embedding_of_the_first_night() -> None:
    model = build_model(recipe("tiny"), seed=0)
    train(model)
    assert model.embedding is not None
    projection = model.embedding.projection.clone()
    train(model, replay=normals(4, seed=5))
    assert torch.equal(model.embedding.projection, projection)


@pytest.mark.parametrize(("replayed", "kept"), [(4, True), (40, False)])
def test_corruptions_are_kept_only_where_more_are_drawn_than_made(
    replayed: int, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(recipe("tiny"), seed=0)
    train(model)
    caplog.clear()
    # Twelve steps of four draw 48; eight new images have two corruptions each, replayed ones have one.
    with caplog.at_level("INFO"):
        result = train(model, replay=normals(replayed, seed=5))
    assert ("preparing new images" in caplog.text, "preparing replay images" in caplog.text) == (kept, kept)
    assert result.num_steps == 12
    assert result.complete


@pytest.mark.parametrize("repetitions", [0, 2])
def test_rows_of_a_choice_are_rows_of_its_batch(repetitions: int) -> None:
    samples = build_samples(
        build_model(recipe("tiny"), seed=0), normals(8), repetitions=repetitions, textures=embedded_textures(), seed=7,
        cache_dir=None, label="new",
    )  # fmt: skip
    assert samples is not None
    choice = samples.choose(np.random.default_rng(0), 6)
    part, whole = samples.make(choice.rows(slice(2, 5))), samples.make(choice).rows(slice(2, 5))
    torch.testing.assert_close(part, whole, rtol=1e-3, atol=1e-3)
    assert torch.equal(part.mask, whole.mask)


@pytest.mark.parametrize("stage_index", [0, 1])
def test_a_stage_whose_batches_are_drawn_ahead_ends_in_the_same_weights(stage_index: int) -> None:
    states = []
    for ahead in (0, 3):
        model = build_model(recipe("tiny"), seed=0)
        make = partial(
            build_samples, model, repetitions=0, textures=embedded_textures(), seed=7, cache_dir=None, label="live"
        )
        new, replay = make(normals(8)), make(normals(6, seed=5))
        assert new is not None
        stage = model.config.stages[stage_index]
        run = StageRun(
            model=model, stage=stage, stage_index=stage_index, steps=4, new=new, replay=replay, replay_share=0.5,
            teacher=None, seed=7, ahead=ahead,
        )  # fmt: skip
        assert run_stage(run, None)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


class KilledError(Exception):
    """Stands for the process being killed."""


class KillingClock:
    """A clock that advances by a second a call, and kills after a number of calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        self.calls -= 1
        if self.calls < 0:
            raise KilledError
        return self.now


@pytest.mark.chaos("training killed in either stage", outcome="resumed; the same weights bit by bit")
@pytest.mark.parametrize("calls", [9, 14])
def test_resuming_after_a_kill_gives_the_weights_of_an_undisturbed_run(tmp_path: Path, calls: int) -> None:
    undisturbed = build_model(recipe("tiny"), seed=0)
    train(undisturbed)
    killed = build_model(recipe("tiny"), seed=0)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KilledError):
        train(killed, checkpointer=Checkpointer(checkpoint, "work", 1.0, clock=KillingClock(calls)))
    assert checkpoint.exists()
    resumed = build_model(recipe("tiny"), seed=0)
    result = train(resumed, checkpointer=Checkpointer(checkpoint, "work", 1.0))
    assert [p["step"] for p in result.curves["pixel"]] == list(range(len(result.curves["pixel"])))
    expected = undisturbed.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.state_dict().items())


def test_a_truncated_or_foreign_checkpoint_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpointer = Checkpointer(path, "work", 1.0)
    checkpointer.save({"step": 3})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert checkpointer.load() is None
    assert path.with_suffix(".damaged").exists()
    path.write_bytes(whole)
    assert Checkpointer(path, "other work", 1.0).load() is None
    assert path.with_suffix(".foreign").exists()
    assert "put aside" in caplog.text


@pytest.mark.chaos("a loss that is not finite", outcome="stopped, naming stage and step; no candidate")
def test_a_loss_that_is_not_finite_stops_training() -> None:
    model = build_model(recipe("tiny"), seed=0)
    with torch.no_grad():
        model.denoising.neck[1].weight.fill_(float("nan"))  # type: ignore[union-attr,index,operator]
    with pytest.raises(TrainingDivergedError, match="masked_reconstruction, step 0"):
        train(model)


def test_a_stop_request_saves_and_interrupts(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path / "checkpoint.pt", "work", 3600.0)
    checkpointer.stop_requested = True
    with pytest.raises(InterruptedError, match="after step 1"):
        train(build_model(recipe("tiny"), seed=0), checkpointer=checkpointer)
    assert checkpointer.path.exists()


def test_steps_follow_the_new_images_and_not_the_history() -> None:
    stage = recipe("lite").stages[1]
    first = num_steps(stage, num_new=200, has_parent=False, replay_share=0.0)
    later = num_steps(stage, num_new=50, has_parent=True, replay_share=0.5)
    twice = num_steps(stage, num_new=100, has_parent=True, replay_share=0.5)
    assert first == 200 * stage.passes / stage.batch_size
    assert twice == 2 * later


def test_cosine_losses_are_zero_for_equal_and_two_for_opposite_features() -> None:
    level = torch.randn(2, 4, 3, 3)
    assert level_distance([level], [level * 5]).item() == pytest.approx(0.0, abs=1e-6)
    assert level_distance([level, level], [-level, -level]).item() == pytest.approx(4.0, abs=1e-5)


def test_hidden_distance_ignores_what_was_kept() -> None:
    student, target = torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    student[0, :, 0, 0] = -1.0
    only_that = torch.ones(1, 2, 2, dtype=torch.bool)
    only_that[0, 0, 0] = False
    assert hidden_distance([student], [target], only_that).item() == pytest.approx(2.0, abs=1e-6)
    assert hidden_distance([student], [target], ~only_that).item() == pytest.approx(0.0, abs=1e-6)


def test_focal_loss_matches_its_formula() -> None:
    # p = sigmoid(0) = 0.5: (1 - 0.5)^4 * ln 2
    assert focal_loss(torch.zeros(3), torch.ones(3)).item() == pytest.approx(0.5**4 * np.log(2), rel=1e-5)
    assert focal_loss(torch.tensor([20.0]), torch.tensor([1.0])).item() == pytest.approx(0.0, abs=1e-9)


def test_pseudo_anomalies_change_only_what_the_mask_names_and_repeat_with_the_seed() -> None:
    config = recipe("lite").data
    image = normals(1).float_image(0)
    for seed in range(20):
        drawn = [
            corrupt(image, config, np.random.default_rng(seed), textures=embedded_textures(), others=[image])
            for _ in range(2)
        ]
        corrupted, mask = drawn[0]
        assert mask.any()
        assert mask.mean() < 0.5
        assert np.array_equal(corrupted[~mask], image[~mask])
        assert np.array_equal(corrupted, drawn[1][0])


def test_perlin_noise_vanishes_on_its_lattice() -> None:
    noise = perlin_noise((16, 16), (4, 4), np.random.default_rng(0))
    assert np.abs(noise[::4, ::4]).max() < 1e-6
    assert noise.std() > 0.1


def image(name: str, night: str) -> NormalImage:
    return NormalImage(path=f"data/{night}/{name}", sha256=hashlib.sha256(name.encode()).hexdigest(), night=night)


def test_replay_is_bounded_and_shares_between_nights() -> None:
    history = [image(f"{night}-{i}", night) for night in ("n1", "n2") for i in range(50 if night == "n1" else 5)]
    chosen = choose_replay(history, limit=12, seed=0)
    assert len(chosen) == 12
    assert sum(i.night == "n2" for i in chosen) == 5


def test_what_replay_dropped_never_comes_back() -> None:
    first = choose_replay([image(f"a{i}", "n1") for i in range(30)], limit=10, seed=0)
    second = choose_replay([*first, *(image(f"b{i}", "n2") for i in range(30))], limit=10, seed=0)
    assert {i for i in second if i.night == "n1"} <= set(first)


def test_held_out_split_follows_content_not_order() -> None:
    images = [image(f"a{i}", "n1") for i in range(40)]
    training, held_out = split_held_out(images, share=0.2, seed=0)
    assert len(held_out) == 8
    assert not set(training) & set(held_out)
    assert split_held_out(images[::-1], share=0.2, seed=0) == (training, held_out)


def test_pictures_of_one_part_are_on_the_same_side_every_night() -> None:
    nights = ["n1", "n2", "n3"]
    pictures = {
        night: [replace(image(f"{night}-{i}", night), part=f"SN-{i}") for i in range(60) if (i + len(night)) % 7]
        for night in nights
    }
    split = [split_held_out(pictures[night], share=0.2, seed=0) for night in nights]
    learnt = {i.part for training, _ in split for i in training}
    held_out = {i.part for _, held in split for i in held}
    assert not learnt & held_out
    assert 6 <= len(held_out) <= 20
    assert split_held_out(pictures["n1"], share=0.2, seed=1)[1] != split[0][1]
