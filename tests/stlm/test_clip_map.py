"""CLIP's anomaly map: each formula by hand or against the library, and what must not change it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from stlm.errors import ConfigError, DataError
from stlm.zero_shot.clip_encoder import ClipEncoder, _attend_values
from stlm.zero_shot.clip_map import ClipMapper, anomaly_probability, text_prototype
from stlm.zero_shot.config import ClipMapConfig
from stlm.zero_shot.prompts import PromptSet
from tests.helpers.small_networks import tiny_clip

PROMPTS = PromptSet(
    object="tile",
    templates=("a photo of a {}.", "the {}."),
    normal=("flawless {}",),
    anomalous={"crack": ("{} with a crack",), "stain": ("stained {}", "dirty {}")},
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def picture(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_prototype_is_the_unit_mean_of_the_texts() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    torch.testing.assert_close(text_prototype(vectors), torch.tensor([math.sqrt(0.5), math.sqrt(0.5)]))


def test_the_probability_is_a_softmax_of_one_class_against_normal() -> None:
    tokens = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    normal, anomalous = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    found = anomaly_probability(tokens, normal, anomalous, temperature=0.1)

    # (0.8 - 0.6) / 0.1 = 2 and 0; (0 - 1) / 0.1 = -10 and 0
    expected = [[1 / (1 + math.exp(-2)), 0.5], [1 / (1 + math.exp(10)), 0.5]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_texts_and_whole_images_are_embedded_as_open_clip_does(encoder: ClipEncoder) -> None:
    import open_clip

    clip: Any = encoder.clip
    tokens = open_clip.tokenizer.SimpleTokenizer()(["a tile", "a cracked tile"])
    images = torch.rand(2, 3, 32, 32)
    normed = (images - encoder.mean) / encoder.std

    with torch.no_grad():
        torch.testing.assert_close(
            encoder.embed_texts(["a tile", "a cracked tile"]), clip.encode_text(tokens, normalize=True)
        )
        found = encoder.embed_images(images, [-1], value_attention=False)
        torch.testing.assert_close(found.image, clip.encode_image(normed, normalize=True))


def test_plain_patch_tokens_are_open_clips_intermediates_in_the_texts_space(encoder: ClipEncoder) -> None:
    visual: Any = encoder.clip.visual
    images = torch.rand(2, 3, 32, 32)

    found = encoder.embed_images(images, [0, -1], value_attention=False)
    with torch.no_grad():
        given = visual.forward_intermediates(
            (images - encoder.mean) / encoder.std, indices=[0, 2], normalize_intermediates=True, output_fmt="NLC"
        )["image_intermediates"]

    assert found.patches.shape == (2, 2, 4, 4, 24)
    for mine, theirs in zip(found.patches, given, strict=True):
        torch.testing.assert_close(mine.flatten(1, 2), F.normalize(theirs @ visual.proj, dim=-1))


def test_value_attention_is_the_sum_written_out(encoder: ClipEncoder) -> None:
    block: Any = encoder.clip.visual.transformer.resblocks[1]  # type: ignore[union-attr]
    tokens = torch.randn(1, 5, 32)

    with torch.no_grad():
        found = _attend_values(block, tokens)
        normed = block.ln_1(tokens)[0]
        values = normed @ block.attn.in_proj_weight[64:].T + block.attn.in_proj_bias[64:]
        heads = []
        for head in range(2):
            mine = values[:, head * 16 : (head + 1) * 16]
            rows = []
            for query in mine:
                weights = torch.stack([(query @ key) / math.sqrt(16) for key in mine]).softmax(0)
                rows.append(sum(weight * value for weight, value in zip(weights, mine, strict=True)))
            heads.append(torch.stack(rows))  # type: ignore[arg-type]
        expected = tokens[0] + block.attn.out_proj(torch.cat(heads, dim=1))

    torch.testing.assert_close(found[0], expected)


def test_several_blocks_are_averaged_and_a_pixel_takes_its_likeliest_class(encoder: ClipEncoder) -> None:
    config = ClipMapConfig(blocks=(1, -1), smoothing_cells=0.0, temperature=0.05, map_weight=1.0)
    mapper = ClipMapper(encoder=encoder, prompts=PROMPTS, config=config)
    image = picture(0, 32, 32)

    judgement = mapper.judge([image])[0]

    tokens = encoder.embed_images(
        torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255.0, [1, 2], value_attention=True
    )
    normal = text_prototype(encoder.embed_texts(PROMPTS.texts(PROMPTS.normal)))
    by_class = []
    for states in PROMPTS.anomalous.values():
        towards = text_prototype(encoder.embed_texts(PROMPTS.texts(states)))
        similarity = tokens.patches @ torch.stack([normal, towards], dim=1) / 0.05
        by_class.append(similarity.softmax(-1)[..., 1].mean(0)[0])
    cells = torch.stack(by_class)
    assert judgement.score == pytest.approx(float(cells.max()), abs=1e-5)
    assert judgement.likeliest == ("crack", "stain")[int(cells.amax((1, 2)).argmax())]
    # Bilinear enlargement by eight: the middle of each 8 x 8 block lies between equal neighbours of its own cell.
    expected = F.interpolate(cells.amax(0)[None, None], size=(32, 32), mode="bilinear")[0, 0]
    np.testing.assert_allclose(judgement.anomaly_map, expected.numpy(), atol=1e-5)


def test_the_score_weighs_the_whole_image_and_the_maps_peak(encoder: ClipEncoder) -> None:
    def score(weight: float) -> float:
        mapper = ClipMapper(encoder=encoder, prompts=PROMPTS, config=ClipMapConfig(map_weight=weight, temperature=0.1))
        return mapper.judge([picture(1)])[0].score

    assert score(0.25) == pytest.approx(0.75 * score(0.0) + 0.25 * score(1.0), abs=1e-6)


@pytest.mark.parametrize("value_attention", [True, False])
def test_an_image_gets_the_same_alone_as_in_company_and_twice(encoder: ClipEncoder, value_attention: bool) -> None:
    config = ClipMapConfig(value_attention=value_attention)
    mapper = ClipMapper(encoder=encoder, prompts=PROMPTS, config=config)
    pictures = [picture(seed, 30 + seed, 50 - seed) for seed in range(10)]

    together = mapper.judge(pictures)

    for image, judgement in zip(pictures, together, strict=True):
        alone, again = mapper.judge([image])[0], mapper.judge([image])[0]
        assert alone.score == again.score
        assert np.array_equal(alone.anomaly_map, again.anomaly_map)
        assert judgement.score == pytest.approx(alone.score, abs=1e-4)
        assert judgement.likeliest == alone.likeliest
        np.testing.assert_allclose(judgement.anomaly_map, alone.anomaly_map, atol=1e-4)
        assert judgement.anomaly_map.shape == (32, 32)
        assert 0.0 <= judgement.anomaly_map.min() <= judgement.anomaly_map.max() <= 1.0


def test_smoothing_lowers_a_lonely_peak(encoder: ClipEncoder) -> None:
    peaks = [
        ClipMapper(encoder=encoder, prompts=PROMPTS, config=ClipMapConfig(smoothing_cells=sigma))
        .judge([picture(5)])[0]
        .anomaly_map.max()
        for sigma in (0.0, 1.0, 3.0)
    ]

    assert peaks[0] > peaks[1] > peaks[2]


def test_an_image_smaller_than_a_patch_is_refused_by_its_place(encoder: ClipEncoder) -> None:
    mapper = ClipMapper(encoder=encoder, prompts=PROMPTS, config=ClipMapConfig())

    with pytest.raises(DataError, match="image 1: 7 x 90 pixels, smaller than one patch of 8"):
        mapper.judge([picture(0), picture(1, 7, 90)])
    assert mapper.judge([]) == []


def test_a_block_that_is_not_there_and_a_text_that_is_too_long_are_refused(encoder: ClipEncoder) -> None:
    with pytest.raises(ConfigError, match="the image transformer has 3 blocks, got 3"):
        ClipMapper(encoder=encoder, prompts=PROMPTS, config=ClipMapConfig(blocks=(3,))).judge([picture(0)])
    with pytest.raises(ConfigError, match="has 102 tokens, CLIP reads 77"):
        encoder.embed_texts(["a " * 100])


@pytest.mark.parametrize(
    ("field", "value"), [("blocks", ()), ("temperature", 0.0), ("smoothing_cells", -1.0), ("map_weight", 1.5)]
)
def test_a_constant_that_cannot_be_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ClipMapConfig(**{field: value})  # type: ignore[arg-type]
