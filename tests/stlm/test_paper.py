"""The recipe ``paper`` is the published network: its size, its shapes, its losses, and what it leaves open."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlm.config import RecipeConfig
from stlm.data.synthesis import augment_normal, corrupt, embedded_textures
from stlm.errors import ConfigError, WeightsError
from stlm.models.registry import build_model, start_students_from_mobile_sam
from stlm.models.two_stream import TwoStream
from stlm.nn.mobile_sam import build_mobile_sam
from stlm.nn.teachers import SamTeacher, load_sam_teacher
from stlm.recipes import paper, paper_banked
from stlm.training.batches import TrainingBatch
from stlm.training.loop import StageRun, pixel_losses
from stlm.training.samples import Normals, Samples, build_samples
from tests.helpers.small_networks import official_mobile_sam_layout, tiny_sam


def _with(recipe: RecipeConfig, **model: object) -> RecipeConfig:
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **model))


@pytest.fixture(scope="module")
def mobile_sam(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "mobile_sam.pt"
    torch.save(official_mobile_sam_layout(build_mobile_sam().state_dict()), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    model = build_model(paper(), seed=0)

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(model.plain) == count(model.denoising) == 5_743_892
    # The learned "no mask" vector belongs to SAM's prompt encoder and is not counted in the published figure.
    assert count(model.decoder) - model.decoder.no_mask.weight.numel() == 3_291_264 + 1_280
    assert count(model.aggregation) == 1_870_465
    assert count(model) - model.decoder.no_mask.weight.numel() == 16_650_793
    assert not hasattr(model, "teacher")


def test_both_levels_have_256_channels_at_a_sixteenth_of_the_image() -> None:
    model = build_model(paper(), seed=0)
    with torch.no_grad():
        streams = model.streams(model.trunk_features(torch.rand(1, 3, 256, 256)))
    for level in (*streams.plain, *streams.denoising):
        assert level.shape == (1, 256, 16, 16)
    assert streams.logits.shape == (1, 16, 16)


@pytest.mark.slow
def test_at_the_published_size_features_are_64_by_64_and_the_map_is_in_the_unit_interval() -> None:
    model = build_model(paper(), seed=0)
    with torch.no_grad():
        streams = model.streams(model.trunk_features(torch.rand(1, 3, 1024, 1024)))
        output = model(torch.rand(1, 3, 1024, 1024))
    assert streams.plain[0].shape == streams.denoising[1].shape == (1, 256, 64, 64)
    assert output.anomaly_map.shape == (1, 1024, 1024)
    assert 0 <= float(output.anomaly_map.min()) <= float(output.anomaly_map.max()) <= 1
    assert float(output.score) == pytest.approx(float(output.anomaly_map.flatten().topk(100).values.mean()), abs=1e-6)


def test_students_may_start_from_mobile_sam(mobile_sam: tuple[Path, str], tmp_path: Path) -> None:
    model = build_model(_with(paper(), student_init="mobile_sam"), seed=0)
    with pytest.raises(WeightsError, match="set fine_tune"):
        start_students_from_mobile_sam(model, "", "", tmp_path)
    path, digest = mobile_sam
    start_students_from_mobile_sam(model, str(path), digest, tmp_path)
    expected = load_sam_teacher("mobile_sam", str(path), digest, tmp_path)
    for name, value in expected.image_encoder.state_dict().items():
        assert torch.equal(model.plain.state_dict()[name], value), name
        assert torch.equal(model.denoising.state_dict()[name], value), name
    for name, value in expected.decoder.state_dict().items():
        assert torch.equal(model.decoder.state_dict()[name], value), name
    with pytest.raises(ConfigError, match="student_init 'mobile_sam' is for"):
        _with(paper(), student_init="mobile_sam", embedding_dim=128)


def test_a_teacher_sees_other_sizes_with_its_positions_interpolated() -> None:
    sam = tiny_sam()
    before = sam.image_encoder.pos_embed.detach().clone()
    unchanged = SamTeacher(sam=tiny_sam(), image_size=(64, 64))
    assert torch.equal(unchanged.image_encoder.pos_embed, before)
    teacher = SamTeacher(sam=sam, image_size=(96, 128))
    first, second = teacher.levels(torch.rand(2, 3, 96, 128))
    assert first.shape == second.shape == (2, 32, 6, 8)
    assert not teacher.image_encoder.pos_embed.requires_grad
    # A field that rises evenly still does, and over the same range.
    sam = tiny_sam()
    ramp = torch.linspace(0, 1, 4).view(1, 4, 1, 1).expand_as(sam.image_encoder.pos_embed)
    sam.image_encoder.pos_embed = torch.nn.Parameter(ramp.contiguous())
    column = SamTeacher(sam=sam, image_size=(128, 128)).image_encoder.pos_embed[0, :, 0, 0]
    assert bool((column.diff() >= -1e-6).all())
    assert float(column.mean()) == pytest.approx(0.5, abs=1e-3)


def test_published_textures_come_as_they_are_and_the_embedded_recipe_changes_them() -> None:
    image = np.zeros((32, 32, 3), dtype=np.float32)
    white = [np.ones((32, 32, 3), dtype=np.float32)]
    config = dataclasses.replace(paper().data, image_size=(32, 32), max_beta=1e-9)

    def values(jitter: float) -> set[float]:
        found = set()
        for seed in range(8):
            rng = np.random.default_rng(seed)
            jittered = dataclasses.replace(config, texture_jitter=jitter)
            blended, mask = corrupt(image, jittered, rng, textures=white, others=[image])
            found |= set(np.round(blended[mask].ravel(), 4).tolist())
        return found

    assert values(0.0) == {1.0}
    assert len(values(1.0)) > 2


def test_quarter_turns_are_off_as_published_and_keep_the_shape() -> None:
    image = np.arange(8 * 8 * 3, dtype=np.float32).reshape(8, 8, 3) / 192
    config = dataclasses.replace(paper().data, image_size=(8, 8))
    assert np.array_equal(augment_normal(image, config, np.random.default_rng(0)), image)
    turning = dataclasses.replace(config, quarter_turns=True)
    seen = {augment_normal(image, turning, np.random.default_rng(seed)).tobytes() for seed in range(32)}
    assert seen == {np.ascontiguousarray(np.rot90(image, turns)).tobytes() for turns in range(4)}
    wide = {augment_normal(image[:4], turning, np.random.default_rng(seed)).shape for seed in range(8)}
    assert wide == {(4, 8, 3)}
    assert len(embedded_textures()) == 3


class Counting(SamTeacher):
    """Says how many images it was asked for."""

    asked = 0

    def levels(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked += len(images)
        return super().levels(images)


NUM_NORMALS, BATCH = 3, 8


def _small(config: RecipeConfig, **data: Any) -> TwoStream:
    config = _with(config, embedding_dim=32, decoder_mlp_dim=64, decoder_heads=4)
    return build_model(
        dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=(64, 64), **data)), seed=0
    )


def _samples(model: TwoStream, teacher: SamTeacher, folder: Path, *, repetitions: int, **changes: Any) -> Samples:
    images = np.random.default_rng(0).integers(0, 255, (NUM_NORMALS, 64, 64, 3), dtype=np.uint8)
    made = build_samples(
        model, Normals(images=images, digests=("a", "b", "c")), repetitions=repetitions, textures=embedded_textures(),
        seed=0, cache_dir=folder, label="new", teacher=teacher, **changes,
    )  # fmt: skip
    assert made is not None
    return made


def _batch(samples: Samples) -> TrainingBatch:
    return samples.make(samples.choose(np.random.default_rng(1), BATCH))


def _assert_of(teacher: SamTeacher, images: torch.Tensor, targets: tuple[torch.Tensor, ...]) -> None:
    for ours, theirs in zip(targets, teacher.levels(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_a_bank_spares_the_teacher_and_is_not_taken_for_another_teachers(tmp_path: Path) -> None:
    model, teacher = _small(paper_banked()), Counting(sam=tiny_sam())
    batch = _batch(_samples(model, teacher, tmp_path, repetitions=2))
    assert teacher.asked == 2 * 2 * NUM_NORMALS  # both views of each, and none for the batch
    _assert_of(teacher, batch.corrupted[0], batch.corrupted_targets)
    _assert_of(teacher, batch.clean[0], batch.clean_targets)
    teacher.asked = 0
    again = _batch(_samples(model, teacher, tmp_path, repetitions=2))
    assert teacher.asked == 0
    torch.testing.assert_close(again.corrupted_targets, batch.corrupted_targets, rtol=0, atol=0)
    torch.testing.assert_close(again.mask, batch.mask, rtol=0, atol=0)
    other = Counting(sam=tiny_sam(seed=1))
    _samples(model, other, tmp_path, repetitions=2)
    assert other.asked == 2 * 2 * NUM_NORMALS


def _losses(model: TwoStream, teacher: SamTeacher, samples: Samples, batch: TrainingBatch) -> dict[str, float]:
    run = StageRun(
        model=model.eval(), stage=model.config.stages[0], stage_index=0, steps=1, new=samples, replay=None,
        replay_share=0.0, teacher=teacher, seed=0,
    )  # fmt: skip
    return {name: value.item() for name, value in pixel_losses(run, batch).items()}


def test_where_every_step_corrupts_anew_the_teacher_sees_a_clean_image_once(tmp_path: Path) -> None:
    model, teacher = _small(paper()), Counting(sam=tiny_sam())
    samples = _samples(model, teacher, tmp_path, repetitions=0)
    batch = _batch(samples)
    assert teacher.asked == NUM_NORMALS
    _assert_of(teacher, batch.clean[0], batch.clean_targets)
    num_dirty = int((~batch.is_clean).sum())
    assert 0 < num_dirty < BATCH
    assert torch.equal(batch.corrupted[0][batch.is_clean], batch.clean[0][batch.is_clean])
    assert not batch.mask[batch.is_clean].any()

    unknown = _batch(_samples(model, teacher, tmp_path, repetitions=0, keep_clean=False))
    as_published = unknown._replace(is_clean=torch.zeros_like(unknown.is_clean))
    losses = []
    for each, asked in ((batch, num_dirty), (unknown, BATCH + num_dirty), (as_published, 2 * BATCH)):
        teacher.asked = 0
        losses.append(_losses(model, teacher, samples, each))
        assert teacher.asked == asked
    assert losses[0] == pytest.approx(losses[2], abs=1e-4)
    assert losses[1] == pytest.approx(losses[2], abs=1e-6)
    other = Counting(sam=tiny_sam(seed=1))
    _samples(model, other, tmp_path, repetitions=0)
    assert other.asked == NUM_NORMALS


@pytest.mark.parametrize("changes", [{"brightness": 0.1}, {"max_rotation_deg": 5.0}, {"quarter_turns": True}])
def test_a_clean_view_that_changes_is_not_kept(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, teacher = _small(paper(), **changes), Counting(sam=tiny_sam())
    assert _batch(_samples(model, teacher, tmp_path, repetitions=0)).clean_targets == ()
    assert teacher.asked == 0
