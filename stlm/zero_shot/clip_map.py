"""Anomaly maps from text prompts alone: each patch of an image against what normal and anomalous look like.

After WinCLIP's ensemble of states and templates (Jeong et al. 2023): ``t`` is the unit mean of a state group's unit
text vectors, ``p`` a patch's unit vector, and ``P(p) = exp(p.t_a / T) / (exp(p.t_a / T) + exp(p.t_n / T))``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from stlm.data.transforms import preprocess
from stlm.errors import DataError
from stlm.zero_shot.clip_encoder import ClipEncoder
from stlm.zero_shot.config import ClipMapConfig
from stlm.zero_shot.prompts import PromptSet

__all__ = ["ClipJudgement", "ClipMapper", "anomaly_probability", "text_prototype"]

_BATCH = 8


class ClipJudgement(NamedTuple):
    """What CLIP makes of one image."""

    score: float
    """In [0, 1]; larger is more anomalous."""
    anomaly_map: NDArray[np.float32]
    """``(H, W)`` in [0, 1] at CLIP's image size, over the whole image."""
    likeliest: str
    """The class of prompts that fits the map's peak best."""


def text_prototype(vectors: Tensor) -> Tensor:
    """The one direction of several texts.

    Args:
        vectors: ``(N, D)`` unit vectors.

    Returns:
        ``(D,)`` unit vector of their mean.
    """
    return F.normalize(vectors.mean(dim=0), dim=0)


def anomaly_probability(tokens: Tensor, normal: Tensor, anomalous: Tensor, temperature: float) -> Tensor:
    """Each class of anomalous against normal, as a softmax over the two.

    Args:
        tokens: ``(..., D)`` unit vectors.
        normal: ``(D,)`` unit vector.
        anomalous: ``(K, D)`` unit vectors.
        temperature: Divides the similarities.

    Returns:
        ``(..., K)`` in [0, 1].
    """
    return torch.sigmoid((tokens @ anomalous.T - (tokens @ normal)[..., None]) / temperature)


class ClipMapper:
    """Judges images by a product's prompts.

    Args:
        encoder: CLIP.
        prompts: The product's.
        config: The constants.

    Raises:
        ConfigError: A prompt is longer than CLIP reads.
    """

    def __init__(self, *, encoder: ClipEncoder, prompts: PromptSet, config: ClipMapConfig) -> None:
        self._encoder = encoder
        self._config = config
        self.classes = tuple(prompts.anomalous)
        self._normal = text_prototype(encoder.embed_texts(prompts.texts(prompts.normal)))
        self._anomalous = torch.stack(
            [text_prototype(encoder.embed_texts(prompts.texts(states))) for states in prompts.anomalous.values()]
        )

    def judge(self, images: Sequence[NDArray[np.uint8]]) -> list[ClipJudgement]:
        """Score and map of each image.

        Args:
            images: ``(H, W, 3)`` uint8 RGB, of any sizes from one patch up.

        Returns:
            One judgement per image, in order; the same for an image alone as in company.

        Raises:
            DataError: An image is smaller than a patch; the message names its place.
            ConfigError: The configuration names a block that the model does not have.
        """
        patch = self._encoder.patch_px
        for index, image in enumerate(images):
            if min(image.shape[:2]) < patch:
                height, width = image.shape[:2]
                raise DataError(f"image {index}: {height} x {width} pixels, smaller than one patch of {patch}")
        found: list[ClipJudgement] = []
        for start in range(0, len(images), _BATCH):
            found += self._judge(images[start : start + _BATCH])
        return found

    def _judge(self, images: Sequence[NDArray[np.uint8]]) -> list[ClipJudgement]:
        encoder, config = self._encoder, self._config
        size, device = encoder.image_size, encoder.mean.device
        # One at a time up to here: sizes may differ.
        pixels = torch.cat([preprocess(torch.from_numpy(image.copy())[None].to(device), size) for image in images])
        tokens = encoder.embed_images(pixels, config.blocks, value_attention=config.value_attention)
        towards = (self._normal, self._anomalous, config.temperature)
        whole = anomaly_probability(tokens.image, *towards).amax(dim=-1).cpu().numpy()
        cells = anomaly_probability(tokens.patches, *towards).mean(dim=0).permute(0, 3, 1, 2).cpu().numpy()
        if config.smoothing_cells:
            sigma = (0.0, 0.0, config.smoothing_cells, config.smoothing_cells)
            cells = ndimage.gaussian_filter(cells, sigma, mode="nearest")
        best = cells.max(axis=1, keepdims=True)
        maps = F.interpolate(torch.from_numpy(best), size=size, mode="bilinear", align_corners=False)[:, 0].numpy()
        peaks = best.reshape(len(best), -1).max(axis=1)
        by_class = cells.max(axis=(2, 3)).argmax(axis=1)
        weight = config.map_weight
        return [
            ClipJudgement(
                score=float(weight * peaks[i] + (1.0 - weight) * whole[i]),
                anomaly_map=maps[i].astype(np.float32),
                likeliest=self.classes[by_class[i]],
            )
            for i in range(len(images))
        ]
