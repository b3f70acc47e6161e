"""Shape-wise self-corruption: what changes, where, and that it repeats."""

import dataclasses

import numpy as np
import pytest

from stlm.config_isstad import ShapesConfig
from stlm.data.self_corruption import changed_copy, corrupt_by_shapes, object_box, shape_mask
from stlm.data.synthesis import FloatImage

ALWAYS = ShapesConfig(probability=1.0)


def coloured(seed: int = 0, size: tuple[int, int] = (48, 64)) -> FloatImage:
    return np.random.default_rng(seed).random((*size, 3), dtype=np.float32)


def bright_square() -> FloatImage:
    image = np.full((60, 80, 3), 0.1, dtype=np.float32)
    image[20:40, 30:60] = 0.9
    image[2:4, 2:4] = 0.9
    return image


@pytest.mark.parametrize("seed", range(12))
def test_only_what_the_mask_names_changes_and_the_draw_repeats(seed: int) -> None:
    image = coloured(seed)
    first, second = (corrupt_by_shapes(image, ALWAYS, np.random.default_rng(seed)) for _ in range(2))
    corrupted, mask = first
    assert mask.any()
    assert np.array_equal(corrupted[~mask], image[~mask])
    assert corrupted.dtype == np.float32
    assert 0.0 <= corrupted.min() <= corrupted.max() <= 1.0
    assert np.array_equal(corrupted, second[0])
    assert np.array_equal(mask, second[1])


def test_an_image_is_left_alone_as_often_as_configured() -> None:
    image = coloured()
    rng = np.random.default_rng(0)
    shares = [corrupt_by_shapes(image, ShapesConfig(), rng)[1].any() for _ in range(300)]
    assert np.mean(shares) == pytest.approx(2 / 3, abs=0.08)
    untouched, mask = corrupt_by_shapes(image, ShapesConfig(probability=0.0), rng)
    assert np.array_equal(untouched, image)
    assert not mask.any()


def test_shapes_are_of_all_three_kinds_and_stay_within_their_box() -> None:
    box, sides = (10, 20, 50, 60), (0.5, 0.5)
    shares = []
    for seed in range(60):
        mask = shape_mask((64, 96), box, sides, np.random.default_rng(seed))
        rows, columns = np.nonzero(mask)
        assert 10 <= rows.min() <= rows.max() < 50
        assert 20 <= columns.min() <= columns.max() < 60
        shares.append(mask.sum() / 20**2)
    assert any(share == 1.0 for share in shares)  # rectangles fill their side by side
    assert any(share == pytest.approx(np.pi / 4, abs=0.05) for share in shares)  # ellipses
    assert any(0 < share < 0.6 for share in shares)  # polygons


def test_the_box_is_that_of_the_largest_bright_region_widened() -> None:
    assert object_box(bright_square(), padding=0.0) == (20, 30, 40, 60)
    assert object_box(bright_square(), padding=0.1) == (18, 27, 42, 63)
    assert object_box(bright_square(), padding=2.0) == (0, 0, 60, 80)
    assert object_box(np.full((8, 9, 3), 0.5, dtype=np.float32), padding=0.1) == (0, 0, 8, 9)


def test_confined_shapes_stay_on_the_object() -> None:
    config = dataclasses.replace(ALWAYS, confine=True, padding=0.0, min_change=0.0)
    for seed in range(20):
        _, mask = corrupt_by_shapes(bright_square(), config, np.random.default_rng(seed))
        outside = mask.copy()
        outside[20:40, 30:60] = False
        assert mask.any()
        assert not outside.any()


def test_on_a_grey_image_copies_that_look_alike_are_drawn_again() -> None:
    grey = np.repeat(coloured()[..., :1], 3, axis=2)
    for seed in range(40):
        corrupted, mask = corrupt_by_shapes(
            grey, dataclasses.replace(ALWAYS, max_shapes=1), np.random.default_rng(seed)
        )
        assert np.abs(corrupted[mask] - grey[mask]).mean() >= ALWAYS.min_change


def test_a_mirrored_copy_and_a_noisy_one_are_what_they_say() -> None:
    image = coloured()
    mirrored = {image[::-1].tobytes(), image[:, ::-1].tobytes(), image[::-1, ::-1].tobytes()}
    copies = [changed_copy(image, np.random.default_rng(seed)) for seed in range(60)]
    assert mirrored <= {copy.tobytes() for copy in copies}
    half_noise = [copy for copy in copies if np.all(np.abs(copy - 0.5 * image - 0.25) <= 0.2501)]
    assert len(half_noise) > 5
