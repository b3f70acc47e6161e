"""What one detector reaches on one test set."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from stlm.constants import GOOD
from stlm.data.layout import GoldenSet
from stlm.data.transforms import read_mask
from stlm.errors import DataError
from stlm.evaluation import Detector, ScoredImages, score_images
from stlm.metrics import PixelMetrics, auroc, average_precision, f1_max, pixel_metrics

__all__ = ["FIGURES", "Figures", "Judged", "judge"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """The field's metrics, each in [0, 1]; pixel ones are ``None`` where the set has no masks."""

    image_auroc: float
    image_ap: float
    image_f1_max: float
    pixel_auroc: float | None = None
    pixel_ap: float | None = None
    pixel_f1_max: float | None = None
    pro: float | None = None


FIGURES = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Figures, and the image scores behind them."""

    figures: Figures
    scores: npt.NDArray[np.float32]
    """``(N,)`` in the order of the set."""
    defective: npt.NDArray[np.bool_]
    """``(N,)``."""


def judge(detector: Detector, golden: GoldenSet, *, device: str = "cpu") -> Judged:
    """Score a whole test set.

    Args:
        detector: In evaluation mode, on ``device``.
        golden: The set; good and defective images must both be there.
        device: Where the detector is.

    Returns:
        Its figures. Masks are read at the detector's size, by nearest neighbour.

    Raises:
        DataError: An image or a mask cannot be decoded, or a defect vanishes at the detector's size.
        MetricUndefinedError: The set has no good or no defective image.
    """
    scored = score_images(detector, [item.path for item in golden.items], device=device)
    defective = np.array([item.defect != GOOD for item in golden.items])
    pixels = _pixels(golden, scored) if golden.has_masks else None
    return Judged(
        figures=Figures(
            image_auroc=auroc(scored.scores, defective),
            image_ap=average_precision(scored.scores, defective),
            image_f1_max=f1_max(scored.scores, defective),
            pixel_auroc=pixels.auroc if pixels else None,
            pixel_ap=pixels.average_precision if pixels else None,
            pixel_f1_max=pixels.f1_max if pixels else None,
            pro=pixels.pro if pixels else None,
        ),
        scores=scored.scores,
        defective=defective,
    )


def _pixels(golden: GoldenSet, scored: ScoredImages) -> PixelMetrics:
    size = (scored.maps.shape[1], scored.maps.shape[2])
    masks = np.zeros(scored.maps.shape, dtype=np.bool_)
    for index, item in enumerate(golden.items):
        if item.mask_path is not None:
            masks[index] = read_mask(item.mask_path, size)
            if not masks[index].any():
                raise DataError(f"{item.mask_path}: the defect vanishes at {size[0]} x {size[1]}")
    return pixel_metrics(scored.maps, masks)
