"""ISSTAD's network and formulas: hand-computed cases, independent references, and what is frozen."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity as reference_similarity
from torch import Tensor

from stlm.config_isstad import IsstadConfig, IsstadRecipe, read_recipe
from stlm.errors import ConfigError, ExportError, WeightsError
from stlm.export.onnx import export_onnx, parity
from stlm.losses import masked_patch_error, structural_similarity, weighted_pixel_cross_entropy
from stlm.models.isstad import Isstad, load_mae_checkpoint
from stlm.models.registry import build_model, carry_on
from stlm.nn.masked_autoencoder import PatchDecoder, PatchEncoder, patchify, random_keep, sincos_positions, unpatchify
from stlm.nn.smoothing import GaussianSmoothing
from stlm.recipes import isstad_paper, isstad_tiny, tiny
from stlm.training.isstad import repair_losses
from tests.helpers.small_networks import sha256_of


def tiny_recipe(**changes: Any) -> IsstadRecipe:
    recipe = isstad_tiny()
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **changes))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_positions_are_those_of_the_column_and_then_of_the_row() -> None:
    positions = sincos_positions(4, (2, 3))
    assert positions.shape == (1, 7, 4)
    assert torch.equal(positions[0, 0], torch.zeros(4))
    expected = [math.sin(2), math.cos(2), math.sin(1), math.cos(1)]  # row 1, column 2
    torch.testing.assert_close(positions[0, 6], torch.tensor(expected))


def test_frequencies_fall_from_one_towards_one_in_ten_thousand() -> None:
    column_1 = sincos_positions(8, (1, 2))[0, 2]
    torch.testing.assert_close(column_1[:4], torch.tensor([math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]))


def test_patches_are_cut_row_by_row_with_the_channel_last_and_put_back() -> None:
    picture = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = patchify(picture, 2)
    assert patches.shape == (2, 6, 12)
    # Second patch of the first row: pixels (0, 2) and (0, 3) first, all three channels of each.
    assert patches[0, 1, :6].tolist() == [2.0, 26.0, 50.0, 3.0, 27.0, 51.0]
    assert torch.equal(unpatchify(patches, 2, (2, 3)), picture)


def test_the_least_noisy_patches_are_kept_and_all_find_back() -> None:
    kept, restore = random_keep(torch.tensor([[0.3, 0.1, 0.2, 0.4]]), 0.5)
    assert kept.tolist() == [[1, 2]]
    assert restore.tolist() == [[2, 0, 1, 3]]


def test_shuffled_and_unshuffled_patches_decode_like_those_that_never_moved() -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder(image_size=(16, 24), patch_size=8, dim=16, depth=2, num_heads=2).eval()
    decoder = PatchDecoder(grid=(2, 3), patch_size=8, in_dim=16, dim=8, depth=2, num_heads=2).eval()
    picture, noise = torch.rand(3, 3, 16, 24), torch.rand(3, 6)
    kept, restore = random_keep(noise, 0.0)
    straight = decoder(encoder(picture))
    back = decoder(encoder(picture, kept), restore)
    for first, second in zip(straight, back, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    lost = decoder(encoder(picture, kept))
    assert not torch.allclose(straight[-1][:, 1:], lost[-1][:, 1:], atol=1e-3)


def test_hidden_patches_are_predicted_without_being_seen() -> None:
    model = build_model(isstad_tiny(), seed=0)
    picture, noise = images(1), torch.rand(1, 64)
    first = model.predict_hidden(picture, noise, 0.75)
    assert first.hidden.sum() == 48
    changed = patchify(picture, 8).clone()
    changed[first.hidden] = 0.5
    second = model.predict_hidden(unpatchify(changed, 8, (8, 8)), noise, 0.75)
    torch.testing.assert_close(first.predicted, second.predicted)
    changed = patchify(picture, 8).clone()
    changed[~first.hidden] = 0.5
    third = model.predict_hidden(unpatchify(changed, 8, (8, 8)), noise, 0.75)
    assert not torch.allclose(first.predicted, third.predicted, atol=1e-3)


@pytest.mark.parametrize("unshuffle", [True, False])
def test_scores_depend_on_chance_only_where_the_published_shuffle_is_kept(unshuffle: bool) -> None:
    model = build_model(tiny_recipe(unshuffle=unshuffle), seed=0)
    with torch.no_grad():
        first, second = (model(images(2)).score for _ in range(2))
    assert torch.equal(first, second) is unshuffle


@pytest.mark.parametrize(("size", "sigma"), [((24, 40), 2.0), ((64, 64), 4.0), ((9, 9), 2.5)])
def test_smoothing_is_scipys_gaussian_with_mirrored_borders(size: tuple[int, int], sigma: float) -> None:
    maps = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    radius = min(math.ceil(4 * sigma), min(size) - 1)
    expected = [ndimage.gaussian_filter(m.numpy(), sigma, mode="mirror", radius=radius) for m in maps[:, 0]]
    torch.testing.assert_close(
        GaussianSmoothing(size=size, sigma=sigma)(maps)[:, 0],
        torch.from_numpy(np.stack(expected)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_similarity_is_that_of_scikit_image() -> None:
    first, second = images(1, seed=1), images(1, seed=2) * 0.3 + images(1, seed=1) * 0.7
    expected = reference_similarity(
        first[0].numpy(),
        second[0].numpy(),
        channel_axis=0,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert structural_similarity(first, second).item() == pytest.approx(expected, abs=1e-4)
    assert structural_similarity(first, first).item() == pytest.approx(1.0, abs=1e-5)


def test_a_normal_pixel_weighs_three_times_an_anomalous_one() -> None:
    # Block one is undecided everywhere; block two is sure of "normal" everywhere: wrong on one pixel of four.
    undecided, sure = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    sure[:, 0] = 2.0
    mask = torch.zeros(1, 2, 2)
    mask[0, 0, 0] = 1.0
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    expected = (math.log(2) + (9 * right + 1 * wrong) / 10) / 2
    loss = weighted_pixel_cross_entropy([undecided, sure], mask, normal_weight=3.0, anomalous_weight=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_masked_error_counts_hidden_patches_only() -> None:
    predicted, target = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]])
    error = masked_patch_error(predicted, target, torch.tensor([[True, False]]))
    assert error.item() == pytest.approx((1 + 4 + 9) / 3)


def repaired_case(**changes: Any) -> tuple[Tensor, Tensor]:
    """Score and map, without smoothing, of two images: the second's residuals are a tenth of the first's."""
    model = build_model(tiny_recipe(smoothing_px=0.01, **changes), seed=0)
    model.residual_scale.fill_(2.0)
    probability = torch.full((2, 1, 64, 64), 0.5)
    residual = torch.zeros(2, 1, 64, 64)
    residual[0, 0, 0, 0], residual[1, 0, 0, 0] = 4.0, 0.4
    score, anomaly_map = model.combine(probability, residual)
    return score, anomaly_map[:, 0, 0]


def test_the_score_is_the_mean_of_probability_times_residual() -> None:
    score, peaks = repaired_case()
    torch.testing.assert_close(score, torch.tensor([2.0, 0.2]) / 4096)
    torch.testing.assert_close(peaks, torch.tensor([0.5 * 4 / 2, 0.5 * 0.4 / 2]))


def test_scaled_per_image_a_flawless_image_is_as_bright_as_a_defective_one() -> None:
    score, peaks = repaired_case(map_scale="per_image")
    torch.testing.assert_close(score, torch.tensor([2.0, 0.2]) / 4096)
    torch.testing.assert_close(peaks, torch.tensor([0.5, 0.5]))


def test_a_top_share_averages_the_largest_only() -> None:
    score, _ = repaired_case(score_top_share=2 / 4096)
    torch.testing.assert_close(score, torch.tensor([1.0, 0.1]))


def test_probability_is_the_mean_over_all_blocks() -> None:
    model = build_model(isstad_tiny(), seed=0)
    with torch.no_grad():
        model.mask_pred.weight.zero_()
        model.mask_pred.bias.copy_(torch.tensor([0.0, 1.0]).repeat(64))
        probability, residual = model.evidence(images(2))
    assert probability.shape == residual.shape == (2, 1, 64, 64)
    torch.testing.assert_close(probability, torch.full_like(probability, 1 / (1 + math.exp(-1))))


def test_the_scales_make_a_normals_score_one() -> None:
    model = build_model(isstad_tiny(), seed=0)
    normals = images(5)
    model.fit_scales(normals, batch_size=2)
    with torch.no_grad():
        assert model(normals).score.mean().item() == pytest.approx(1.0, rel=1e-4)
        assert model.evidence(normals)[1].amax(dim=(1, 2, 3)).mean().item() == pytest.approx(
            model.residual_scale.item(), rel=1e-4
        )


def test_in_the_second_stage_every_decoder_block_learns_and_the_encoder_does_not() -> None:
    model = build_model(isstad_tiny(), seed=0)
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[:, :8] = True
    losses = repair_losses(model, images(2), images(2, seed=1), mask, model.config.repair)
    assert set(losses) == {"classification", "mse", "ssim"}
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    for part in (model.encoder, model.mae_decoder):
        assert all(p.grad is None for p in part.parameters())
    for part in (model.decoder, model.mask_pred):
        assert [name for name, p in part.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_classifier_alone_teaches_every_block_but_not_the_pixel_head() -> None:
    model = build_model(isstad_tiny(), seed=0)
    torch.stack(model.repair(images(1)).logits[:1]).sum().backward()  # type: ignore[no-untyped-call]
    first, second = model.decoder.decoder_blocks
    assert all(p.grad is not None for p in first.parameters())
    assert all(p.grad is None for p in second.parameters())
    assert model.decoder.decoder_pred.weight.grad is None


def test_deepening_keeps_the_first_stages_blocks_and_ends() -> None:
    model = build_model(isstad_tiny(), seed=0)
    new_block = {name: value.clone() for name, value in model.decoder.decoder_blocks[1].state_dict().items()}
    model.deepen()
    after = model.decoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in model.mae_decoder.state_dict().items())
    assert all(torch.equal(after[f"decoder_blocks.1.{name}"], value) for name, value in new_block.items())


def test_published_normalisations_differ_between_the_stages() -> None:
    model = build_model(tiny_recipe(normalisation="published"), seed=0)
    grey = torch.full((1, 3, 64, 64), 0.5)
    assert model.normalise(grey, stage=1).abs().max() == 0
    assert model.normalise(grey, stage=0)[0, 0, 0, 0].item() == pytest.approx((0.5 - 0.485) / 0.229, rel=1e-5)
    torch.testing.assert_close(model.denormalise(model.normalise(grey)), grey)


def test_the_published_recipe_has_the_published_size() -> None:
    with torch.device("meta"):
        model = Isstad(config=isstad_paper())
    encoder = sum(p.numel() for p in model.encoder.parameters())
    trained = sum(p.numel() for part in (model.decoder, model.mask_pred) for p in part.parameters() if p.requires_grad)
    assert round(encoder / 1e6, 1) == 303.1
    assert round(trained / 1e6, 1) == 39.0


# --- the official checkpoint layout ---

_BLOCK = {
    "norm1.weight": (1,), "norm1.bias": (1,), "attn.qkv.weight": (3, 1), "attn.qkv.bias": (3,),
    "attn.proj.weight": (1, 1), "attn.proj.bias": (1,), "norm2.weight": (1,), "norm2.bias": (1,),
    "mlp.fc1.weight": (4, 1), "mlp.fc1.bias": (4,), "mlp.fc2.weight": (1, 4), "mlp.fc2.bias": (1,),
}  # fmt: skip


def official_state(config: IsstadConfig, *, patches: int, decoder_blocks: int) -> dict[str, Tensor]:
    """Random tensors under the names and shapes of ``mae_visualize_vit_large.pth``, at another width."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dim, decoder_dim, pixels = config.dim, config.decoder_dim, 3 * config.patch_size**2
    state = {
        "cls_token": random(1, 1, dim),
        "pos_embed": random(1, patches + 1, dim),
        "mask_token": random(1, 1, decoder_dim),
        "decoder_pos_embed": random(1, patches + 1, decoder_dim),
        "patch_embed.proj.weight": random(dim, 3, config.patch_size, config.patch_size),
        "patch_embed.proj.bias": random(dim),
        "norm.weight": random(dim),
        "norm.bias": random(dim),
        "decoder_embed.weight": random(decoder_dim, dim),
        "decoder_embed.bias": random(decoder_dim),
        "decoder_norm.weight": random(decoder_dim),
        "decoder_norm.bias": random(decoder_dim),
        "decoder_pred.weight": random(pixels, decoder_dim),
        "decoder_pred.bias": random(pixels),
    }
    for prefix, width, depth in (("blocks", dim, config.depth), ("decoder_blocks", decoder_dim, decoder_blocks)):
        for index in range(depth):
            for name, shape in _BLOCK.items():
                state[f"{prefix}.{index}.{name}"] = random(*(width * factor for factor in shape))
    return state


