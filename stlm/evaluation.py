"""A model over images: scores and anomaly maps."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from stlm.data.image_files import read_image
from stlm.data.transforms import preprocess
from stlm.errors import DataError
from stlm.models.outputs import AnomalyOutput

__all__ = ["Detector", "ImageSource", "ScoredImages", "score_images", "shrink_maps"]

logger = logging.getLogger(__name__)

ImageSource = Path | npt.NDArray[np.uint8]
"""A file, or ``(H, W, 3)`` uint8 RGB."""


class Detector(Protocol):
    """What is asked of a model here."""

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` it works at."""

    def __call__(self, images: Tensor) -> AnomalyOutput:
        """Score ``(B, 3, height, width)`` float32 in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredImages:
    """Results in the order of the images; larger is more anomalous."""

    scores: npt.NDArray[np.float32]
    """``(N,)``."""
    maps: npt.NDArray[np.float32]
    """``(N, H, W)`` at the model's image size."""


def score_images(
    model: Detector,
    images: Sequence[ImageSource],
    *,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    description: str = "score",
) -> ScoredImages:
    """Score images of any sizes; all maps are kept, 0.26 MB an image at 256 x 256.

    Args:
        model: In evaluation mode and on ``device``.
        images: Files, or decoded images.
        batch_size: Images a forward pass.
        device: Where the model is.
        description: Name on the progress bar, which is shown on a terminal only.

    Returns:
        Scores and maps.

    Raises:
        DataError: A file cannot be decoded, or there is no image.
    """
    if not images:
        raise DataError("no image to score")
    scores: list[npt.NDArray[Any]] = []
    maps: list[npt.NDArray[Any]] = []
    with (
        torch.inference_mode(),
        tqdm(total=len(images), desc=description, unit="img", disable=None, leave=False) as progress,
    ):
        for batch in _batches(images, batch_size, model.image_size):
            output = model(batch.to(device))
            scores.append(output.score.float().cpu().numpy())
            maps.append(output.anomaly_map.float().cpu().numpy())
            progress.update(len(batch))
    logger.info("phase=%s images=%d", description, len(images))
    return ScoredImages(scores=np.concatenate(scores), maps=np.concatenate(maps))


def _batches(images: Sequence[ImageSource], batch_size: int, image_size: tuple[int, int]) -> Iterator[Tensor]:
    for first in range(0, len(images), batch_size):
        yield torch.cat([_tensor(image, image_size) for image in images[first : first + batch_size]])


def _tensor(image: ImageSource, image_size: tuple[int, int]) -> Tensor:
    # Resized one by one: the images of a golden set may differ in size.
    pixels = read_image(image) if isinstance(image, Path) else image
    return preprocess(torch.tensor(pixels)[None], image_size)


def shrink_maps(maps: npt.NDArray[np.float32], side_px: int) -> npt.NDArray[np.float16]:
    """Average ``(N, H, W)`` maps down to ``(N, side_px, side_px)`` float16, for pictures."""
    small = F.adaptive_avg_pool2d(torch.from_numpy(maps)[:, None], side_px)[:, 0]
    limit = float(np.finfo(np.float16).max)
    return small.clamp(-limit, limit).numpy().astype(np.float16)
