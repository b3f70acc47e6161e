"""The peer to stand beside: PatchCore on the same frozen backbone, after the paper (Roth et al., CVPR 2022)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stlm.models.outputs import AnomalyOutput
from stlm.nn.lite0 import LITE0_CHANNELS, build_lite0_trunk
from stlm.nn.memory import k_centre

__all__ = ["PatchCore"]

_NEIGHBOURS = 9
_SIGMA = 4.0


class PatchCore:
    """A 10 % greedy coreset of at most ``max_size`` patches; nearest-neighbour maps, re-weighted image score."""

    image_size = (256, 256)

    def __init__(self, *, seed: int, max_size: int = 15_000) -> None:
        self.seed = seed
        self.max_size = max_size
        self.trunk = build_lite0_trunk((4, 10))
        self.bank = torch.zeros(0, sum(LITE0_CHANNELS[tap] for tap in self.trunk.taps))

    @torch.no_grad()
    def _patches(self, images: Tensor) -> Tensor:
        """``(B, 1024, 152)``: blocks 4 and 10, locally averaged, on the finer grid."""
        levels = [F.avg_pool2d(level, 3, stride=1, padding=1) for level in self.trunk(images).values()]
        size = levels[0].shape[-2:]
        joined = [levels[0], F.interpolate(levels[1], size=size, mode="bilinear", align_corners=False)]
        return torch.cat(joined, dim=1).flatten(2).transpose(1, 2)

    def fit(self, images: Tensor) -> None:
        """Fill the bank from ``(N, 3, 256, 256)`` normals in [0, 1], and from what it holds already."""
        patches = torch.cat([self._patches(batch) for batch in torch.split(images, 16)]).flatten(0, 1)
        size = min(max(len(patches) // 10, len(self.bank)), self.max_size)
        pool = torch.cat([self.bank, patches])
        self.bank = pool[k_centre(pool, size, seed=self.seed)]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> AnomalyOutput:
        """Score ``(B, 3, 256, 256)`` images in [0, 1]."""
        scores, maps = [], []
        for patches in self._patches(images):
            distances = torch.cdist(patches, self.bank)
            nearest, where = distances.min(dim=1)
            worst = int(nearest.argmax())
            # The farther a neighbourhood of the bank is spread, the less surprising a large distance to it.
            neighbours = (
                torch.cdist(self.bank[where[worst]][None], self.bank)[0].topk(_NEIGHBOURS, largest=False).indices
            )
            weights = torch.cdist(patches[worst][None], self.bank[neighbours])[0].softmax(dim=0)
            scores.append((1.0 - weights[0]) * nearest[worst])
            maps.append(nearest.view(1, 32, 32))
        resized = F.interpolate(torch.stack(maps), size=self.image_size, mode="bilinear", align_corners=False)
        return AnomalyOutput(score=torch.stack(scores), anomaly_map=_blur(resized).squeeze(1))


def _blur(maps: Tensor) -> Tensor:
    radius = int(4 * _SIGMA)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
