"""Pseudo-anomalies: normals with a blended defect of known mask.

The blend is STLM's ``Ia = (1 - M) N + (1 - beta) M A + beta M N`` with Perlin masks. The anomaly source A is a texture
(STLM uses DTD; the embedded ones are scikit-image's three CC0 photographs), another normal, or the image itself,
photometrically changed (after ISSTAD's self-corruption).
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from stlm.config import DataConfig
from stlm.data.image_files import read_image
from stlm.errors import DataError

__all__ = ["augment_normal", "corrupt", "embedded_textures", "leaves_normals", "perlin_noise", "read_textures"]

FloatImage = NDArray[np.float32]
_MAX_SHARE = 0.35
_MIN_SHARE = 0.0005


@lru_cache(maxsize=1)
def embedded_textures() -> tuple[FloatImage, ...]:
    """Brick, grass and gravel: CC0 photographs that ship with scikit-image.

    Returns:
        Images ``(512, 512, 3)`` float32 in [0, 1].
    """
    photographs: Any = skimage.data
    grey = (photographs.brick(), photographs.grass(), photographs.gravel())
    return tuple(np.repeat(image[..., None], 3, axis=2).astype(np.float32) / 255.0 for image in grey)


def read_textures(folder: Path) -> tuple[FloatImage, ...]:
    """A folder of texture photographs, such as DTD, sorted by name.

    Args:
        folder: Searched with all its sub-folders.

    Returns:
        Images ``(H, W, 3)`` float32 in [0, 1].

    Raises:
        DataError: The folder holds no image.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not paths:
        raise DataError(f"{folder}: expected texture images (.jpg, .png), found none")
    return tuple(read_image(path).astype(np.float32) / 255.0 for path in paths)


