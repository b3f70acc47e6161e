"""Gaussian smoothing of maps as two matrix products, which every ONNX runtime computes alike."""

import math

import torch
from torch import Tensor, nn

__all__ = ["GaussianSmoothing", "gaussian_kernel"]


def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """``(2 * radius + 1,)`` weights that sum to 1."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return (weights / weights.sum()).float()


class GaussianSmoothing(nn.Module):
    """Smooths maps of one size; beyond the border they are mirrored, and the Gaussian ends after four deviations.

    Args:
        size: ``(height, width)`` of the maps.
        sigma: Deviation in pixels.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, *, size: tuple[int, int], sigma: float) -> None:
        super().__init__()
        self.register_buffer("rows", _matrix(size[0], sigma), persistent=False)
        self.register_buffer("columns", _matrix(size[1], sigma), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Smooth ``(B, C, H, W)``."""
        return torch.matmul(torch.matmul(self.rows, maps), self.columns.transpose(0, 1))


def _matrix(side: int, sigma: float) -> Tensor:
    radius = min(math.ceil(4 * sigma), side - 1)
    matrix = torch.zeros(side, side)
    for offset, weight in zip(range(-radius, radius + 1), gaussian_kernel(sigma, radius), strict=True):
        # Mirrored about the outermost pixels, which are not doubled.
        source = (torch.arange(side) + offset).abs()
        source = torch.where(source < side, source, 2 * (side - 1) - source)
        matrix[torch.arange(side), source] += weight
    return matrix
