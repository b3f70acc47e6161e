"""Gaussians per position: Mahalanobis distance, exact merging, bounded history, exact reload."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from torch import Tensor

from stlm.nn.distribution import PatchDistribution

CHANNELS = (3, 5)
GRIDS = ((4, 6), (2, 3))


def _distribution(*, shrinkage: float = 0.1, max_count: int = 1000) -> PatchDistribution:
    return PatchDistribution(channels=CHANNELS, grids=GRIDS, shrinkage=shrinkage, max_count=max_count)


def _normals(count: int, *, seed: int, shift: float = 0.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        shift + torch.randn(count, channels, *grid, generator=generator)
        for channels, grid in zip(CHANNELS, GRIDS, strict=True)
    )


def test_one_level_gives_the_mahalanobis_distance_over_the_root_of_the_channels() -> None:
    distribution = PatchDistribution(channels=(3,), grids=((1, 1),), shrinkage=0.0, max_count=1000)
    values = torch.randn(200, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 + 1
    distribution.update((values,))
    points = values.flatten(1).double().numpy()
    covariance = np.cov(points.T, bias=True)
    covariance += 1e-3 * np.trace(covariance) / 3 * np.eye(3)
    expected = mahalanobis(points[7], points.mean(axis=0), np.linalg.inv(covariance)) / np.sqrt(3)
    assert float(distribution((values[7:8],))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("chunk", [7, 256])
def test_nights_merge_to_what_all_images_at_once_give(chunk: int) -> None:
    nights = [_normals(count, seed=count, shift=0.3 * count) for count in (20, 11, 30)]
    merged, joint = _distribution(), _distribution()
    for night in nights:
        merged.update(night, chunk=chunk)
    joint.update(tuple(torch.cat(levels) for levels in zip(*nights, strict=True)))
    for name, value in joint.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged(nights[0]), joint(nights[0]), rtol=1e-3, atol=1e-3)


def test_a_long_history_counts_as_max_count_so_that_lasting_drift_is_learnt() -> None:
    bounded, unbounded = _distribution(max_count=20), _distribution()
    for distribution in (bounded, unbounded):
        for night in range(10):
            distribution.update(_normals(20, seed=night))
        distribution.update(_normals(20, seed=99, shift=4.0))
    drifted = _normals(20, seed=100, shift=4.0)
    assert float(bounded(drifted).mean()) < 0.7 * float(unbounded(drifted).mean())


def test_reloaded_weights_score_exactly_as_before_and_the_whitening_is_not_stored() -> None:
    distribution, reloaded = _distribution(), _distribution()
    distribution.update(_normals(30, seed=1))
    assert not any("whitening" in name for name in distribution.state_dict())
    reloaded.load_state_dict(distribution.state_dict())
    images = _normals(3, seed=2)
    assert torch.equal(reloaded(images), distribution(images))


def test_a_change_at_one_place_stands_out_there() -> None:
    distribution = _distribution()
    distribution.update(_normals(100, seed=3))
    levels = _normals(1, seed=4)
    levels[0][0, :, 2, 4] += 20.0
    row, column = divmod(int(distribution(levels).mean(dim=1).flatten().argmax()), GRIDS[0][1])
    assert abs(row - 2) <= 1, "within the 3 x 3 positions that are averaged"
    assert abs(column - 4) <= 1


def test_channels_that_never_changed_and_a_single_image_stay_finite() -> None:
    distribution = _distribution()
    constant = tuple(torch.ones(4, channels, *grid) for channels, grid in zip(CHANNELS, GRIDS, strict=True))
    distribution.update(constant)
    assert torch.isfinite(distribution(_normals(2, seed=5))).all()
    single = _distribution()
    single.update(_normals(1, seed=6))
    assert torch.isfinite(single(_normals(2, seed=7))).all()
