"""What a training step takes: chosen samples, and the batch that they make."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stlm.nn.encoders import Features

__all__ = ["Choice", "TrainingBatch"]


class TrainingBatch(NamedTuple):
    """One step's input."""

    corrupted: Features
    clean: Features
    mask: Tensor
    """``(B, H, W)`` float32, 1 on pseudo-anomalous pixels (or positions, where cached)."""
    is_clean: Tensor
    """``(B,)`` bool on the CPU, True where both views are one."""
    corrupted_targets: tuple[Tensor, ...] = ()
    """A teacher's two levels of the corrupted view, where they are cached; empty otherwise."""
    clean_targets: tuple[Tensor, ...] = ()
    """The same of the clean view."""

    def rows(self, rows: slice) -> "TrainingBatch":
        """A part of the batch."""
        return TrainingBatch._make(
            v[rows] if isinstance(v, Tensor) else tuple(level[rows] for level in v) for v in self
        )

    @staticmethod
    def joined(parts: Sequence["TrainingBatch"]) -> "TrainingBatch":
        """Parts of a batch, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return TrainingBatch._make(
            torch.cat(values)
            if isinstance(values[0], Tensor)
            else tuple(torch.cat(levels) for levels in zip(*values, strict=True))
            for values in zip(*parts, strict=True)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which samples a batch takes; drawn in no time, so that every process can draw all and make its own."""

    indices: NDArray[np.int64]
    """``(B,)``, of the normals."""
    repetitions: NDArray[np.int64]
    """``(B,)``: which of its corruptions is meant."""
    is_clean: NDArray[np.bool_]
    """``(B,)``, True where the corruption is left out."""

    def rows(self, rows: slice) -> "Choice":
        """A part of the choice."""
        return Choice(indices=self.indices[rows], repetitions=self.repetitions[rows], is_clean=self.is_clean[rows])
