"""Outliers within one batch of supposedly good images, by frozen teacher features and nothing else.

For the first night of a product, when no model exists that could tell a defective part among the "normals". Each patch
is compared with the patches at, and next to, the same place in the *other* images: PatchCore's nearest-neighbour
distance (Roth et al., 2022), leave-one-out and with a local bank. The few patches that fit worst make an image's score.
Where parts are not aligned, the place does not help, but it is still a bank of several patches of every other image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stlm.data.image_files import read_image
from stlm.data.transforms import preprocess
from stlm.errors import DataError

__all__ = ["MIN_IMAGES", "outlier_limit", "outlier_scores", "patch_features"]

_GRID = 16
"""Patches along each side of the picture."""
_RADIUS = 1
"""A patch is compared with those at most this many patches away."""
_WORST_PATCHES = 3
_MAX_REFERENCES = 256
"""Images that each is compared with: cost grows with the batch, not with its square."""
MIN_IMAGES = 8
_MAD_TO_SIGMA = 1.4826


def patch_features(
    trunk: nn.Module, paths: Sequence[Path], *, image_size: tuple[int, int], batch_size: int = 16
) -> Tensor:
    """Patch features of images from a frozen trunk.

    Args:
        trunk: Maps ``(B, 3, H, W)`` float32 in [0, 1] to ``{tap: (B, C, h, w)}``.
        paths: ``N`` images.
        image_size: ``(height, width)`` they are resized to.
        batch_size: Images at a time.

    Returns:
        ``(N, 16, 16, C)`` float32, the channels of all taps together.

    Raises:
        DataError: An image cannot be decoded.
    """
    found = []
    device = next(trunk.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(paths), batch_size):
            # One at a time up to here: sizes may differ.
            pixels = [
                preprocess(torch.from_numpy(read_image(path).copy())[None], image_size)
                for path in paths[start : start + batch_size]
            ]
            taps = trunk(torch.cat(pixels).to(device))
            maps = [F.adaptive_avg_pool2d(F.avg_pool2d(tap, 3, 1, 1), _GRID) for tap in taps.values()]
            found.append(torch.cat(maps, dim=1).permute(0, 2, 3, 1).cpu())
    return torch.cat(found)


def outlier_scores(features: Tensor, *, seed: int = 0) -> NDArray[np.float64]:
    """How badly each image's worst patches fit to the other images.

    Args:
        features: ``(N, h, w, C)`` float, of :func:`patch_features`.
        seed: Chooses the references of a batch of more than 256 images.

    Returns:
        ``(N,)`` logarithms of distances, which are skewed; larger is more outlying.

    Raises:
        DataError: There are fewer than eight images.
    """
    num, height, width, channels = features.shape
    if num < MIN_IMAGES:
        raise DataError(f"outliers need at least {MIN_IMAGES} images, got {num}")
    flat = features.reshape(-1, channels)
    scaled = (features - flat.mean(0)) / (flat.std(0) + 1e-6)
    references = _references(num, seed)
    is_self = torch.from_numpy(references)[None, :] == torch.arange(num)[:, None]
    bank = scaled[torch.from_numpy(references)]
    distances = torch.empty(num, height, width)
    for row in range(height):
        for column in range(width):
            place = (
                slice(None),
                slice(max(0, row - _RADIUS), row + _RADIUS + 1),
                slice(max(0, column - _RADIUS), column + _RADIUS + 1),
            )
            near = bank[place].reshape(len(references), -1, channels)
            apart = torch.cdist(scaled[:, row, column], near.reshape(-1, channels))
            apart = apart.reshape(num, len(references), -1).amin(-1).masked_fill(is_self, torch.inf)
            distances[:, row, column] = apart.amin(-1)
    worst = distances.reshape(num, -1).topk(_WORST_PATCHES, dim=1).values
    return worst.mean(1).clamp_min(1e-6).log().double().numpy()


def _references(num: int, seed: int) -> NDArray[np.int64]:
    if num <= _MAX_REFERENCES:
        return np.arange(num)
    return np.sort(np.random.default_rng(seed).choice(num, _MAX_REFERENCES, replace=False))


def outlier_limit(scores: NDArray[np.float64], deviations: float) -> float:
    """The score above which an image is called an outlier of its own batch.

    The middle of the batch, not its tail, decides: defective parts are few, and do not move median and median absolute
    deviation.

    Args:
        scores: ``(N,)``, at least one.
        deviations: Robust standard deviations above the median.

    Returns:
        The limit, in the unit of the scores.
    """
    middle = float(np.median(scores))
    spread = _MAD_TO_SIGMA * float(np.median(np.abs(scores - middle)))
    # Identical images have no spread; rounding alone must not make outliers of them.
    return middle + deviations * max(spread, 1e-3)
