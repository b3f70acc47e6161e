"""Distances between feature levels."""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["cosine_distance"]


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """``1 - cos`` over channels.

    Args:
        first: ``(B, D, h, w)``.
        second: The same shape.

    Returns:
        ``(B, h, w)`` in [0, 2].
    """
    return 1.0 - (F.normalize(first, dim=1) * F.normalize(second, dim=1)).sum(dim=1)
