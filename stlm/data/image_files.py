"""Image files: opened by an allow-list of formats, all of them photographs.

Pillow knows formats that it hands to other programs, such as EPS to Ghostscript, and guesses the format by the content,
whatever the name says. Everything that opens a picture does so here. Neither torch nor anything else heavy is imported.
"""

import warnings
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stlm.errors import DataError

__all__ = ["FORMATS", "open_image", "read_image"]

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""Pillow's names of what is read."""


def open_image(file: str | Path | IO[bytes]) -> Image.Image:
    """Open an image of one of :data:`FORMATS`; its pixels are not decoded yet.

    Args:
        file: A path, or an open binary file.

    Returns:
        The image, to be closed by the caller.

    Raises:
        OSError: There is no such file, or it is of no such format.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"no image of the formats {', '.join(FORMATS)}") from error


def read_image(file: str | Path | IO[bytes]) -> NDArray[np.uint8]:
    """Decode an 8-bit grey or RGB photograph.

    Args:
        file: A path or an open binary file, of one of :data:`FORMATS`.

    Returns:
        ``(H, W, 3)`` uint8 RGB; grey is replicated.

    Raises:
        DataError: The file cannot be decoded, or is not 8-bit grey or RGB.
    """
    name = file if isinstance(file, str | Path) else "image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_image(file) as image:
                if image.mode not in ("L", "RGB", "P", "1"):
                    raise DataError(f"{name}: expected an 8-bit grey or RGB image, got mode {image.mode}")
                return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name}: cannot be decoded ({error})") from error
