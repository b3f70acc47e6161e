"""Equal exposure: the mean reached, invariance to the light's factor, limits."""

import pytest
import torch

from stlm.nn.exposure import equalise_exposure

IMAGES = 0.1 + 0.3 * torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_every_image_gets_the_target_mean_and_the_factor_of_the_light_vanishes() -> None:
    equal = equalise_exposure(IMAGES, 0.4)
    torch.testing.assert_close(equal.mean(dim=(1, 2, 3)), torch.full((3,), 0.4), atol=1e-3, rtol=0)
    torch.testing.assert_close(equalise_exposure(0.6 * IMAGES, 0.4), equal)


def test_zero_leaves_the_images_and_black_stays_finite_and_dark() -> None:
    assert equalise_exposure(IMAGES, 0.0) is IMAGES
    assert float(equalise_exposure(torch.zeros(1, 3, 4, 4), 0.4).max()) == 0.0


@pytest.mark.parametrize("level", [0.01, 1.0])
def test_gains_are_limited_and_the_result_stays_in_range(level: float) -> None:
    equal = equalise_exposure(torch.full((1, 3, 4, 4), level), 0.1 if level == 1.0 else 0.9)
    assert 0.0 <= float(equal.min()) <= float(equal.max()) <= 1.0
    assert float(equal.mean() / level) == pytest.approx(0.2 if level == 1.0 else 5.0)
