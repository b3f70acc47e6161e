"""Feature aggregation: from the product of two streams to one logit per position (after STLM and DeepLab's ASPP)."""

import math

import torch
from torch import Tensor, cat, nn
from torch.nn import functional as F

__all__ = ["FeatureAggregation"]


_PRIOR = 0.02
"""Initial probability of "anomalous" (Lin et al., 2017, section 4.1)."""


class _ResidualBlock(nn.Module):
    def __init__(self, *, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _conv_norm_relu(in_channels: int, channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class FeatureAggregation(nn.Module):
    """Two residual blocks, a spatial pyramid (global pool, 1x1, dilated 3x3), a 3x3 and a 1x1 head."""

    def __init__(self, *, in_channels: int, width: int, dilation: int, dilated_branches: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _ResidualBlock(in_channels=in_channels, channels=width), _ResidualBlock(in_channels=width, channels=width)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.ReLU())
        self.point = _conv_norm_relu(width, width, 1)
        self.dilated = nn.ModuleList(
            _conv_norm_relu(width, width, 3, dilation * (i + 1)) for i in range(dilated_branches)
        )
        self.fuse = _conv_norm_relu(width * (2 + dilated_branches), width, 3)
        last = nn.Conv2d(width, 1, 1)
        # Defects are rare: start from a small probability, or the focal loss spends its first steps on the bias.
        if last.bias is not None:
            nn.init.constant_(last.bias, -math.log((1.0 - _PRIOR) / _PRIOR))
        before = _conv_norm_relu(width, width, 3)
        # The published head has a bias here; the normalisation behind it takes its effect away.
        before[0].register_parameter("bias", nn.Parameter(torch.zeros(width)))
        self.head = nn.Sequential(before, last)
        for module in self.residual.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, product: Tensor) -> Tensor:
        """Logits of "anomalous".

        Args:
            product: ``(B, 2D, h, w)``: the negated products of normalised features, both levels.

        Returns:
            ``(B, h, w)``; a sigmoid gives the map in [0, 1].
        """
        x = self.residual(product)
        pooled = self.pool(x).expand_as(x)
        fused = self.fuse(cat([pooled, self.point(x), *(branch(x) for branch in self.dilated)], dim=1))
        logits: Tensor = self.head(fused)
        return logits.squeeze(1)
