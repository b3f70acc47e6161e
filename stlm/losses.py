"""Losses of both self-supervised stages.

Shape legend: B batch, h x w positions of a feature level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stlm.nn.distances import cosine_distance
from stlm.nn.smoothing import gaussian_kernel

__all__ = [
    "focal_loss",
    "hidden_distance",
    "level_distance",
    "masked_patch_error",
    "structural_similarity",
    "weighted_pixel_cross_entropy",
]


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


def masked_patch_error(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error over hidden patches only: ISSTAD's first stage.

    Args:
        predicted: ``(B, N, D)``.
        target: The same shape.
        hidden: ``(B, N)`` bool, at least one True.

    Returns:
        A scalar.
    """
    return (predicted - target)[hidden].square().mean()


def weighted_pixel_cross_entropy(
    logits: Sequence[Tensor], mask: Tensor, *, normal_weight: float, anomalous_weight: float
) -> Tensor:
    """ISSTAD's classification loss: a weighted mean over pixels, averaged over the decoder's blocks.

    Args:
        logits: One ``(B, 2, H, W)`` a block, normal first.
        mask: ``(B, H, W)``, 1 on anomalous pixels.
        normal_weight: Weight of a normal pixel.
        anomalous_weight: Weight of an anomalous one.

    Returns:
        A scalar.
    """
    weights = torch.tensor([normal_weight, anomalous_weight], device=mask.device)
    target = mask.long()
    return torch.stack([F.cross_entropy(block, target, weight=weights) for block in logits]).mean()


def structural_similarity(first: Tensor, second: Tensor, *, window: int = 11) -> Tensor:
    """SSIM (Wang et al., 2004) of images in [0, 1], with a Gaussian window of deviation 1.5.

    Args:
        first: ``(B, C, H, W)``, no side smaller than the window.
        second: The same shape.
        window: Side of the window, odd; only windows that lie inside the image count.

    Returns:
        A scalar mean, at most 1.
    """
    channels = first.shape[1]
    line = gaussian_kernel(1.5, window // 2).to(first)
    kernel = (line[:, None] * line[None, :]).expand(channels, 1, -1, -1)
    images = (first, second, first * first, second * second, first * second)
    mean_1, mean_2, square_1, square_2, product = (F.conv2d(image, kernel, groups=channels) for image in images)
    variance_1, variance_2 = square_1 - mean_1**2, square_2 - mean_2**2
    covariance = product - mean_1 * mean_2
    small_1, small_2 = 0.01**2, 0.03**2
    similarity = (2 * mean_1 * mean_2 + small_1) * (2 * covariance + small_2)
    return (similarity / ((mean_1**2 + mean_2**2 + small_1) * (variance_1 + variance_2 + small_2))).mean()
