"""A masked autoencoder of timm's transformer blocks (He et al., CVPR 2022), its parts named as in the official files.

Shape legend: B batch, N patches, D width, p side of a patch.
"""

from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

__all__ = ["PatchDecoder", "PatchEncoder", "patchify", "random_keep", "sincos_positions", "take", "unpatchify"]


class _LayerNorm(nn.LayerNorm):
    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, eps=1e-6, **options)


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed position vectors: half of them of the column, half of the row, each sines and then cosines.

    Args:
        dim: Width, a multiple of 4.
        grid: Rows and columns.

    Returns:
        ``(1, 1 + rows * columns, dim)``; the class token's comes first and is zero.
    """
    frequencies = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    halves = []
    for position in (columns, rows):
        angles = position.reshape(-1, 1) * frequencies
        halves += [angles.sin(), angles.cos()]
    positions = torch.cat([torch.zeros(1, dim, dtype=torch.float64), torch.cat(halves, dim=1)])
    return positions.float().unsqueeze(0)


def patchify(images: Tensor, size: int) -> Tensor:
    """Cut ``(B, C, H, W)`` into ``(B, N, size * size * C)`` patches, row by row, the channel last."""
    _, channels, height, width = images.shape
    cut = images.reshape(-1, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(-1, (height // size) * (width // size), size * size * channels)


def unpatchify(patches: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of :func:`patchify` for a grid of ``(rows, columns)`` patches."""
    rows, columns = grid
    channels = patches.shape[-1] // (size * size)
    cut = patches.reshape(-1, rows, columns, size, size, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * size, columns * size)


def random_keep(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Which patches stay, and how all of them get back to their places.

    Args:
        noise: ``(B, N)``, any order of distinct values.
        mask_ratio: Share to hide; the kept number is rounded down.

    Returns:
        Indices of the kept patches ``(B, K)``, and ``(B, N)`` such that taking those of "kept, then hidden" gives the
        image's own order.
    """
    order = noise.argsort(dim=1)
    num_kept = max(1, int(noise.shape[1] * (1.0 - mask_ratio)))
    return order[:, :num_kept], order.argsort(dim=1)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens ``(B, N, D)`` at ``(B, K)`` places."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class PatchEncoder(nn.Module):
    """A vision transformer over the patches it is shown, class token first."""

    pos_embed: Tensor

    def __init__(self, *, image_size: tuple[int, int], patch_size: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(image_size, patch_size, 3, dim)
        grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_embed", sincos_positions(dim, grid))
        self.blocks = nn.ModuleList(
            [Block(dim, num_heads, 4.0, qkv_bias=True, norm_layer=_LayerNorm) for _ in range(depth)]
        )
        self.norm = _LayerNorm(dim)
        nn.init.normal_(self.cls_token, std=0.02)
        _init(self)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            keep: Places ``(B, K)`` of the patches to look at, in this order; all, in their own order, if ``None``.

        Returns:
            ``(B, 1 + K, D)``.
        """
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        if keep is not None:
            tokens = take(tokens, keep)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded


class PatchDecoder(nn.Module):
    """Blocks over all patches, and a linear head for the pixels of each."""

    decoder_pos_embed: Tensor

    def __init__(self, *, grid: tuple[int, int], patch_size: int, in_dim: int, dim: int, depth: int, num_heads: int):
        super().__init__()
        self.decoder_embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("decoder_pos_embed", sincos_positions(dim, grid))
        self.decoder_blocks = nn.ModuleList(
            [Block(dim, num_heads, 4.0, qkv_bias=True, norm_layer=_LayerNorm) for _ in range(depth)]
        )
        self.decoder_norm = _LayerNorm(dim)
        self.decoder_pred = nn.Linear(dim, patch_size * patch_size * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        _init(self)

    def forward(self, tokens: Tensor, restore: Tensor | None = None) -> list[Tensor]:
        """States after every block.

        Args:
            tokens: ``(B, 1 + K, in_dim)``, class token first.
            restore: From :func:`random_keep`; fills hidden places with the mask token and puts all in order. If
                ``None``, the tokens are all patches and stay as they come.

        Returns:
            One ``(B, 1 + N, D)`` a block.
        """
        states = self.decoder_embed(tokens)
        if restore is not None:
            num_hidden = restore.shape[1] + 1 - states.shape[1]
            hidden = self.mask_token.expand(states.shape[0], num_hidden, -1)
            patches = take(torch.cat([states[:, 1:], hidden], dim=1), restore)
            states = torch.cat([states[:, :1], patches], dim=1)
        states = states + self.decoder_pos_embed
        outputs = []
        for block in self.decoder_blocks:
            states = block(states)
            outputs.append(states)
        return outputs

    def pixels(self, states: Tensor) -> Tensor:
        """Patches ``(B, N, p * p * 3)`` from the last block's states."""
        patches: Tensor = self.decoder_pred(self.decoder_norm(states))[:, 1:]
        return patches


def _init(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
