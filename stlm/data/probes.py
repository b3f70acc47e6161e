"""Synthetic defects with known masks, drawn on normal images: probes for pixel metrics where nobody drew masks.

They come from another family than the pseudo-anomalies of training (textures blended in under Perlin-noise masks):
thin cracks, soft stains and broken corners. A model that has merely learnt to find its own training noise gains
nothing here. Whoever shows a figure from them says "synthetic".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

__all__ = ["PROBE_KINDS", "Probe", "draw_probe", "draw_probes"]

PROBE_KINDS = ("scratch", "stain", "corner")

_Floats = npt.NDArray[np.float64]
# Below and above these grey levels a darker or brighter defect could not be seen.
_DARK, _BRIGHT = 70.0, 185.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A normal image with one synthetic defect."""

    image: npt.NDArray[np.uint8]
    """``(H, W, 3)`` RGB."""
    mask: npt.NDArray[np.bool_]
    """``(H, W)`` true on the defect; never empty."""
    kind: str
    """One of ``PROBE_KINDS``."""


def draw_probe(image: npt.NDArray[np.uint8], *, kind: str, rng: np.random.Generator) -> Probe:
    """Draw one defect.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, at least 16 px on each side; left as it is.
        kind: One of ``PROBE_KINDS``.
        rng: Source of all randomness.

    Returns:
        The altered copy and its mask.

    Raises:
        ValueError: The image or the kind does not fit.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape[:2]) < 16:
        raise ValueError(f"expected (H, W, 3) uint8 of at least 16 px a side, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    match kind:
        case "scratch":
            opacity, strength = _scratch(height, width, rng), rng.uniform(40, 90)
        case "stain":
            opacity, strength = _stain(height, width, rng), rng.uniform(30, 70)
        case "corner":
            opacity, strength = _corner(height, width, rng), rng.uniform(70, 120)
        case _:
            raise ValueError(f"kind must be one of {PROBE_KINDS}, got {kind!r}")
    mask = opacity > 0.5
    brightness = float(image[mask].mean())
    darker = brightness > _BRIGHT or (brightness > _DARK and rng.random() < 0.5)
    grain = ndimage.gaussian_filter(rng.normal(size=(height, width)), 0.7) * 8
    change = opacity * ((-strength if darker else strength) + grain)
    altered = np.clip(np.rint(image + change[:, :, None]), 0, 255).astype(np.uint8)
    return Probe(image=altered, mask=mask, kind=kind)


def draw_probes(images: Sequence[npt.NDArray[np.uint8]], *, seed: int) -> list[Probe]:
    """Draw one defect on each image, the kinds in turn; image ``i`` depends on ``seed`` and ``i`` alone."""
    return [
        draw_probe(image, kind=PROBE_KINDS[index % len(PROBE_KINDS)], rng=np.random.default_rng([seed, index]))
        for index, image in enumerate(images)
    ]


def _scratch(height: int, width: int, rng: np.random.Generator) -> _Floats:
    """A random walk that keeps its heading for a while: a crack or a scratch."""
    side = min(height, width)
    num_steps = int(rng.integers(6, 16))
    step_px = rng.uniform(0.25, 0.6) * side / num_steps
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.35, size=num_steps))
    path = np.cumsum(step_px * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    # The middle of the walk is put inside the image, so that most of it is.
    middle = rng.uniform(0.25, 0.75, size=2) * (width, height)
    points = [(float(x), float(y)) for x, y in path - path[num_steps // 2] + middle]
    canvas = Image.new("L", (width, height), 0)
    width_px = max(2, round(side * rng.uniform(0.008, 0.02)))
    ImageDraw.Draw(canvas).line(points, fill=255, width=width_px, joint="curve")
    soft = ndimage.gaussian_filter(np.asarray(canvas, dtype=np.float64) / 255, 0.6)
    return np.asarray(soft / soft.max(), dtype=np.float64)


def _stain(height: int, width: int, rng: np.random.Generator) -> _Floats:
    """A few overlapping soft ellipses: a stain."""
    side = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    centre = rng.uniform(0.2, 0.8, size=2) * (height, width)
    radius = side * rng.uniform(0.04, 0.1)
    blob = np.zeros((height, width))
    for _ in range(int(rng.integers(2, 5))):
        dy, dx = rng.normal(0, 0.6 * radius, size=2)
        ry, rx = radius * rng.uniform(0.6, 1.3, size=2)
        blob += np.exp(-0.5 * (((y - centre[0] - dy) / ry) ** 2 + ((x - centre[1] - dx) / rx) ** 2))
    # A short slope: what lies outside the mask is hardly visible.
    return np.asarray(np.clip((blob / blob.max() - 0.25) / 0.35, 0, 1), dtype=np.float64)


def _corner(height: int, width: int, rng: np.random.Generator) -> _Floats:
    """A triangle with a ragged edge in one corner: a broken-off piece."""
    legs = rng.uniform(0.08, 0.18, size=2) * (height, width)
    rough = ndimage.gaussian_filter(rng.normal(size=(height, width)), 2.0) * 0.8
    y, x = np.mgrid[:height, :width].astype(np.float64)
    inside = y / legs[0] + x / legs[1] + rough < 1
    inside[0, 0] = True
    flip_y, flip_x = rng.random(2) < 0.5
    inside = inside[::-1] if flip_y else inside
    inside = inside[:, ::-1] if flip_x else inside
    # Only the piece at the corner itself, not islands of the rough edge.
    labelled, _ = ndimage.label(inside)
    piece = labelled == labelled[-1 if flip_y else 0, -1 if flip_x else 0]
    return np.asarray(piece, dtype=np.float64)