def perlin_noise(size: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> FloatImage:
    """Gradient noise (Perlin 2002, quintic fade).

    Args:
        size: ``(height, width)``.
        cells: Lattice cells along each axis.
        rng: Source of the gradients.

    Returns:
        ``(height, width)`` float32, about in [-1, 1].
    """
    angles = rng.uniform(0.0, 2.0 * np.pi, (cells[0] + 1, cells[1] + 1))
    gradient_y, gradient_x = np.sin(angles), np.cos(angles)
    y = np.linspace(0.0, cells[0], size[0], endpoint=False)
    x = np.linspace(0.0, cells[1], size[1], endpoint=False)
    cell_y, cell_x = y.astype(int), x.astype(int)
    offset_y, offset_x = (y - cell_y)[:, None], (x - cell_x)[None, :]

    def corner(dy: int, dx: int) -> NDArray[np.float64]:
        rows, columns = cell_y + dy, cell_x + dx
        # Rows first, then columns: a third less time than both at once.
        value: NDArray[np.float64] = gradient_y[rows][:, columns] * (offset_y - dy) + gradient_x[rows][:, columns] * (
            offset_x - dx
        )
        return value

    fade_y = offset_y**3 * (offset_y * (offset_y * 6 - 15) + 10)
    fade_x = offset_x**3 * (offset_x * (offset_x * 6 - 15) + 10)
    top = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    bottom = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    noise = np.sqrt(2.0) * (top * (1 - fade_y) + bottom * fade_y)
    return np.asarray(noise, dtype=np.float32)


def _perlin_mask(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    cells = (int(2 ** rng.integers(0, 6)), int(2 ** rng.integers(0, 6)))
    noise = perlin_noise(size, cells, rng)
    rotated = Image.fromarray(noise).rotate(float(rng.uniform(-90.0, 90.0)), Image.Resampling.BILINEAR)
    return np.asarray(rotated) > 0.5


def _box_mask(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=np.bool_)
    height, width = (max(2, int(side * rng.uniform(0.02, 0.25))) for side in size)
    top = int(rng.integers(0, size[0] - height + 1))
    left = int(rng.integers(0, size[1] - width + 1))
    mask[top : top + height, left : left + width] = True
    return mask


def _draw_mask(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    for _ in range(8):
        mask = _perlin_mask(size, rng)
        if _MIN_SHARE < mask.mean() < _MAX_SHARE:
            return mask
        if rng.random() < 0.3:
            break
    return _box_mask(size, rng)


def _texture_source(size: tuple[int, int], textures: Sequence[FloatImage], rng: np.random.Generator) -> FloatImage:
    texture = textures[int(rng.integers(len(textures)))]
    side = int(rng.integers(max(8, min(texture.shape[:2]) // 5), min(texture.shape[:2]) + 1))
    top = int(rng.integers(0, texture.shape[0] - side + 1))
    left = int(rng.integers(0, texture.shape[1] - side + 1))
    crop = (texture[top : top + side, left : left + side] * 255).astype(np.uint8)
    resized = Image.fromarray(crop).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32) / 255.0


def leaves_normals(config: DataConfig) -> bool:
    """Whether :func:`augment_normal` gives every image back as it is."""
    return config.brightness == 0 and config.max_rotation_deg == 0 and not config.quarter_turns


def augment_normal(image: FloatImage, config: DataConfig, rng: np.random.Generator) -> FloatImage:
    """Lighting and rotation that a normal part may show.

    Args:
        image: ``(H, W, 3)`` float32 in [0, 1].
        config: ``brightness``, ``max_rotation_deg`` and ``quarter_turns``.
        rng: Source of the draw.

    Returns:
        The same shape and range.
    """
    gain = 1.0 + rng.uniform(-config.brightness, config.brightness)
    shift = rng.uniform(-config.brightness, config.brightness) / 4.0
    if config.max_rotation_deg > 0:
        angle = float(rng.uniform(-config.max_rotation_deg, config.max_rotation_deg))
        turned = Image.fromarray((image * 255).astype(np.uint8)).rotate(
            angle, Image.Resampling.BILINEAR, fillcolor=(114, 114, 114)
        )
        image = np.asarray(turned, dtype=np.float32) / 255.0
    if config.quarter_turns:
        turns = int(rng.integers(4 if image.shape[0] == image.shape[1] else 2))
        image = np.rot90(image, turns if image.shape[0] == image.shape[1] else 2 * turns)
    lit: FloatImage = np.clip(image * np.float32(gain) + np.float32(shift), 0.0, 1.0)
    return lit


def corrupt(
    image: FloatImage,
    config: DataConfig,
    rng: np.random.Generator,
    *,
    textures: Sequence[FloatImage],
    others: Sequence[FloatImage],
) -> tuple[FloatImage, NDArray[np.bool_]]:
    """Blend one pseudo-anomaly into a normal.

    Args:
        image: ``(H, W, 3)`` float32 in [0, 1].
        config: Source shares and the blend's range.
        rng: Source of every draw.
        textures: Texture photographs of any size.
        others: Normals of the same size.

    Returns:
        The corrupted image, and its mask ``(H, W)``, True where anomalous.
    """
    size = (image.shape[0], image.shape[1])
    mask = _draw_mask(size, rng)
    gain, shift = rng.uniform(0.4, 1.6), rng.uniform(-0.3, 0.3)
    if rng.random() < config.texture_probability:
        jitter = config.texture_jitter
        source = _texture_source(size, textures, rng) * (1.0 + jitter * (gain - 1.0)) + jitter * shift
    elif rng.random() < 0.5:
        other = others[int(rng.integers(len(others)))]
        shifts = (int(rng.integers(size[0])), int(rng.integers(size[1])))
        flipped = other[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
        source = np.roll(flipped, shifts, axis=(0, 1)) * gain + shift
    else:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.0, 0.2)
        source = image * rng.uniform(0.2, 1.8) + rng.uniform(-0.4, 0.4) + noise
    beta = rng.uniform(0.0, config.max_beta)
    blended = (1.0 - beta) * np.clip(source, 0.0, 1.0) + beta * image
    return np.where(mask[..., None], blended, image).astype(np.float32), mask
