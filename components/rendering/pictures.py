"""Thumbnails as data URIs, within a byte budget for the whole page."""

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from stlm.data.image_files import open_image

__all__ = [
    "Picture",
    "ThumbnailEncoder",
    "colour_scale_uri",
    "open_picture",
    "outlined",
    "overlay",
    "paint_map",
]

_MAX_PIXELS = 50_000_000
_COLOURS = mpl.colormaps["inferno"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture, or the reason why there is none."""

    uri: str = ""
    """``data:`` URI; empty where there is no picture."""
    alt: str
    problem: str = ""
    width: int = 0
    height: int = 0


class ThumbnailEncoder:
    """Encodes thumbnails until the page's share of bytes is used up.

    Args:
        max_side_px: No picture is longer than this on either side.
        max_bytes: Sum of all data URIs handed out.
    """

    def __init__(self, *, max_side_px: int = 224, max_bytes: int = 2_200_000) -> None:
        self._max_side_px = max_side_px
        self._bytes_left = max_bytes

    def fit(self, image: Image.Image, max_side_px: int | None = None) -> Image.Image:
        """``image`` scaled down to thumbnail size, never up, aspect kept."""
        side = min(self._max_side_px, max_side_px or self._max_side_px)
        scale = min(1.0, side / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image

    def add(self, image: Image.Image, alt: str) -> Picture:
        """Encode ``image`` as it is (JPEG), or say that the page is full."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=80, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        if len(uri) > self._bytes_left:
            return Picture(alt=alt, problem="left out: the page has reached its size limit")
        self._bytes_left -= len(uri)
        return Picture(uri=uri, alt=alt, width=image.width, height=image.height)

    def add_file(self, path: Path, alt: str, max_side_px: int | None = None) -> Picture:
        """A thumbnail of the file, or a placeholder that says why there is none."""
        try:
            image = open_picture(path)
        except ValueError as error:
            return Picture(alt=alt, problem=str(error))
        return self.add(self.fit(image, max_side_px), alt)


def open_picture(path: Path) -> Image.Image:
    """Decode any image file for showing: RGB; deep greyscale is stretched to its own range.

    Args:
        path: The file; whatever is in it.

    Returns:
        An RGB picture.

    Raises:
        ValueError: The file is missing, too large to open safely, or no decodable image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_image(path) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are too many to show")
                image.load()
                if image.mode.startswith(("I", "F")):
                    return _stretched(np.asarray(image, dtype=np.float64))
                return image.convert("RGB")
    except FileNotFoundError:
        raise ValueError("the file is not there any more") from None
    except (
        OSError,
        SyntaxError,
        EOFError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ValueError(f"cannot be decoded ({type(error).__name__})") from error


def _stretched(values: NDArray[np.float64]) -> Image.Image:
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Image.fromarray((scaled * 255).astype(np.uint8)).convert("RGB")


def _unit(anomaly_map: NDArray[np.float32], scale: tuple[float, float]) -> NDArray[np.float32]:
    low, high = scale
    span = max(high - low, 1e-12)
    values = (np.nan_to_num(anomaly_map) - low) / span
    return np.asarray(np.clip(values, 0.0, 1.0), dtype=np.float32)


def paint_map(anomaly_map: NDArray[np.float32], size: tuple[int, int], scale: tuple[float, float]) -> Image.Image:
    """Draw a map in colour.

    Args:
        anomaly_map: ``(h, w)`` float; larger is more anomalous.
        size: ``(width, height)`` in pixels of the picture, Pillow's order.
        scale: Values drawn as the darkest and the brightest colour.

    Returns:
        An RGB picture.
    """
    grey = Image.fromarray(_unit(anomaly_map, scale)).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray((_COLOURS(np.asarray(grey))[..., :3] * 255).astype(np.uint8))


def overlay(
    image: Image.Image,
    anomaly_map: NDArray[np.float32],
    scale: tuple[float, float],
    mask: Image.Image | None = None,
) -> Image.Image:
    """The image with the map over it, the more opaque the more anomalous; the true mask as a green outline.

    Args:
        image: RGB picture.
        anomaly_map: ``(h, w)`` float.
        scale: Values drawn as invisible and as fully coloured.
        mask: Non-zero on defect pixels, any size.

    Returns:
        An RGB picture of the size of ``image``.
    """
    weight = Image.fromarray(_unit(anomaly_map, scale)).resize(image.size, Image.Resampling.BILINEAR)
    alpha = 0.75 * np.asarray(weight)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    colour = np.asarray(_COLOURS(np.asarray(weight))[..., :3] * 255, dtype=np.float32)
    mixed = (1 - alpha) * grey + alpha * colour
    painted = Image.fromarray(mixed.astype(np.uint8))
    return painted if mask is None else outlined(painted, mask)


def outlined(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with a green line around a mask.

    Args:
        image: RGB picture.
        mask: Non-zero on defect pixels, any size.

    Returns:
        An RGB picture of the size of ``image``.
    """
    area = mask.convert("L").point(lambda value: 255 if value else 0).resize(image.size, Image.Resampling.NEAREST)
    outline = (np.asarray(area.filter(ImageFilter.MaxFilter(5))) > 0) & (np.asarray(area) == 0)
    pixels = np.array(image.convert("RGB"))
    pixels[outline] = (64, 220, 120)
    return Image.fromarray(pixels)


def colour_scale_uri() -> str:
    """The colours of a map from low to high, as a PNG data URI."""
    buffer = io.BytesIO()
    row = (_COLOURS(np.linspace(0, 1, 128))[None, :, :3] * 255).astype(np.uint8)
    Image.fromarray(row).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
