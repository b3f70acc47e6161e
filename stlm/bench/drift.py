"""Nights of drift: every state of a detector judged on every night's test set.

The protocol is that of continual learning: row ``t`` of a matrix is the detector after night ``t``, column ``e`` the
test set of night ``e``. What a detector forgets, gains and costs is read off it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stlm.bench.figures import Judged, judge
from stlm.bench.learners import Learner, night_of
from stlm.data.layout import GoldenSet, read_golden_set, read_train_normals
from stlm.errors import DataError

__all__ = ["DriftNight", "DriftResult", "read_drift_nights", "run_drift"]

logger = logging.getLogger(__name__)
_MATRICES = ("image_auroc", "pixel_auroc", "pixel_ap", "pro")


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftNight:
    """One night's normals, and the test set of its conditions."""

    name: str
    normals: tuple[Path, ...]
    golden: GoldenSet | None
    """``None`` where the folder's masks are not sound: its normals are learnt, but nothing is judged on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftResult:
    """One learner's life through all nights."""

    strategy: str
    seed: int
    nights: tuple[str, ...]
    """In the order of learning."""
    judged: tuple[str, ...]
    """Nights with a test set, in the same order."""
    matrices: Mapping[str, npt.NDArray[np.float64]]
    """Metric -> ``(nights, judged)``; NaN where a metric does not exist."""
    false_alarms: npt.NDArray[np.float64]
    """``(nights, judged)`` share of good test images above the threshold of that night."""
    recalls: npt.NDArray[np.float64]
    """``(nights, judged)`` share of defective test images above it."""
    frozen_false_alarms: npt.NDArray[np.float64]
    """False alarms with the threshold of the first night: how far the scores themselves move."""
    seconds: tuple[float, ...]
    replay_bytes: tuple[int, ...]

    def final_mean(self, metric: str) -> float:
        """Mean over the test sets after the last night."""
        return float(self.matrices[metric][-1].mean())

    def forgetting(self, metric: str) -> float:
        """Mean over test sets of nights learnt of the best so far minus the end, floored at 0."""
        return float(self._losses(metric).mean())

    def relative_forgetting(self, metric: str) -> float:
        """The same as a share of the best so far."""
        best = np.array([self.matrices[metric][row:, column].max() for row, column in self._learnt()])
        return float((self._losses(metric) / best).mean())

    def plasticity(self, metric: str) -> float:
        """Mean of each test set's figure right after its own night."""
        return float(np.mean([self.matrices[metric][row, column] for row, column in self._learnt()]))

    def _learnt(self) -> list[tuple[int, int]]:
        return [(self.nights.index(name), column) for column, name in enumerate(self.judged)]

    def _losses(self, metric: str) -> npt.NDArray[np.float64]:
        matrix = self.matrices[metric]
        return np.array([max(0.0, matrix[row:, column].max() - matrix[-1, column]) for row, column in self._learnt()])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object with the matrices and what is read off them."""
        return {
            "strategy": self.strategy,
            "seed": self.seed,
            "nights": list(self.nights),
            "judged": list(self.judged),
            "matrices": {name: matrix.tolist() for name, matrix in self.matrices.items()},
            "false_alarms": self.false_alarms.tolist(),
            "recalls": self.recalls.tolist(),
            "frozen_false_alarms": self.frozen_false_alarms.tolist(),
            "seconds": list(self.seconds),
            "replay_bytes": list(self.replay_bytes),
            "summary": {
                name: {
                    "final_mean": self.final_mean(name),
                    "forgetting": self.forgetting(name),
                    "relative_forgetting": self.relative_forgetting(name),
                    "plasticity": self.plasticity(name),
                }
                for name in self.matrices
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "DriftResult":
        """Inverse of :meth:`to_json`."""
        return cls(
            strategy=value["strategy"],
            seed=value["seed"],
            nights=tuple(value["nights"]),
            judged=tuple(value["judged"]),
            matrices={name: np.array(rows) for name, rows in value["matrices"].items()},
            false_alarms=np.array(value["false_alarms"]),
            recalls=np.array(value["recalls"]),
            frozen_false_alarms=np.array(value["frozen_false_alarms"]),
            seconds=tuple(value["seconds"]),
            replay_bytes=tuple(value["replay_bytes"]),
        )


def read_drift_nights(root: Path, *, shuffle_seed: int | None = None) -> list[DriftNight]:
    """Every sub-folder in MVTec layout is a night, in the order of their names.

    Args:
        root: Folder of folders.
        shuffle_seed: Where given, the nights come in another order, decided by it.

    Returns:
        The nights.

    Raises:
        DataError: There are fewer than two, or none of them can be judged on.
    """
    nights = []
    for folder in sorted(path for path in root.iterdir() if (path / "train").is_dir()) if root.is_dir() else []:
        golden = None
        try:
            golden = read_golden_set(folder, leave_out_unmarked=True)
        except DataError as error:
            logger.warning("night=%s is learnt, but not judged on: %s", folder.name, error)
        nights.append(DriftNight(name=folder.name, normals=read_train_normals(folder), golden=golden))
    if len(nights) < 2:
        raise DataError(f"{root}: expected at least two folders in MVTec layout, found {len(nights)}")
    if all(night.golden is None for night in nights):
        raise DataError(f"{root}: none of its {len(nights)} folders has a test set to judge on")
    if shuffle_seed is not None:
        nights = [nights[index] for index in np.random.default_rng(shuffle_seed).permutation(len(nights))]
    return nights


def run_drift(
    learner: Learner,
    nights: Sequence[DriftNight],
    *,
    strategy: str,
    seed: int,
    parts: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = logger.info,
) -> DriftResult:
    """Let a learner live through the nights.

    Args:
        learner: Fresh.
        nights: In order.
        strategy: Name for the result.
        seed: For the result.
        parts: Name of a file -> its part, where that is known.
        tell: Called with a line after each night.

    Returns:
        Matrices and costs.
    """
    judged_on = [(night.name, night.golden) for night in nights if night.golden is not None]
    matrices: dict[str, list[list[float]]] = {name: [] for name in _MATRICES}
    alarms, recalls, frozen_alarms = [], [], []
    seconds, replay_bytes, first_threshold = [], [], None
    for night in nights:
        started = time.perf_counter()
        learner.learn(night_of(night.normals, night.name, parts))
        seconds.append(time.perf_counter() - started)
        replay_bytes.append(learner.replay_bytes)
        first_threshold = learner.threshold if first_threshold is None else first_threshold
        row = [judge(learner.detector, golden, device=learner.device) for _, golden in judged_on]
        for name, rows in matrices.items():
            values = [getattr(judged.figures, name) for judged in row]
            rows.append([float("nan") if value is None else value for value in values])
        alarms.append([_alarms(judged, learner.threshold, defective=False) for judged in row])
        recalls.append([_alarms(judged, learner.threshold, defective=True) for judged in row])
        frozen_alarms.append([_alarms(judged, first_threshold, defective=False) for judged in row])
        cells = " ".join(f"{value:.3f}" for value in matrices["image_auroc"][-1])
        tell(f"{strategy:17} {night.name:>8}: image AUROC {cells}  {seconds[-1]:5.0f} s")
    return DriftResult(
        strategy=strategy,
        seed=seed,
        nights=tuple(night.name for night in nights),
        judged=tuple(name for name, _ in judged_on),
        matrices={name: np.array(rows) for name, rows in matrices.items()},
        false_alarms=np.array(alarms),
        recalls=np.array(recalls),
        frozen_false_alarms=np.array(frozen_alarms),
        seconds=tuple(seconds),
        replay_bytes=tuple(replay_bytes),
    )


def _alarms(judged: Judged, threshold: float, *, defective: bool) -> float:
    return float(np.mean(judged.scores[judged.defective == defective] > threshold))
