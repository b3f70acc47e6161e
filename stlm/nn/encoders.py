"""Student encoders and the frozen embedding that a shared trunk makes of its features.

Shape legend: B batch, D embedding channels, h x w positions, F trunk features (a tuple of ``(B, C_i, h_i, w_i)``,
finest first).
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from segment_anything.modeling.common import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from stlm.constants import IMAGENET_MEAN, IMAGENET_STD

__all__ = [
    "Features",
    "PlainProjection",
    "TinyViTStudent",
    "TokenDenoiser",
    "TrunkEmbedding",
    "mask_features",
    "smooth",
]

Features = tuple[Tensor, ...]


def mask_features(features: Features, keep: Tensor) -> Features:
    """Set hidden cells to zero in every level.

    Args:
        features: Levels ``(B, C_i, h_i, w_i)``.
        keep: ``(B, gh, gw)`` bool, True is keep; each level is a multiple of the grid.

    Returns:
        The masked levels.
    """
    masked = []
    for level in features:
        grid = F.interpolate(keep.unsqueeze(1).to(level.dtype), size=level.shape[-2:], mode="nearest")
        masked.append(level * grid)
    return tuple(masked)


def smooth(x: Tensor) -> Tensor:
    """Mean over 3 x 3 positions; at the border over those that exist."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class TrunkEmbedding(nn.Module):
    """A fixed linear view of smoothed, standardised trunk features: the teacher's level 1 where the trunk is shared.

    Standardisation and projection (principal directions) are fitted once, on the first night, and then frozen for the
    life of the model, so that targets of different nights agree.
    """

    projection: Tensor

    def __init__(self, *, channels: Sequence[int], embedding_dim: int, extra_channels: Sequence[int] = ()) -> None:
        super().__init__()
        total = sum(channels)
        self.num_levels = len(channels)
        for index, count in enumerate((*channels, *extra_channels)):
            self.register_buffer(f"mean{index}", torch.zeros(1, count, 1, 1))
            self.register_buffer(f"scale{index}", torch.ones(1, count, 1, 1))
        self.register_buffer("projection", torch.eye(embedding_dim, total))

    def standardise(self, features: Features) -> Features:
        """Zero mean and unit variance per channel, as fitted.

        Args:
            features: F, or F with the extra levels behind.

        Returns:
            The same levels, standardised.
        """
        return tuple(
            (level - getattr(self, f"mean{i}")) * getattr(self, f"scale{i}") for i, level in enumerate(features)
        )

    def join(self, standardised: Features) -> Tensor:
        """Smooth every level and bring it to the finest grid.

        Args:
            standardised: F; extra levels are left out.

        Returns:
            ``(B, sum of channels, h, w)``.
        """
        size = standardised[0].shape[-2:]
        levels = [
            smooth(x)
            if x.shape[-2:] == size
            else F.interpolate(smooth(x), size=size, mode="bilinear", align_corners=False)
            for x in standardised[: self.num_levels]
        ]
        return torch.cat(levels, dim=1)

    def forward(self, standardised: Features) -> Tensor:
        """Embedding of standardised features.

        Args:
            standardised: F.

        Returns:
            ``(B, D, h, w)``.
        """
        return F.conv2d(self.join(standardised), self.projection[:, :, None, None])

    @torch.no_grad()
    def fit(self, features: Features, *, max_vectors: int = 20_000) -> None:
        """Fit standardisation and projection to clean normals.

        Args:
            features: F of the first night's normals, with the extra levels behind, in memory.
            max_vectors: Positions used for the projection, evenly spaced.
        """
        for index, level in enumerate(features):
            values = level.float()
            getattr(self, f"mean{index}").copy_(values.mean(dim=(0, 2, 3), keepdim=True))
            getattr(self, f"scale{index}").copy_(1.0 / values.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6))
        batch = features[0].shape[0]
        per_image = max(1, max_vectors // batch)
        rows = []
        for start in range(0, batch, 32):
            chunk = tuple(level[start : start + 32].float() for level in features)
            joined = self.join(self.standardise(chunk)).flatten(2).transpose(1, 2)
            step = max(1, joined.shape[1] // per_image)
            rows.append(joined[:, ::step].reshape(-1, joined.shape[-1]))
        vectors = torch.cat(rows)
        _, _, directions = torch.linalg.svd(vectors.T @ vectors)
        dim = self.projection.shape[0]
        signs = torch.sign(directions[:dim, :].sum(dim=1, keepdim=True))
        signs[signs == 0] = 1.0
        self.projection.copy_(directions[:dim] * signs)


class TokenDenoiser(nn.Module):
    """Denoising student of the embedded recipe: timm transformer blocks behind a narrow, noisy bottleneck.

    It works on the coarsest grid of the trunk; finer levels are folded into channels. The bottleneck keeps it from
    copying what it was not trained on, which is what makes a defect stand out.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        grids: Sequence[tuple[int, int]],
        embedding_dim: int,
        dim: int,
        depth: int,
        bottleneck: int,
        dropout: float,
    ) -> None:
        super().__init__()
        coarse = grids[-1]
        self.folds = tuple(grid[0] // coarse[0] for grid in grids)
        inputs = sum(c * fold * fold for c, fold in zip(channels, self.folds, strict=True))
        self.embed = nn.Linear(inputs, dim)
        self.position = nn.Parameter(torch.randn(1, coarse[0] * coarse[1], dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.bottleneck = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, bottleneck),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(bottleneck, dim),
        )
        self.blocks = nn.ModuleList(Block(dim, num_heads=4) for _ in range(depth))
        self.expand = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, embedding_dim * self.folds[0] ** 2))
        self.neck = nn.Sequential(LayerNorm2d(embedding_dim), nn.Conv2d(embedding_dim, embedding_dim, 3, padding=1))

    def forward(self, standardised: Features) -> Tensor:
        """Denoised level-1 embedding.

        Args:
            standardised: F.

        Returns:
            ``(B, D, h, w)`` on the finest grid.
        """
        folded = [F.pixel_unshuffle(x, f) if f > 1 else x for x, f in zip(standardised, self.folds, strict=True)]
        height, width = folded[-1].shape[-2:]
        tokens = self.embed(torch.cat(folded, dim=1).flatten(2).transpose(1, 2))
        tokens = self.bottleneck(self.dropout(tokens + self.position))
        for block in self.blocks:
            tokens = block(tokens)
        coarse = self.expand(tokens).transpose(1, 2).unflatten(2, (height, width))
        embedding: Tensor = self.neck(F.pixel_shuffle(coarse, self.folds[0]))
        return embedding


class PlainProjection(nn.Module):
    """Plain student where the trunk is shared: a trainable copy of the teacher's view of the trunk features."""

    def __init__(self, *, channels: Sequence[int], embedding_dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(sum(channels), embedding_dim, 1, bias=False)

    def forward(self, joined: Tensor) -> Tensor:
        """Level-1 embedding ``(B, D, h, w)`` of :meth:`TrunkEmbedding.join`'s output."""
        embedding: Tensor = self.projection(joined)
        return embedding


class TinyViTStudent(nn.Module):
    """The published student: TinyViT-5M with segment-anything's neck.

    The last stage keeps stride 16, as in MobileSAM's layout.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, embedding_dim: int, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise
        network: Any = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0, drop_path_rate=0.0)
        network.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.patch_embed = network.patch_embed
        self.stages = network.stages
        self.neck = nn.Sequential(
            nn.Conv2d(320, embedding_dim, 1, bias=False),
            LayerNorm2d(embedding_dim),
            nn.Conv2d(embedding_dim, embedding_dim, 3, padding=1, bias=False),
            LayerNorm2d(embedding_dim),
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Level-1 embedding.

        Args:
            images: ``(B, 3, H, W)`` float32 in [0, 1], or already normalised where ``normalise`` is off.

        Returns:
            ``(B, D, H/16, W/16)``.
        """
        x = self.patch_embed((images - self.mean) / self.std if self.normalise else images)
        for stage in self.stages:
            x = stage(x)
        embedding: Tensor = self.neck(x)
        return embedding