def write_checkpoint(path: Path, state: dict[str, Tensor]) -> str:
    torch.save({"model": state}, path)
    return sha256_of(path)


def test_a_checkpoint_in_the_official_layout_gives_encoder_and_first_decoder(tmp_path: Path) -> None:
    model = build_model(isstad_tiny(), seed=0)
    deep = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    state = official_state(model.config.model, patches=64, decoder_blocks=3)
    path = tmp_path / "mae.pth"
    load_mae_checkpoint(model, str(path), write_checkpoint(path, state), tmp_path)
    assert torch.equal(model.encoder.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert torch.equal(model.encoder.pos_embed, state["pos_embed"])
    assert torch.equal(model.mae_decoder.decoder_blocks[0].mlp.fc2.bias, state["decoder_blocks.0.mlp.fc2.bias"])
    assert torch.equal(model.mae_decoder.decoder_pred.weight, state["decoder_pred.weight"])
    # The second stage's decoder waits until the first stage is over.
    assert all(torch.equal(deep[name], value) for name, value in model.decoder.state_dict().items())


def test_the_published_networks_tensors_are_those_of_the_official_file() -> None:
    with torch.device("meta"):
        model = Isstad(config=isstad_paper())
    wanted = {**model.encoder.state_dict(), **model.mae_decoder.state_dict()}
    with torch.device("meta"):
        small = tiny_recipe().model
    names = official_state(dataclasses.replace(small, depth=24), patches=64, decoder_blocks=6)
    assert set(wanted) == set(names)
    assert wanted["decoder_pred.weight"].shape == (768, 512)
    assert wanted["pos_embed"].shape == (1, 197, 1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "norm.weight is missing"),
        ({"decoder_blocks.0.norm1.bias": None}, "decoder_blocks.0.norm1.bias is missing"),
        ({"cls_token": torch.zeros(1, 1, 48)}, r"cls_token is \(1, 1, 48\), expected \(1, 1, 32\)"),
        ({"blocks.1.norm1.bias": torch.zeros(32)}, "blocks.1.norm1.bias is unknown"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_name(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    model = build_model(isstad_tiny(), seed=0)
    state = official_state(model.config.model, patches=64, decoder_blocks=3)
    altered = {name: value for name, value in {**state, **change}.items() if value is not None}
    path = tmp_path / "mae.pth"
    with pytest.raises(WeightsError, match=message):
        load_mae_checkpoint(model, str(path), write_checkpoint(path, altered), tmp_path)


def test_an_altered_or_unnamed_checkpoint_is_refused(tmp_path: Path) -> None:
    model = build_model(isstad_tiny(), seed=0)
    path = tmp_path / "mae.pth"
    write_checkpoint(path, official_state(model.config.model, patches=64, decoder_blocks=1))
    with pytest.raises(WeightsError, match="expected sha256"):
        load_mae_checkpoint(model, str(path), "0" * 64, tmp_path)
    with pytest.raises(WeightsError, match="set fine_tune"):
        load_mae_checkpoint(model, "", "", tmp_path)


# --- recipes and export ---


def test_a_package_from_before_is_read_as_stlm() -> None:
    written = tiny().to_json()
    assert "kind" not in written
    assert read_recipe(written) == tiny()
    assert read_recipe(isstad_tiny().to_json()) == isstad_tiny()


def test_mistakes_in_a_recipe_are_named() -> None:
    written = isstad_tiny().to_json()
    with pytest.raises(ConfigError, match="unknown field 'teacher'"):
        read_recipe({**written, "model": {**written["model"], "teacher": "lite0"}})
    with pytest.raises(ConfigError, match="expected one of"):
        read_recipe({**written, "kind": "other"})
    with pytest.raises(ConfigError, match="multiple of patch_size 8"):
        read_recipe({**written, "data": {**written["data"], "image_size": [60, 64]}})


def test_a_champion_of_another_network_is_not_carried_on() -> None:
    model = build_model(isstad_tiny(), seed=0)
    longer = dataclasses.replace(isstad_tiny(), replay_share=0.25)
    assert carry_on(model, longer, where="config.json").config == longer
    for other in (tiny(), tiny_recipe(depth=2)):
        with pytest.raises(ConfigError, match="another network than the champion's"):
            carry_on(model, other, where="config.json")


@pytest.mark.parametrize("map_scale", ["held_out", "per_image"])
def test_the_exported_file_scores_like_the_model(tmp_path: Path, map_scale: str) -> None:
    model = build_model(tiny_recipe(map_scale=map_scale, score_top_share=0.1), seed=0)
    model.fit_scales(images(4))
    export_onnx(model, tmp_path / "model.onnx")
    pictures = [np.random.default_rng(i).integers(0, 256, (50 + i, 70, 3), dtype=np.uint8) for i in range(3)]
    report = parity(model, tmp_path / "model.onnx", pictures, threshold=1.0)
    assert report.max_score_difference < 1e-4
    assert report.max_map_difference < 1e-4
    assert report.num_decision_flips == 0


def test_a_model_that_shuffles_at_test_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"draws random numbers \(RandomUniformLike\)"):
        export_onnx(build_model(tiny_recipe(unshuffle=False), seed=0), tmp_path / "model.onnx")
