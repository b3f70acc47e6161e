"""What a bootstrap draws: whole images, or whole lots of them, within groups that are alike."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stlm.constants import GOOD

__all__ = ["Units", "units_of"]

_MIN_UNITS = 5
"""A group of fewer units shows too little of how much they vary: one alone would be the same in every resample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """How ``N`` images are drawn."""

    groups: tuple[str, ...]
    """``(N,)`` units are drawn within groups."""
    numbers: npt.NDArray[np.intp]
    """``(N,)`` images with the same number are drawn together."""

    def smaller_class(self, anomalous: npt.NDArray[np.bool_], members: npt.NDArray[np.bool_] | None = None) -> int:
        """Units of the class that has fewer.

        Args:
            anomalous: ``(N,)`` true for defective images.
            members: ``(N,)`` count only these images; ``None`` for all.

        Returns:
            A number of units; 0 where a class is missing.
        """
        chosen = np.ones(len(anomalous), dtype=bool) if members is None else members
        return min(len(set(self.numbers[chosen & side].tolist())) for side in (anomalous, ~anomalous))


def units_of(strata: Sequence[str], classes: Sequence[str], lots: Sequence[str] | None = None) -> Units:
    """Group images by stratum and defect class; groups of fewer than five units are drawn with their like.

    Args:
        strata: ``(N,)`` product, camera or whatever the set is divided by.
        classes: ``(N,)`` ``good`` or the defect class.
        lots: ``(N,)`` lot of each image, empty for an image that stands for itself. A lot with several classes is a
            unit of a group of such lots.

    Returns:
        Groups and units. Good and defective units keep their numbers in every resample; a class may go missing in one
        where it has fewer than five units.
    """
    named = lots if lots is not None else [""] * len(classes)
    members: dict[str, list[int]] = defaultdict(list)
    for image, lot in enumerate(named):
        members[f"lot {lot}" if lot else f"image {image}"].append(image)
    numbers = np.zeros(len(classes), dtype=np.intp)
    fine: list[str] = []
    coarse: list[str] = []
    for number, images in enumerate(members.values()):
        numbers[images] = number
        fine.append("+".join(sorted({f"{strata[i]}/{classes[i]}" for i in images})))
        coarse.append("+".join(sorted({GOOD if classes[i] == GOOD else "defective" for i in images})))
    sizes = {name: fine.count(name) for name in set(fine)}
    chosen = [name if sizes[name] >= _MIN_UNITS else f"few {like}" for name, like in zip(fine, coarse, strict=True)]
    return Units(groups=tuple(chosen[number] for number in numbers), numbers=numbers)
