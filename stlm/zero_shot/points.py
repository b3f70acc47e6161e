"""Co-feature point prompts: points inside the anomalous region, and points around it that look least like it.

The steps and their names are the paper's (section on PPG): ``S_a`` the thresholded map, ``R_a`` the map inside it,
``P_h`` its k highest, spaced pixels, ``N_a`` the ring that a dilation adds, ``F`` SAM's features, ``Map_s`` the cosine
similarity of the ring's features to the region's, ``P_l`` the k least similar ring pixels. How the region's features
become one vector is not public: their mean here. Everything happens on one grid over the whole image.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Grid", "find_region", "map_on_grid", "negative_points", "positive_points", "ring_around"]

Grid = tuple[int, int]
"""``(height, width)`` of the working grid."""
Points = NDArray[np.int64]
"""``(N, 2)`` as (row, column)."""


def map_on_grid(anomaly_map: NDArray[np.float32], image_size: tuple[int, int], frame_px: int) -> NDArray[np.float32]:
    """Bring a map to the working grid, which has the image's proportions.

    Args:
        anomaly_map: ``(h, w)`` finite float over the whole image, of any proportions.
        image_size: ``(height, width)`` of the image.
        frame_px: Longer side of the grid; no finer than the image.

    Returns:
        ``(H, W)`` float32, bilinear.
    """
    scale = min(1.0, frame_px / max(image_size))
    grid = (max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale)))
    values = torch.from_numpy(np.ascontiguousarray(anomaly_map, dtype=np.float32))[None, None]
    resized: NDArray[np.float32] = F.interpolate(values, size=grid, mode="bilinear", align_corners=False)[0, 0].numpy()
    return resized


def find_region(anomaly_map: NDArray[np.float32], level: float, threshold: float | None = None) -> NDArray[np.bool_]:
    """``S_a``: where the map is extreme.

    Args:
        anomaly_map: ``(H, W)``.
        level: Share of the way from the map's median to its peak; used where there is no threshold.
        threshold: A value of the map above which a pixel is anomalous, where one is known.

    Returns:
        ``(H, W)`` bool; empty where the map is flat, or nowhere above the threshold.
    """
    if threshold is None:
        median, peak = float(np.median(anomaly_map)), float(anomaly_map.max())
        threshold = median + level * (peak - median)
    return anomaly_map > threshold


def ring_around(region: NDArray[np.bool_], diameter: int) -> NDArray[np.bool_]:
    """``N_a``: what a dilation with a disc adds to the region.

    Args:
        region: ``(H, W)`` bool.
        diameter: Of the disc, in cells; made odd, and at least 3.

    Returns:
        ``(H, W)`` bool; empty for an empty region and for the whole image.
    """
    radius = max(1, diameter // 2)
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = rows**2 + columns**2 <= radius**2
    dilated: NDArray[np.bool_] = ndimage.binary_dilation(region, structure=disc)
    return dilated & ~region


def positive_points(
    anomaly_map: NDArray[np.float32], region: NDArray[np.bool_], *, number: int, spacing: float
) -> Points:
    """``P_h``: the highest pixels of ``R_a = S_a * Map_a``, none nearer to another than ``spacing``.

    Args:
        anomaly_map: ``(H, W)``.
        region: ``(H, W)`` bool.
        number: At most so many.
        spacing: In cells; two points are at least so far apart.

    Returns:
        The points, highest first; the first in reading order of equals.
    """
    return _spaced(np.where(region, anomaly_map, -np.inf), number, spacing)


def negative_points(
    features: Tensor, region: NDArray[np.bool_], ring: NDArray[np.bool_], *, number: int, spacing: float
) -> Points:
    """``P_l``: the ring's pixels whose features are least like the region's.

    Args:
        features: ``(C, h, w)`` over the whole image, without padding.
        region: ``(H, W)`` bool, of the image's proportions.
        ring: ``(H, W)`` bool.
        number: At most so many.
        spacing: In cells; two points are at least so far apart.

    Returns:
        The points, least similar first; none for an empty region or ring.
    """
    if not (region.any() and ring.any()):
        return np.empty((0, 2), dtype=np.int64)
    inside = _sample(features, region).mean(dim=0)
    similarity = F.cosine_similarity(_sample(features, ring), inside[None], dim=1)
    unlike = np.full(region.shape, -np.inf, dtype=np.float32)
    unlike[ring] = -similarity.cpu().numpy()
    return _spaced(unlike, number, spacing)


def _sample(features: Tensor, where: NDArray[np.bool_]) -> Tensor:
    """Features at the true cells of ``where``, between the cells of ``features`` bilinearly: ``(N, C)``."""
    height, width = where.shape
    rows, columns = np.nonzero(where)
    # Cell centres in [-1, 1], as grid_sample wants them.
    places = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], axis=-1)
    grid = torch.as_tensor(places, dtype=features.dtype, device=features.device)[None, None]
    sampled = F.grid_sample(features[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T


def _spaced(values: NDArray[np.float32], number: int, spacing: float) -> Points:
    left = values.copy()
    rows, columns = np.mgrid[: left.shape[0], : left.shape[1]]
    chosen: list[tuple[int, int]] = []
    while len(chosen) < number:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        if left[row, column] == -np.inf:
            break
        chosen.append((int(row), int(column)))
        left[(rows - row) ** 2 + (columns - column) ** 2 < spacing**2] = -np.inf
        left[row, column] = -np.inf
    return np.array(chosen, dtype=np.int64).reshape(-1, 2)
