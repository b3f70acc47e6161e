"""Golden images that travel with a package, and the scores that its verdict rests on: what it must say of them again.

``probe/000.png``, ... hold the pixels, without loss; ``probe.json`` their names in the golden set, the model's scores
and how far a score may be off. With them a package can be checked anywhere, also years after its golden set changed.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stlm.data.image_files import open_image
from stlm.errors import WeightsError

__all__ = ["PROBE_FILE", "ProbeImage", "compare_scores", "probe_path", "read_probe", "write_probe"]

PROBE_FILE = "probe.json"
_FOLDER = "probe"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProbeImage:
    """One image and what was said of it."""

    name: str
    """Its path in the golden set."""
    pixels: NDArray[np.uint8]
    """``(H, W, 3)`` uint8 RGB."""
    score: float
    """The score that was recorded when the model was judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    file: str
    name: str
    score: float


def write_probe(folder: Path, images: Sequence[ProbeImage], *, tolerance: float) -> None:
    """Put images and scores into a package that is not sealed yet.

    Args:
        folder: The package.
        images: At least one.
        tolerance: Largest difference of a score that still counts as the same.

    Raises:
        ValueError: A score is not finite, or the tolerance is not positive.
    """
    if not images or tolerance <= 0 or not all(math.isfinite(image.score) for image in images):
        raise ValueError(f"a probe needs images with finite scores and a tolerance, got {len(images)}, {tolerance}")
    (folder / _FOLDER).mkdir()
    rows = []
    for number, image in enumerate(images):
        path = probe_path(folder, number)
        Image.fromarray(image.pixels).save(path)
        rows.append(asdict(_Row(file=path.relative_to(folder).as_posix(), name=image.name, score=image.score)))
    content = {"tolerance": tolerance, "images": rows}
    (folder / PROBE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def probe_path(folder: Path, number: int) -> Path:
    """File of the image of that number in a package."""
    return folder / _FOLDER / f"{number:03d}.png"


def read_probe(folder: Path) -> tuple[list[ProbeImage], float]:
    """Images, scores and tolerance of a package.

    Args:
        folder: The package.

    Returns:
        The images (none for a package from before there were probes), and the tolerance.

    Raises:
        WeightsError: The probe cannot be read.
    """
    path = folder / PROBE_FILE
    if not path.exists():
        return [], 0.0
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [_Row(**row) for row in content["images"]]
        images = [ProbeImage(name=row.name, pixels=_pixels(folder / row.file), score=float(row.score)) for row in rows]
        return images, float(content["tolerance"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path} cannot be read: {error!r}") from error


def compare_scores(images: Sequence[ProbeImage], scores: Sequence[float], *, tolerance: float) -> None:
    """Compare what a model says now with what was recorded.

    Args:
        images: The probe.
        scores: One score for each of them.
        tolerance: Largest difference that still counts as the same.

    Raises:
        WeightsError: A score is another one; the message names the worst image.
    """
    gaps = [abs(score - image.score) for image, score in zip(images, scores, strict=True)]
    if not gaps:
        return
    worst = max(range(len(gaps)), key=lambda index: gaps[index] if math.isfinite(gaps[index]) else math.inf)
    if not gaps[worst] <= tolerance:
        raise WeightsError(
            f"golden image {images[worst].name} scores {scores[worst]:.6g}, recorded was {images[worst].score:.6g} "
            f"(tolerance {tolerance:g})"
        )


def _pixels(path: Path) -> NDArray[np.uint8]:
    with open_image(path) as image:
        return np.asarray(image.convert("RGB"))
