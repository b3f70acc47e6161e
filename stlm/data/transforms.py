"""Network inputs: the one resize of the product, and masks brought to its size."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stlm.data.image_files import open_image
from stlm.errors import DataError

__all__ = ["preprocess", "read_mask"]


def read_mask(path: str | Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode a defect mask and bring it to ``size`` (height, width) by nearest neighbour.

    Args:
        path: An image file.
        size: ``(height, width)`` of the result.

    Returns:
        ``(H, W)`` bool; True on defect pixels.

    Raises:
        DataError: The file cannot be decoded.
    """
    try:
        with open_image(path) as image:
            grey = image.convert("L").resize((size[1], size[0]), Image.Resampling.NEAREST)
            levels = np.asarray(grey)
            # Masks come as 0/255 and as 0/1: half of the brightest level cuts both.
            mask: NDArray[np.bool_] = levels > levels.max(initial=0) / 2
            return mask
    except Exception as error:
        raise DataError(f"{path}: cannot be decoded ({error})") from error


def preprocess(images: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Resize to the network's size, bilinear with antialiasing.

    Args:
        images: ``(B, H, W, 3)`` uint8 RGB.
        image_size: ``(height, width)`` of the result.

    Returns:
        ``(B, 3, height, width)`` float32 in [0, 1].
    """
    scaled = images.permute(0, 3, 1, 2).to(torch.float32) / 255.0
    return F.interpolate(scaled, size=image_size, mode="bilinear", antialias=True, align_corners=False).clamp(0.0, 1.0)
