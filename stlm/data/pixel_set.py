"""The images that pixel metrics are taken on: golden ones with masks, or golden normals with synthetic defects."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stlm.constants import GOOD
from stlm.data.image_files import read_image
from stlm.data.layout import GoldenSet
from stlm.data.probes import draw_probes
from stlm.data.transforms import read_mask

__all__ = ["PixelImage", "PixelSet", "golden_pixels", "masks_at"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelImage:
    """One image and where its defect is."""

    golden_row: int
    """The golden item it is, or was made from."""
    image_class: str
    """``good``, or the class of the defect."""
    altered: npt.NDArray[np.uint8] | None = None
    """``(H, W, 3)`` the golden normal with a synthetic defect; ``None`` for the golden image as it is."""
    mask: Path | npt.NDArray[np.bool_] | None = None
    """A file, or ``(H, W)``; ``None`` for no defect."""

    def mask_at(self, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """The mask by nearest neighbour; a thin defect may vanish.

        Args:
            size: ``(height, width)``.

        Returns:
            ``(height, width)`` bool.

        Raises:
            DataError: The file cannot be decoded.
        """
        if self.mask is None:
            return np.zeros(size, dtype=bool)
        if isinstance(self.mask, Path):
            return read_mask(self.mask, size)
        grey = Image.fromarray(self.mask.astype(np.uint8) * 255)
        return np.asarray(grey.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelSet:
    """What pixel metrics are taken on."""

    images: tuple[PixelImage, ...]
    synthetic: bool
    """True where the defects are synthetic: whoever shows the figures says so."""
    num_lost_masks: int = 0
    """Defective images left out, because their mask is missing or vanishes at a model's size."""


def golden_pixels(golden: GoldenSet, *, num_synthetic: int, map_sizes: Sequence[tuple[int, int]]) -> PixelSet:
    """Choose the images, so that every defect has a mask at the size of every model's maps.

    Without masks in the golden set, synthetic defects are drawn on some of its normals; which ones and what depends on
    the golden set's digest alone, so that every night sees the same.

    Args:
        golden: The golden set.
        num_synthetic: How many normals get a synthetic defect, at most all.
        map_sizes: ``(height, width)`` of the maps of each model that is to be measured.

    Returns:
        The images, in the order of the golden set.

    Raises:
        DataError: An image or a mask cannot be decoded.
    """
    images = _with_masks(golden) if golden.has_masks else _with_probes(golden, num_synthetic)
    kept = tuple(
        image
        for image in images
        if image.image_class == GOOD
        or (image.mask is not None and all(image.mask_at(size).any() for size in map_sizes))
    )
    return PixelSet(images=kept, synthetic=not golden.has_masks, num_lost_masks=len(images) - len(kept))


def masks_at(pixel_set: PixelSet, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """All masks at ``(height, width)``: ``(M, height, width)`` bool."""
    return np.stack([image.mask_at(size) for image in pixel_set.images])


def _with_masks(golden: GoldenSet) -> list[PixelImage]:
    return [
        PixelImage(golden_row=row, image_class=item.defect, mask=item.mask_path)
        for row, item in enumerate(golden.items)
    ]


def _with_probes(golden: GoldenSet, num_synthetic: int) -> list[PixelImage]:
    seed = int.from_bytes(hashlib.sha256(f"probes {golden.digest}".encode()).digest()[:8], "big")
    good = np.flatnonzero([item.defect == GOOD for item in golden.items])
    chosen = np.sort(np.random.default_rng(seed).permutation(good)[:num_synthetic])
    probes = draw_probes([read_image(golden.items[row].path) for row in chosen], seed=seed)
    drawn = dict(zip(chosen.tolist(), probes, strict=True))
    return [
        PixelImage(golden_row=row, image_class=drawn[row].kind, altered=drawn[row].image, mask=drawn[row].mask)
        if row in drawn
        else PixelImage(golden_row=row, image_class=GOOD)
        for row in good.tolist()
    ]
