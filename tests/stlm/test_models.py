"""Every recipe's network: shapes, gradients, what is frozen, and that it survives being saved."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from stlm.errors import ConfigError, WeightsError
from stlm.models.registry import WEIGHTS_NAME, build_model, load_model, save_model
from stlm.nn.aggregation import FeatureAggregation
from stlm.nn.encoders import TinyViTStudent, mask_features
from stlm.nn.lite0 import _lite0_weights
from stlm.nn.memory import NormalMemory, k_centre
from stlm.recipes import RECIPES, recipe

CPU_RECIPES = ("tiny", "lite", "isstad_tiny")


@pytest.mark.parametrize("name", CPU_RECIPES)
def test_output_has_one_score_and_one_full_size_map_per_image(name: str) -> None:
    model = build_model(recipe(name), seed=0)
    with torch.no_grad():
        output = model(torch.rand(3, 3, *model.image_size))
    assert output.score.shape == (3,)
    assert output.anomaly_map.shape == (3, *model.image_size)
    assert torch.isfinite(output.score).all()
    assert torch.isfinite(output.anomaly_map).all()


@pytest.mark.parametrize("name", CPU_RECIPES)
def test_a_batch_of_two_equals_two_batches_of_one(name: str) -> None:
    model = build_model(recipe(name), seed=0)
    images = torch.rand(2, 3, *model.image_size)
    with torch.no_grad():
        together = model(images).score
        alone = torch.cat([model(image[None]).score for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_trained_parts_get_gradients_and_frozen_parts_do_not() -> None:
    model = build_model(recipe("tiny"), seed=0).train()
    features = model.standardise(model.trunk_features(torch.rand(2, 3, 64, 64)))
    streams = model.streams(features)
    (streams.logits.sum() + sum(level.square().sum() for level in streams.plain + streams.denoising)).backward()
    for part in (model.plain, model.denoising, model.decoder, model.aggregation):
        without = [name for name, p in part.named_parameters() if p.requires_grad and p.grad is None]
        # No prompt and no mask head: the last update of the output tokens reaches nothing that is read.
        assert [name for name in without if "final_attn" not in name and "norm_final" not in name] == [], without
    for frozen in (model.trunk, model.embedding, model.teacher_decoder, model.distribution):
        assert frozen is not None
        assert not any(p.requires_grad for p in frozen.parameters())


def test_the_shared_decoder_starts_as_the_teachers() -> None:
    model = build_model(recipe("tiny"), seed=0)
    assert model.teacher_decoder is not None
    embedding = torch.rand(1, 32, 16, 16)
    torch.testing.assert_close(model.decoder(embedding), model.teacher_decoder(embedding))


def test_saved_model_scores_the_same_after_loading(tmp_path: Path) -> None:
    model = build_model(recipe("tiny"), seed=3)
    images = torch.rand(2, 3, 64, 64)
    first = save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert save_model(copy.deepcopy(loaded), tmp_path / "again") == first
    with torch.no_grad():
        assert torch.equal(model(images).score, loaded(images).score)


@pytest.mark.parametrize("name", ["tiny", "lite"])
def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(name: str) -> None:
    _lite0_weights.cache_clear()  # whoever reads them first must not get another model
    before = torch.random.get_rng_state()
    first = build_model(recipe(name), seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    second = build_model(recipe(name), seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    save_model(build_model(recipe("tiny"), seed=0), tmp_path)
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=str(tmp_path)):
        load_model(tmp_path)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="known: lite, tiny, paper"):
        recipe("large")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_survive_json_and_refuse_unknown_fields(name: str) -> None:
    config = recipe(name)
    assert type(config).from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="unknown field 'colour'"):
        type(config).from_json({**config.to_json(), "colour": 1})


def test_the_published_student_has_the_published_size() -> None:
    student = TinyViTStudent(embedding_dim=256).eval()
    assert sum(p.numel() for p in student.parameters()) == 5_743_892
    with torch.no_grad():
        assert student(torch.rand(1, 3, 256, 256)).shape == (1, 256, 16, 16)


def test_aggregation_starts_from_a_small_probability() -> None:
    aggregation = FeatureAggregation(in_channels=8, width=4, dilation=3, dilated_branches=1).eval()
    with torch.no_grad():
        aggregation.head[0].requires_grad_(False)
        probability = aggregation(torch.zeros(1, 8, 6, 6)).sigmoid().mean()
    assert probability < 0.2


def test_masking_hides_exactly_the_hidden_cells_at_every_level() -> None:
    keep = torch.tensor([[[True, False], [False, True]]])
    fine, coarse = mask_features((torch.ones(1, 3, 4, 4), torch.ones(1, 5, 2, 2)), keep)
    assert fine.sum() == 3 * 8
    assert torch.equal(coarse[0, 0], keep[0].float())
    assert fine[0, 0, 0, 3] == 0
    assert fine[0, 0, 3, 3] == 1


def test_memory_distance_is_the_distance_to_the_nearest_vector() -> None:
    memory = NormalMemory(size=3, embedding_dim=2)
    memory.update(torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]]), seed=0)
    distance = memory(torch.tensor([[0.0, 9.0], [1.0, 0.0]]).view(1, 2, 1, 2))
    torch.testing.assert_close(distance, torch.tensor([[[1.0, 1.0]]]))


def test_memory_keeps_its_size_and_covers_old_and_new() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(200, 4, generator=generator), torch.randn(200, 4, generator=generator) + 20.0
    memory = NormalMemory(size=32, embedding_dim=4)
    memory.update(old, seed=0)
    memory.update(new, seed=1)
    assert memory.vectors.shape == (32, 4)
    assert (memory.vectors[:, 0] < 10).any()
    assert (memory.vectors[:, 0] > 10).any()


def test_k_centre_picks_one_of_each_cluster_first() -> None:
    centres = torch.eye(4) * 100
    points = centres.repeat_interleave(50, dim=0) + torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    picked = k_centre(points, 4, seed=0, projection_dim=4)
    assert sorted(int(i) // 50 for i in picked) == [0, 1, 2, 3]


def test_finer_levels_sharpen_the_map_and_coarser_ones_judge_the_image() -> None:
    config = dataclasses.replace(
        recipe("lite").model,
        distribution_taps=(2, 15),
        score_maps=("aggregation", "deep_distribution"),
        distribution_mean="arithmetic",
    )
    deep = build_model(dataclasses.replace(recipe("lite"), model=config), seed=0, pretrained=False)
    model = build_model(
        dataclasses.replace(recipe("lite"), model=dataclasses.replace(config, distribution_taps=(2,))),
        seed=0,
        pretrained=False,
    )
    assert (model.core_taps, model.extra_taps) == ((4, 7, 10), (2,))
    distances = torch.arange(5.0).view(1, 5, 1, 1)
    assert float(deep._of_levels(distances, deep=False)) == pytest.approx((0 + 1 + 2 + 3) / 4)
    assert float(deep._of_levels(distances, deep=True)) == pytest.approx((0 + 1 + 2 + 4) / 4)
    assert float(model._of_levels(distances[:, :4], deep=True)) == pytest.approx((0 + 1 + 2) / 3)
    assert model.map_names == ("aggregation", "distribution", "deep_distribution")
    maps = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    anomaly_map, score_map = model.fuse(maps)
    assert float(anomaly_map) == pytest.approx(0.2 * 1 + 0.8 * 10)
    assert float(score_map) == pytest.approx(0.2 * 1 + 0.8 * 100)


def test_the_geometric_mean_of_the_levels_is_averaged_as_a_log() -> None:
    model = build_model(recipe("lite"), seed=0, pretrained=False)
    assert model.config.model.distribution_mean == "geometric"
    distances = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    assert float(model._of_levels(distances, deep=False).exp()) == pytest.approx(2.0)
    assert torch.isfinite(model._of_levels(0 * distances, deep=False)).all()


def test_training_does_not_see_the_extra_levels() -> None:
    model = build_model(recipe("tiny"), seed=0)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        core, everything = model.trunk_features(images), model.trunk_features(images, extra=True)
    assert (len(core), len(everything)) == (2, 3)
    torch.testing.assert_close(core, everything[:2])
    assert everything[2].shape == (1, 16, 4, 4)


def test_a_block_that_the_teacher_does_not_have_is_refused() -> None:
    config = recipe("lite")
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, distribution_taps=(3,)))
    with pytest.raises(ConfigError, match="has no block"):
        build_model(wrong, seed=0)
    with pytest.raises(ConfigError, match="score_maps"):
        dataclasses.replace(config.model, score_maps=("aggregation",))
