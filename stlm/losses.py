"""Losses of both self-supervised stages.

Shape legend: B batch, h x w positions of a feature level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stlm.nn.distances import cosine_distance

__all__ = ["focal_loss", "hidden_distance", "level_distance"]


def level_distance(students: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Sum over levels of the mean cosine distance (STLM's Lp and Ld).

    Args:
        students: Levels ``(B, D, h, w)``.
        targets: The teacher's, same shapes.

    Returns:
        A scalar.
    """
    return torch.stack([cosine_distance(s, t).mean() for s, t in zip(students, targets, strict=True)]).sum()


def hidden_distance(students: Sequence[Tensor], targets: Sequence[Tensor], keep: Tensor) -> Tensor:
    """The same over hidden cells only: masked reconstruction in the teacher's feature space.

    Args:
        students: Levels ``(B, D, h, w)``.
        targets: The teacher's, same shapes.
        keep: ``(B, gh, gw)`` bool, True is kept; at least one cell is hidden.

    Returns:
        A scalar.
    """
    losses = []
    for student, target in zip(students, targets, strict=True):
        distance = cosine_distance(student, target)
        hidden = F.interpolate((~keep).unsqueeze(1).to(distance.dtype), size=distance.shape[-2:], mode="nearest")
        losses.append((distance * hidden.squeeze(1)).sum() / hidden.sum())
    return torch.stack(losses).sum()


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float = 4.0) -> Tensor:
    """Binary focal loss without class weights (Lin et al., 2017), STLM's gamma.

    Args:
        logits: Any shape.
        targets: 0 or 1, the same shape.
        gamma: How much easy positions are discounted.

    Returns:
        A scalar mean.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = torch.exp(-cross_entropy)
    return ((1.0 - probability) ** gamma * cross_entropy).mean()
