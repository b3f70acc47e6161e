"""Connected defects of a stack of masks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["Regions", "label_regions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Regions:
    """The 8-connected regions of ``(N, H, W)`` masks, numbered from 0 through the whole stack."""

    pixel_region: npt.NDArray[np.int64]
    """``(P,)`` region of each defect pixel, in the order of ``masks[masks]``."""
    size_px: npt.NDArray[np.int64]
    """``(R,)`` pixels of each region."""
    image: npt.NDArray[np.int64]
    """``(R,)`` image of each region."""

    @property
    def num_regions(self) -> int:
        """``R``."""
        return len(self.size_px)


def label_regions(masks: npt.NDArray[np.bool_]) -> Regions:
    """Find the 8-connected regions of each mask; regions of different images never touch.

    Args:
        masks: ``(N, H, W)`` bool; true on defect pixels.

    Returns:
        The regions; none for empty masks.
    """
    pixel_region, images = [], []
    num_regions = 0
    for index in np.flatnonzero(masks.any(axis=(1, 2))):
        mask = masks[index]
        labelled, found = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
        pixel_region.append(labelled[mask].astype(np.int64) - 1 + num_regions)
        images.append(np.full(found, index, dtype=np.int64))
        num_regions += int(found)
    pixels = np.concatenate(pixel_region) if pixel_region else np.empty(0, dtype=np.int64)
    return Regions(
        pixel_region=pixels,
        size_px=np.bincount(pixels, minlength=num_regions).astype(np.int64),
        image=np.concatenate(images) if images else np.empty(0, dtype=np.int64),
    )
