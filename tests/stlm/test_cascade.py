"""Points and cascade: each step by hand, the decoder against the library's own predictor, and what always holds."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from segment_anything import SamPredictor
from torch import Tensor

from stlm.errors import DataError
from stlm.nn.mobile_sam import build_mobile_sam
from stlm.zero_shot.cascade import Refinement, image_features, refine_mask, region_mask
from stlm.zero_shot.config import CascadeConfig
from stlm.zero_shot.points import find_region, map_on_grid, negative_points, positive_points, ring_around
from stlm.zero_shot.segmenter import Embedding, Prompts, SamSegmenter
from tests.helpers.small_networks import tiny_sam

CONFIG = CascadeConfig(frame_px=64)


def picture(seed: int = 0, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blob(height: int = 48, width: int = 64, row: int = 20, column: int = 40, radius: float = 6.0) -> Any:
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2)).astype(np.float32)


@pytest.fixture(scope="module")
def segmenter() -> SamSegmenter:
    return SamSegmenter(sam=tiny_sam().eval())


class Scripted:
    """A segmenter whose answers are given; it notes what it was asked."""

    def __init__(self, answers: list[Tensor]) -> None:
        self.answers = answers
        self.asked: list[Prompts] = []

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        size = image.shape[:2]
        return Embedding(features=torch.ones(2, 4, 4), image_size=size, input_size=size, square_px=max(size))

    def decode(self, embedding: Embedding, prompts: Prompts) -> Tensor:
        self.asked.append(prompts)
        return self.answers[len(self.asked) - 1]


# --- the steps, by hand ---


def test_the_region_lies_above_half_way_from_median_to_peak() -> None:
    anomaly_map = np.array([[0.0, 0.0, 0.0, 0.4, 0.6, 1.0]], dtype=np.float32)  # median 0.2, half way 0.6

    assert find_region(anomaly_map, 0.5).tolist() == [[False, False, False, False, False, True]]
    assert find_region(anomaly_map, 0.25).tolist() == [[False, False, False, False, True, True]]
    assert find_region(anomaly_map, 0.5, threshold=0.3).tolist() == [[False, False, False, True, True, True]]


def test_a_flat_map_and_one_below_its_threshold_have_no_region() -> None:
    assert not find_region(np.full((4, 4), 0.7, np.float32), 0.5).any()
    assert not find_region(blob(), 0.5, threshold=2.0).any()


def test_the_ring_is_what_a_disc_adds() -> None:
    region = np.zeros((7, 7), dtype=bool)
    region[3, 3] = True

    thin, thick = ring_around(region, 3), ring_around(region, 5)

    assert np.argwhere(thin).tolist() == [[2, 3], [3, 2], [3, 4], [4, 3]]
    assert thick.sum() == 12  # a disc of radius 2 has 13 cells
    assert not ring_around(np.zeros((5, 5), dtype=bool), 5).any()
    assert not ring_around(np.ones((5, 5), dtype=bool), 5).any()


def test_positive_points_are_the_highest_of_the_region_and_keep_their_distance() -> None:
    anomaly_map = np.array([[9.0, 8.0, 7.0, 6.0, 10.0]], dtype=np.float32)
    region = np.array([[True, True, True, True, False]])

    assert positive_points(anomaly_map, region, number=2, spacing=0.0).tolist() == [[0, 0], [0, 1]]
    assert positive_points(anomaly_map, region, number=3, spacing=2.0).tolist() == [[0, 0], [0, 2]]
    assert positive_points(anomaly_map, region, number=5, spacing=99.0).tolist() == [[0, 0]]


def test_equal_pixels_are_taken_in_reading_order() -> None:
    flat = np.ones((2, 3), dtype=np.float32)

    assert positive_points(flat, np.ones((2, 3), bool), number=3, spacing=0.0).tolist() == [[0, 0], [0, 1], [0, 2]]


def test_negative_points_are_the_ring_pixels_least_like_the_regions_mean() -> None:
    # One feature per cell: the region's mean is (1, 0); cosines of the ring, by column: 0.6, 1, -1, 0.
    features = torch.tensor([[[3.0, 1.0, 1.0, 5.0, -2.0, 0.0]], [[4.0, 1.0, -1.0, 0.0, 0.0, 7.0]]])
    region = np.array([[False, True, True, False, False, False]])
    ring = np.array([[True, False, False, True, True, True]])

    found = negative_points(features, region, ring, number=3, spacing=0.0)

    assert found.tolist() == [[0, 4], [0, 5], [0, 0]]
    assert negative_points(features, region, ring, number=3, spacing=2.0).tolist() == [[0, 4], [0, 0]]


def test_features_between_cells_are_interpolated() -> None:
    # Grid of four over features of two: cell centres at 0.25 and 0.75 of the way, pixels at 1/8, 3/8, 5/8, 7/8.
    features = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    region = np.array([[True, False, False, False]])
    ring = np.array([[False, True, True, True]])

    assert negative_points(features, region, ring, number=3, spacing=0.0).tolist() == [[0, 3], [0, 2], [0, 1]]


def test_without_a_region_or_a_ring_there_are_no_negative_points() -> None:
    features, nothing, all_of_it = torch.ones(1, 2, 2), np.zeros((4, 4), bool), np.ones((4, 4), bool)

    assert negative_points(features, nothing, all_of_it, number=3, spacing=0.0).shape == (0, 2)
    assert negative_points(features, all_of_it, nothing, number=3, spacing=0.0).shape == (0, 2)


def test_the_grid_has_the_images_proportions_and_is_no_finer_than_the_image() -> None:
    square = np.zeros((10, 10), dtype=np.float32)

    assert map_on_grid(square, (300, 600), 64).shape == (32, 64)
    assert map_on_grid(square, (600, 300), 64).shape == (64, 32)
    assert map_on_grid(square, (20, 30), 64).shape == (20, 30)
    assert map_on_grid(square, (3000, 1), 64).shape == (64, 1)


# --- the decoder, against segment-anything's own predictor ---


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (130, 90), (20, 20)])
def test_three_passes_are_what_sams_predictor_gives_for_the_same_prompts(
    segmenter: SamSegmenter, size: tuple[int, int]
) -> None:
    image = picture(1, *size)
    predictor = SamPredictor(tiny_sam().eval())
    predictor.set_image(image)
    embedding = segmenter.embed(image)
    torch.testing.assert_close(embedding.features, predictor.get_image_embedding()[0])

    found = refine_mask(blob(*size, row=size[0] // 3, column=size[1] // 2), segmenter, embedding, CONFIG)

    logits: NDArray[np.float32] | None = None
    for number, mine in enumerate(found.logits):
        box = np.array(found.box) if number == 2 and found.box is not None else None
        mask, _, logits = predictor.predict(
            found.points, found.labels, box=box, mask_input=logits, multimask_output=False
        )
        np.testing.assert_allclose(mine.numpy(), logits[0], atol=1e-4)
        if found.source == f"pass {number + 1}":
            assert np.array_equal(found.mask, mask[0])


def test_mobile_sam_answers_through_the_same_interface() -> None:
    torch.manual_seed(0)
    small = SamSegmenter(sam=build_mobile_sam().eval())
    embedding = small.embed(picture(0, 100, 200))

    found = refine_mask(blob(100, 200, row=40, column=90), small, embedding, CascadeConfig())

    assert embedding.features.shape == (256, 64, 64)
    assert image_features(embedding).shape == (256, 32, 64)
    assert found.mask.shape == (100, 200)
    assert all(logits.shape == (256, 256) for logits in found.logits)


# --- the cascade ---


def halves(top: float, bottom: float) -> Tensor:
    logits = torch.full((16, 16), bottom)
    logits[:8] = top
    return logits


def test_prompts_get_tighter_from_pass_to_pass() -> None:
    first, second, third = halves(1.0, -1.0), halves(-1.0, 1.0), halves(2.0, -2.0)
    scripted = Scripted([first, second, third])

    found = refine_mask(blob(64, 64), scripted, scripted.embed(picture(0, 64, 64)), CONFIG)

    points, with_logits, with_box = scripted.asked
    assert (points.logits, points.box) == (None, None)
    assert with_logits.logits is first
    assert with_logits.box is None
    assert with_box.logits is second
    assert with_box.box == (0.0, 32.0, 63.0, 63.0)  # the lower half, which the second pass answered
    assert all(prompts.points is points.points for prompts in scripted.asked)
    assert found.source == "pass 3"
    assert found.mask[:32].all()
    assert not found.mask[32:].any()


def test_the_box_is_of_the_most_anomalous_part_not_of_the_largest() -> None:
    answer = torch.full((64, 64), -1.0)
    answer[2:40, 2:30] = 1.0
    answer[50:54, 50:56] = 1.0
    scripted = Scripted([answer] * 3)
    peak = blob(64, 64, row=52, column=52, radius=3.0)

    refine_mask(peak, scripted, scripted.embed(picture(0, 64, 64)), CONFIG)

    assert scripted.asked[2].box == (50.0, 50.0, 55.0, 53.0)


@pytest.mark.parametrize(
    ("answers", "source", "passes"),
    [
        (["nothing", "nothing"], "region", 2),
        (["something", "nothing"], "pass 1", 2),
        (["nothing", "something", "nothing"], "pass 2", 3),
        (["something", "something", "something"], "pass 3", 3),
    ],
)
def test_an_empty_answer_never_replaces_one_that_says_something(answers: list[str], source: str, passes: int) -> None:
    kinds = {"nothing": halves(-1.0, -1.0), "something": halves(1.0, -1.0)}
    scripted = Scripted([kinds[kind] for kind in answers])

    found = refine_mask(blob(64, 64), scripted, scripted.embed(picture(0, 64, 64)), CONFIG)

    assert (found.source, len(found.logits)) == (source, passes)
    assert found.mask.any()
    if source == "region":
        assert np.array_equal(found.mask, found.region)


def test_an_empty_region_asks_nothing_and_gives_an_empty_mask() -> None:
    scripted = Scripted([])

    found = refine_mask(np.full((8, 8), 3.0, np.float32), scripted, scripted.embed(picture()), CONFIG)

    assert found.source == "nothing"
    assert found.mask.shape == (48, 64)
    assert not found.mask.any()
    assert (len(found.points), found.logits, found.box) == (0, (), None)


def test_a_region_of_the_whole_image_has_no_ring_and_so_no_negative_points(segmenter: SamSegmenter) -> None:
    found = refine_mask(blob(), segmenter, segmenter.embed(picture()), CONFIG, threshold=-1.0)

    assert found.region.all()
    assert set(found.labels.tolist()) == {1}
    assert found.mask.any()


def test_a_map_of_any_scale_and_size_gives_the_same_mask(segmenter: SamSegmenter) -> None:
    embedding = segmenter.embed(picture())

    found = refine_mask(blob(), segmenter, embedding, CONFIG)
    scaled = refine_mask(blob() * 50.0 - 7.0, segmenter, embedding, CONFIG)

    assert np.array_equal(found.mask, scaled.mask)
    assert np.array_equal(found.points, scaled.points)


def test_the_same_inputs_give_the_same_masks_in_any_order(segmenter: SamSegmenter) -> None:
    cases = [(picture(seed), blob(row=10 + 5 * seed)) for seed in range(4)]

    def refined(order: list[int]) -> dict[int, Refinement]:
        embeddings = {seed: segmenter.embed(cases[seed][0]) for seed in order}
        return {seed: refine_mask(cases[seed][1], segmenter, embeddings[seed], CONFIG) for seed in order}

    once, backwards = refined([0, 1, 2, 3]), refined([3, 2, 1, 0])

    for seed in range(4):
        assert np.array_equal(once[seed].mask, backwards[seed].mask)
        assert all(map(torch.equal, once[seed].logits, backwards[seed].logits))


@pytest.mark.parametrize(
    "anomaly_map",
    [
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), np.inf, np.float32),
        np.zeros((1, 4, 4), np.float32),
        np.zeros((0, 4), np.float32),
    ],
)
def test_what_is_no_finite_map_is_refused(segmenter: SamSegmenter, anomaly_map: NDArray[np.float32]) -> None:
    with pytest.raises(DataError, match=r"expected a finite \(h, w\) array"):
        refine_mask(anomaly_map, segmenter, segmenter.embed(picture()), CONFIG)
    with pytest.raises(DataError, match=r"expected a finite \(h, w\) array"):
        region_mask(anomaly_map, (8, 8), CONFIG)


def test_an_image_too_narrow_to_be_encoded_is_refused(segmenter: SamSegmenter) -> None:
    with pytest.raises(DataError, match="4000 x 1 pixels, too narrow"):
        segmenter.embed(picture(0, 4000, 1))


def test_without_sam_the_mask_is_the_region() -> None:
    found = region_mask(blob(), (48, 64), CONFIG)

    assert found.source == "region"
    assert found.mask[20, 40]
    assert np.array_equal(found.mask, blob() > 0.5 * (1 + np.median(blob())))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(17, 90),
    width=st.integers(17, 90),
    positives=st.integers(1, 6),
    negatives=st.integers(0, 6),
    spacing=st.floats(0.0, 0.6),
    level=st.floats(0.05, 0.95),
)
def test_positives_lie_in_the_region_negatives_around_it_and_all_keep_their_distance(
    segmenter: SamSegmenter,
    seed: int,
    height: int,
    width: int,
    positives: int,
    negatives: int,
    spacing: float,
    level: float,
) -> None:
    config = CascadeConfig(
        frame_px=32,
        num_positives=positives,
        num_negatives=negatives,
        positive_spacing=spacing,
        negative_spacing=spacing / 4,
        region_level=level,
    )
    anomaly_map = np.random.default_rng(seed).random((7, 9), dtype=np.float32)

    found = refine_mask(anomaly_map, segmenter, segmenter.embed(picture(seed, height, width)), config)

    assert found.region.any()
    assert found.mask.any()
    assert found.mask.shape == (height, width)
    columns, rows = np.rint(found.points).astype(int).T
    in_region = found.region[rows, columns]
    assert in_region[found.labels == 1].all()
    assert not in_region[found.labels == 0].any()
    assert 1 <= (found.labels == 1).sum() <= positives
    assert (found.labels == 0).sum() <= negatives
    cell = max(height, width) / max(map_on_grid(anomaly_map, (height, width), 32).shape)
    for label, least in ((1, spacing), (0, spacing / 4)):
        mine = found.points[found.labels == label]
        apart = np.linalg.norm(mine[:, None] - mine[None], axis=-1) + 1e9 * np.eye(len(mine))
        # Cells of the grid are not exactly square where the image's sides do not divide.
        assert (apart > (0.9 * least * max(height, width) - 2 * cell)).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("frame_px", 8), ("region_level", 1.0), ("num_positives", 0), ("num_negatives", -1), ("ring_kernel", 2.0)],
)
def test_a_constant_that_cannot_be_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        CascadeConfig(**{field: value})  # type: ignore[arg-type]


def test_the_papers_lengths_are_read_in_sams_frame() -> None:
    config = CascadeConfig()

    assert (config.positive_spacing * 1024, config.ring_kernel * 1024) == (400, 25)
