"""Promptable segmentation: an image is encoded once, its light decoder is asked as often as one likes.

Segment-anything's models and MobileSAM are both a ``Sam`` (see ``stlm.nn``), so one class serves both.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F

from stlm.errors import DataError

__all__ = ["Embedding", "Prompts", "SamSegmenter", "Segmenter"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embedding:
    """An encoded image."""

    features: Tensor
    """``(C, h, w)``; the image covers the upper left part of ``input_size``, the rest is padding."""
    image_size: tuple[int, int]
    """``(height, width)`` of the image."""
    input_size: tuple[int, int]
    """``(height, width)`` of the image in the encoder's square input."""
    square_px: int
    """Side of that input."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prompts:
    """What the decoder is told, in pixels of the image."""

    points: NDArray[np.float64]
    """``(N, 2)`` as (x, y)."""
    labels: NDArray[np.int64]
    """``(N,)``: 1 inside, 0 outside."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom."""
    logits: Tensor | None = None
    """``(4h, 4w)`` of an earlier answer."""


class Segmenter(Protocol):
    """What the cascade needs."""

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """Encode an ``(H, W, 3)`` uint8 RGB image."""
        ...

    def decode(self, embedding: Embedding, prompts: Prompts) -> Tensor:
        """One answer: ``(4h, 4w)`` logits over the padded square; above 0 is inside."""
        ...


class SamSegmenter:
    """Segment-anything or MobileSAM.

    Args:
        sam: The model, in evaluation mode.
    """

    def __init__(self, *, sam: Sam) -> None:
        self._sam = sam
        # Not the encoder's img_size: MobileSAM's encoder has none.
        self._square_px = int(sam.prompt_encoder.input_image_size[0])
        self._resize = ResizeLongestSide(self._square_px)

    @torch.inference_mode()
    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """Encode an image.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.

        Returns:
            The embedding.

        Raises:
            DataError: A side would be less than one pixel in the encoder's input.
        """
        sam = self._sam
        height, width = image.shape[:2]
        if min(ResizeLongestSide.get_preprocess_shape(height, width, self._square_px)) < 1:
            raise DataError(f"{height} x {width} pixels, too narrow to be encoded in {self._square_px} x its square")
        resized = torch.from_numpy(self._resize.apply_image(image)).to(sam.device).permute(2, 0, 1)[None]
        normed = (resized - sam.pixel_mean) / sam.pixel_std
        pad = (0, self._square_px - normed.shape[3], 0, self._square_px - normed.shape[2])
        features = sam.image_encoder(F.pad(normed, pad))[0]
        return Embedding(
            features=features,
            image_size=(height, width),
            input_size=(int(resized.shape[2]), int(resized.shape[3])),
            square_px=self._square_px,
        )

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: Prompts) -> Tensor:
        """Ask the prompt encoder and mask decoder once, for a single mask.

        Args:
            embedding: The image.
            prompts: At least one point.

        Returns:
            ``(4h, 4w)`` float32 logits over the padded square.
        """
        sam, device = self._sam, embedding.features.device
        scaled = self._resize.apply_coords(prompts.points, embedding.image_size)
        points = torch.as_tensor(scaled, dtype=torch.float32, device=device)[None]
        labels = torch.as_tensor(prompts.labels, device=device)[None]
        box = None
        if prompts.box is not None:
            corners = self._resize.apply_boxes(np.asarray([prompts.box]), embedding.image_size)
            box = torch.as_tensor(corners, dtype=torch.float32, device=device)
        sparse, dense = sam.prompt_encoder(
            points=(points, labels),
            boxes=box,
            masks=None if prompts.logits is None else prompts.logits[None, None],
        )
        logits, _ = sam.mask_decoder(
            image_embeddings=embedding.features[None],
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        answer: Tensor = logits[0, 0]
        return answer
