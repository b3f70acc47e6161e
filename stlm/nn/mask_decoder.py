"""The shared decoder: segment-anything's two-way transformer without prompts (STLM, section on the shared decoder)."""

from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

__all__ = ["SharedDecoder"]


class SharedDecoder(nn.Module):
    """Level-1 embedding in, level-2 embedding out: the image tokens after the two-way transformer.

    No prompt is given, so the sparse tokens are only the learned output tokens and the dense prompt is the learned
    "no mask" vector. The mask heads of segment-anything are never run and not built.
    """

    def __init__(self, *, embedding_dim: int, depth: int, num_heads: int, mlp_dim: int, num_tokens: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(
            depth=depth, embedding_dim=embedding_dim, num_heads=num_heads, mlp_dim=mlp_dim
        )
        self.tokens = nn.Embedding(num_tokens, embedding_dim)
        self.no_mask = nn.Embedding(1, embedding_dim)
        self.position = PositionEmbeddingRandom(embedding_dim // 2)

    def forward(self, embedding: Tensor) -> Tensor:
        """Decode a batch at once.

        Args:
            embedding: ``(B, D, h, w)``.

        Returns:
            ``(B, D, h, w)``.
        """
        batch, _, height, width = embedding.shape
        dense = embedding + self.no_mask.weight.view(1, -1, 1, 1)
        position = self.position((height, width)).unsqueeze(0).expand(batch, -1, -1, -1)
        tokens = self.tokens.weight.unsqueeze(0).expand(batch, -1, -1)
        _, keys = self.transformer(dense, position, tokens)
        decoded: Tensor = keys.transpose(1, 2).reshape(batch, -1, height, width)
        return decoded
