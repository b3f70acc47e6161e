"""A constant-size memory of normal embeddings; an extension of the published design.

Source of the idea: PatchCore's greedy k-centre coreset (Roth et al., CVPR 2022), here kept at one size over all nights.
"""

import torch
from torch import Tensor, nn

__all__ = ["NormalMemory", "k_centre"]


@torch.no_grad()
def k_centre(vectors: Tensor, size: int, *, seed: int, projection_dim: int = 48) -> Tensor:
    """Greedy k-centre selection on a random projection.

    Args:
        vectors: ``(N, D)``.
        size: Number of vectors to keep; all are kept where N is not larger.
        seed: Decides projection and first pick.
        projection_dim: Distances are taken after a random projection to this many dimensions.

    Returns:
        ``(min(N, size),)`` int64 indices, in order of selection.
    """
    if len(vectors) <= size:
        return torch.arange(len(vectors))
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(vectors.shape[1], projection_dim, generator=generator) / projection_dim**0.5
    points = vectors @ projection
    norms = points.square().sum(dim=1)
    picked = torch.empty(size, dtype=torch.int64)
    picked[0] = torch.randint(len(points), (1,), generator=generator)
    nearest = torch.full((len(points),), float("inf"))
    for i in range(1, size):
        last = points[picked[i - 1]]
        torch.minimum(nearest, norms - 2.0 * (points @ last) + last.square().sum(), out=nearest)
        picked[i] = nearest.argmax()
    return picked


class NormalMemory(nn.Module):
    """Distance of every position to its nearest remembered normal."""

    vectors: Tensor
    filled: Tensor

    def __init__(self, *, size: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, embedding_dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, new: Tensor, *, seed: int, max_candidates: int = 60_000) -> None:
        """Choose the memory anew from what it holds and from ``new``; its size never changes.

        Args:
            new: ``(N, D)`` embeddings of normals.
            seed: For the subsample and the selection.
            max_candidates: Bound on the vectors considered, so that the cost does not depend on the history.
        """
        generator = torch.Generator().manual_seed(seed)
        new = new[torch.randperm(len(new), generator=generator)[:max_candidates]]
        pool = torch.cat([self.vectors[: int(self.filled)], new])
        chosen = pool[k_centre(pool, len(self.vectors), seed=seed)]
        # A memory larger than the pool repeats vectors: distances do not change and the shape stays fixed.
        repeats = -(-len(self.vectors) // len(chosen))
        self.vectors.copy_(chosen.repeat(repeats, 1)[: len(self.vectors)])
        self.filled.fill_(min(len(chosen), len(self.vectors)))

    def forward(self, embedding: Tensor) -> Tensor:
        """Euclidean distance to the nearest memory vector.

        Args:
            embedding: ``(B, D, h, w)``.

        Returns:
            ``(B, h, w)``, never negative.
        """
        batch, _, height, width = embedding.shape
        points = embedding.flatten(2).transpose(1, 2)
        squared_norms = self.vectors.square().sum(dim=1)

        def nearest(queries: Tensor) -> Tensor:
            # The query's own norm does not change which vector is nearest, so it is added after the minimum.
            return torch.addmm(squared_norms, queries, self.vectors.T, alpha=-2.0).amin(dim=-1)

        # Image by image while the products of one still fit a cache; a traced graph takes the batch in one piece.
        flat = points.flatten(0, 1)
        chunks = [flat] if torch.is_grad_enabled() else torch.split(flat, 256)
        smallest = torch.cat([nearest(chunk) for chunk in chunks]).view(batch, -1)
        distance = (smallest + points.square().sum(dim=-1)).clamp_min(1e-12).sqrt()
        return distance.view(batch, height, width)
