"""Shape-wise self-corruption after ISSTAD: inside a few shapes an image is replaced by a changed copy of itself."""

import math
from typing import Any

import numpy as np
import skimage.filters
import skimage.measure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torchvision.transforms import functional as colours

from stlm.config_isstad import ShapesConfig
from stlm.data.synthesis import FloatImage

__all__ = ["Box", "changed_copy", "corrupt_by_shapes", "object_box", "shape_mask"]

Box = tuple[int, int, int, int]
"""Top, left, bottom, right; the last two exclusive."""
_PUBLISHED_SIDE_PX = 224
_MIN_SIDE_PX = 3
_TRIES = 8


def object_box(image: FloatImage, *, padding: float) -> Box:
    """Box around the largest connected region above Otsu's threshold of the grey levels.

    Args:
        image: ``(H, W, 3)`` float32 in [0, 1].
        padding: Widens the box by this share of its sides, within the image.

    Returns:
        The box; the whole image where it has one grey level only.
    """
    height, width = image.shape[:2]
    grey = image.mean(axis=2)
    if grey.min() == grey.max():
        return 0, 0, height, width
    filters: Any = skimage.filters
    measure: Any = skimage.measure
    regions = measure.regionprops(measure.label(grey > filters.threshold_otsu(grey)))
    top, left, bottom, right = max(regions, key=lambda region: region.area).bbox
    rows, columns = math.ceil(padding * (bottom - top)), math.ceil(padding * (right - left))
    return max(0, top - rows), max(0, left - columns), min(height, bottom + rows), min(width, right + columns)


def shape_mask(
    size: tuple[int, int], box: Box, sides: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """A rectangle, an ellipse, or a polygon of three to eight corners.

    Args:
        size: ``(height, width)`` of the mask.
        box: Holds the shape.
        sides: Least and largest side, as a share of the box's.
        rng: Source of the draw.

    Returns:
        ``(height, width)``, True inside; never empty.
    """
    top, left, bottom, right = box
    height, width = (
        min(space, max(_MIN_SIDE_PX, round(space * rng.uniform(*sides)))) for space in (bottom - top, right - left)
    )
    y = top + int(rng.integers(0, bottom - top - height + 1))
    x = left + int(rng.integers(0, right - left - width + 1))
    canvas = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    corners = (x, y, x + width - 1, y + height - 1)
    kind = rng.integers(3)
    if kind == 0:
        draw.rectangle(corners, fill=1)
    elif kind == 1:
        draw.ellipse(corners, fill=1)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        points = [(x + (width - 1) * (1 + math.cos(a)) / 2, y + (height - 1) * (1 + math.sin(a)) / 2) for a in angles]
        draw.polygon(points, fill=1, outline=1)
    return np.asarray(canvas, dtype=np.bool_)


def changed_copy(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """One of the publication's three kinds: colours (one change, or two), mirrored, or half of it noise.

    Args:
        image: ``(H, W, 3)`` float32 in [0, 1].
        rng: Source of the draw.

    Returns:
        The same shape and range.
    """
    kind = rng.integers(3)
    if kind == 0:
        picture = Image.fromarray((image * 255).round().astype(np.uint8))
        for change in rng.permutation(3)[: int(rng.integers(1, 3))]:
            picture = _change_colours(picture, int(change), rng)
        return np.asarray(picture, dtype=np.float32) / np.float32(255)
    if kind == 1:
        down, across = ((True, False), (False, True), (True, True))[int(rng.integers(3))]
        return np.ascontiguousarray(image[:: -1 if down else 1, :: -1 if across else 1])
    noise = rng.random(image.shape, dtype=np.float32)
    return np.float32(0.5) * image + np.float32(0.5) * noise


def _change_colours(picture: Image.Image, change: int, rng: np.random.Generator) -> Image.Image:
    if change == 0:
        brightness, contrast, saturation = (float(rng.uniform(0.2, 1.8)) for _ in range(3))
        picture = colours.adjust_contrast(colours.adjust_brightness(picture, brightness), contrast)
        hue, saturated = float(rng.uniform(-0.4, 0.4)), colours.adjust_saturation(picture, saturation)
        shifted: Image.Image = colours.adjust_hue(saturated, hue)
        return shifted
    if change == 1:
        return picture.convert("L").convert("RGB")
    radius = float(rng.uniform(15, 20)) * min(picture.size) / _PUBLISHED_SIDE_PX
    return picture.filter(ImageFilter.GaussianBlur(radius))


def corrupt_by_shapes(
    image: FloatImage, config: ShapesConfig, rng: np.random.Generator
) -> tuple[FloatImage, NDArray[np.bool_]]:
    """Corrupt one image, or leave it, as ``config.probability`` has it.

    Args:
        image: ``(H, W, 3)`` float32 in [0, 1].
        config: Number, size and place of the shapes.
        rng: Source of every draw.

    Returns:
        The image, and its mask ``(H, W)``, True where it was replaced.
    """
    size = (image.shape[0], image.shape[1])
    corrupted, mask = image.copy(), np.zeros(size, dtype=np.bool_)
    if rng.random() >= config.probability:
        return corrupted, mask
    box = object_box(image, padding=config.padding) if config.confine else (0, 0, *size)
    for _ in range(int(rng.integers(1, config.max_shapes + 1))):
        inside = shape_mask(size, box, config.sides, rng)
        for _ in range(_TRIES):
            copy = changed_copy(image, rng)
            if np.abs(copy[inside] - image[inside]).mean() >= config.min_change:
                corrupted[inside] = copy[inside]
                mask |= inside
                break
    return corrupted, mask
