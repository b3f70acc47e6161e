"""Normal features as one Gaussian per position; an extension of the published design.

Source of the idea: PaDiM (Defard et al., ICPR workshops 2021), here with one Gaussian per level of the trunk instead of
one over a random choice of all channels, and with covariances shrunk towards their mean over all positions. Count, mean
and covariance of two nights merge exactly (Chan et al., 1979), so nothing is forgotten and no old image is needed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stlm.nn.encoders import Features, smooth

__all__ = ["PatchDistribution"]

# Share of the mean variance added to every variance: a channel that never changed must not decide alone.
_RIDGE = 1e-3


class PatchDistribution(nn.Module):
    """Mahalanobis distance of every position's features to the normals seen at that position.

    Args:
        channels: Channels of each level.
        grids: ``(height, width)`` of each level; distances are brought to the first one's.
        shrinkage: Weight of the covariance averaged over all positions, in [0, 1].
        max_count: Earlier images weigh as much as this many at most, so that lasting drift is learnt in bounded time.
    """

    count: Tensor

    def __init__(
        self, *, channels: Sequence[int], grids: Sequence[tuple[int, int]], shrinkage: float, max_count: int
    ) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.max_count = max_count
        self.num_levels = len(channels)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        for level, (width, grid) in enumerate(zip(channels, grids, strict=True)):
            positions = grid[0] * grid[1]
            self.register_buffer(f"mean{level}", torch.zeros(positions, width))
            self.register_buffer(f"covariance{level}", torch.zeros(positions, width, width))
            # Follows from the covariance, so it is not stored.
            self.register_buffer(f"whitening{level}", torch.zeros(positions, width, width), persistent=False)
        self.register_load_state_dict_post_hook(_whiten_after_loading)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, features: Features, *, chunk: int = 256) -> None:
        """Merge new normals in.

        Args:
            features: All standardised levels ``(N, C_i, h_i, w_i)`` of new normals.
            chunk: Images merged at a time; bounds the memory.
        """
        self.count.clamp_(max=self.max_count)
        for levels in zip(*(torch.split(level, chunk) for level in features), strict=True):
            self._merge(levels)
        self.whiten()

    def _merge(self, features: Features) -> None:
        new = len(features[0])
        total = float(self.count) + new
        share = new / total
        for level, values in enumerate(features):
            mean, covariance = getattr(self, f"mean{level}"), getattr(self, f"covariance{level}")
            points = _points(values.to(mean)).transpose(0, 1)
            new_mean = points.mean(dim=1)
            centred = points - new_mean.unsqueeze(1)
            new_covariance = centred.transpose(1, 2) @ centred / new
            shift = new_mean - mean
            between = shift.unsqueeze(2) * shift.unsqueeze(1)
            covariance.mul_(1 - share).add_(new_covariance, alpha=share).add_(between, alpha=share * (1 - share))
            mean.add_(shift, alpha=share)
        self.count.fill_(total)

    @torch.no_grad()
    def whiten(self) -> None:
        """Make what :meth:`forward` multiplies with from the covariances."""
        if not self.count:
            return
        for level in range(self.num_levels):
            covariance = getattr(self, f"covariance{level}").double()
            pooled = covariance.mean(dim=0)
            width = pooled.shape[-1]
            identity = torch.eye(width, dtype=pooled.dtype, device=pooled.device)
            shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * pooled
            factor = torch.linalg.cholesky(shrunk + (_RIDGE * pooled.diagonal().mean() + 1e-12) * identity)
            inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
            # Divided by the root of the number of channels, a normal's distance is about one at every level.
            getattr(self, f"whitening{level}").copy_(inverse.transpose(1, 2) / width**0.5)

    def forward(self, features: Features) -> Tensor:
        """Mahalanobis distance at each level.

        Args:
            features: All standardised levels ``(B, C_i, h_i, w_i)``.

        Returns:
            ``(B, levels, h, w)`` on the first level's grid; about 1 for normals.
        """
        size = features[0].shape[-2:]
        maps = []
        for level, values in enumerate(features):
            deviations = (_points(values) - getattr(self, f"mean{level}")).transpose(0, 1)
            whitened = deviations @ getattr(self, f"whitening{level}")
            distance = whitened.square().sum(dim=-1).clamp_min(1e-12).sqrt().transpose(0, 1)
            grid = values.shape[-2:]
            level_map = distance.unflatten(1, (grid[0], grid[1])).unsqueeze(1)
            if grid[0] > size[0]:
                level_map = F.avg_pool2d(level_map, grid[0] // size[0])
            elif grid[0] < size[0]:
                level_map = F.interpolate(level_map, size=size, mode="bilinear", align_corners=False)
            maps.append(level_map[:, 0])
        return torch.stack(maps, dim=1)


def _points(values: Tensor) -> Tensor:
    """``(B, h*w, C)``, locally averaged."""
    return smooth(values).flatten(2).transpose(1, 2)


def _whiten_after_loading(module: nn.Module, _keys: Any) -> None:
    assert isinstance(module, PatchDistribution)
    module.whiten()
