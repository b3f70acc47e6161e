"""A part that is not like the others stands out, whatever the batch looks like."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stlm.errors import DataError
from stlm.screening import outlier_limit, outlier_scores, patch_features


def features(num: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(num, 6, 6, 5, generator=torch.Generator().manual_seed(seed))


def slow_scores(values: Tensor) -> list[float]:
    """The definition, patch by patch."""
    num, height, width, channels = values.shape
    flat = values.reshape(-1, channels)
    scaled = (values - flat.mean(0)) / (flat.std(0) + 1e-6)
    scores = []
    for image in range(num):
        nearest = []
        for row in range(height):
            for column in range(width):
                apart = [
                    float((scaled[image, row, column] - scaled[other, r, c]).norm())
                    for other in range(num)
                    if other != image
                    for r in range(max(0, row - 1), min(height, row + 2))
                    for c in range(max(0, column - 1), min(width, column + 2))
                ]
                nearest.append(min(apart))
        scores.append(float(np.log(np.mean(sorted(nearest)[-3:]))))
    return scores


def test_scores_agree_with_the_definition() -> None:
    values = features(9)[:, :4, :4]

    np.testing.assert_allclose(outlier_scores(values), slow_scores(values), rtol=1e-4)


def test_an_odd_patch_makes_its_image_the_worst() -> None:
    values = features()
    values[7, 2, 3] += 6.0

    scores = outlier_scores(values)

    assert scores.argmax() == 7
    assert scores[7] > outlier_limit(scores, 3.0)


def test_order_of_the_images_does_not_matter() -> None:
    values = features()
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))

    np.testing.assert_allclose(outlier_scores(values)[order.numpy()], outlier_scores(values[order]), rtol=1e-5)


def test_a_large_batch_is_compared_with_a_fixed_number_and_the_same_ones_each_time() -> None:
    values = features(300)
    values[280, 1, 1] += 6.0

    scores = outlier_scores(values)

    assert scores.argmax() == 280
    np.testing.assert_array_equal(scores, outlier_scores(values))


def test_a_handful_of_images_is_refused() -> None:
    with pytest.raises(DataError, match="at least 8 images, got 5"):
        outlier_scores(features(5))


def test_the_limit_is_the_median_plus_robust_deviations() -> None:
    # Median 3, absolute deviations 2, 1, 0, 1, 2: their median is 1.
    assert outlier_limit(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 2.0) == pytest.approx(3 + 2 * 1.4826)


def test_a_few_defects_hardly_move_the_limit() -> None:
    good = np.random.default_rng(0).normal(0, 1, 240)

    assert outlier_limit(np.append(good, [50.0] * 12), 2.0) == pytest.approx(outlier_limit(good, 2.0), abs=0.3)


def test_identical_images_have_no_outlier() -> None:
    scores = outlier_scores(features(1).repeat(12, 1, 1, 1))

    assert not (scores > outlier_limit(scores, 1.5)).any()


class _TwoTaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.second = nn.Conv2d(3, 2, 3, stride=4)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        return {0: self.first(images), 1: self.second(images)}


def test_features_come_from_images_of_any_size_in_any_batches(tmp_path: Path) -> None:
    paths = []
    for index, size in enumerate([(40, 50), (64, 64), (90, 30)]):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 255, size, dtype=np.uint8)).save(path)
        paths.append(path)
    trunk = _TwoTaps().eval()

    together = patch_features(trunk, paths, image_size=(64, 64))
    apart = patch_features(trunk, paths, image_size=(64, 64), batch_size=1)

    assert together.shape == (3, 16, 16, 6)
    torch.testing.assert_close(together, apart)
