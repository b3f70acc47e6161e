"""Held-out normals that no model has learnt from: this night's, and those that travel with the model."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.config import EvaluateSettings
from components.core.contracts import CandidateRef, ModelRef, RunRef
from components.core.errors import InputError
from components.steps.evaluate.measuring import file_sha256, score
from stlm.calibration import Calibration, calibrate_threshold
from stlm.evaluation import Detector

__all__ = ["HeldOutScores", "TrainingImage", "calibrate", "expected_nights", "read_listing", "seed_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingImage:
    """One line of a list that fine-tuning wrote."""

    path: Path
    sha256: str
    night: str
    part: str = ""
    """Serial number of the part in the picture, if known."""
    doubtful: bool = False
    """Screening kept it from training without being sure that it is defective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutScores:
    """Scores of the held-out normals, in the order of the list."""

    nights: tuple[str, ...]
    expected_nights: tuple[str, ...]
    """Earlier nights of which the champion carries held-out normals: some of theirs must be here."""
    scores: Mapping[str, npt.NDArray[np.float32]]
    """``candidate`` and, where there is one, ``champion``; ``(K,)``."""

    def summary(self) -> dict[str, Any]:
        """For the report."""
        return {
            "num": len(self.nights),
            "nights": dict(sorted(Counter(self.nights).items())),
            "expected_nights": list(self.expected_nights),
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For ``numpy.savez``."""
        return {
            "nights": np.array(self.nights, dtype=str),
            **{f"{name}_scores": scores for name, scores in self.scores.items()},
        }


def seed_of(*parts: str) -> int:
    """A seed from words."""
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:8], "big")


def read_listing(candidate: CandidateRef, name: str, run: RunRef) -> list[TrainingImage]:
    """A list that lies beside the candidate's package.

    Args:
        candidate: Whose list it is.
        name: ``held_out.json`` or ``training.json``.
        run: An image without a night is of this one.

    Returns:
        Its images, at least one.

    Raises:
        InputError: The list is missing, no list of images, or empty.
    """
    listing = Path(candidate.package_dir).parent / name
    try:
        entries = [
            TrainingImage(
                path=Path(entry["path"]),
                sha256=str(entry["sha256"]),
                night=str(entry.get("night", run.partition)),
                part=str(entry.get("part", "")),
                doubtful=bool(entry.get("doubtful", False)),
            )
            for entry in json.loads(listing.read_text("utf-8"))
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"list of normals {listing}: {error!r}") from error
    if not entries:
        raise InputError(f"{listing} names no image")
    return entries


def calibrate(
    models: Mapping[str, Detector],
    candidate: CandidateRef,
    run: RunRef,
    settings: EvaluateSettings,
    *,
    expected: tuple[str, ...],
) -> tuple[Calibration, HeldOutScores]:
    """Score the held-out normals and choose the candidate's threshold by them.

    Args:
        models: ``candidate`` and, where there is one, ``champion``.
        candidate: Whose list it is.
        run: The night.
        settings: How to measure.
        expected: See :class:`HeldOutScores`.

    Returns:
        The candidate's threshold, and the scores.

    Raises:
        InputError: The list, or an image of it, is missing or altered.
    """
    entries = read_listing(candidate, "held_out.json", run)
    for entry in entries:
        if not entry.path.is_file() or file_sha256(entry.path) != entry.sha256:
            raise InputError(f"held-out normal {entry.path} is missing or not the file of sha256 {entry.sha256}")
    paths = [entry.path for entry in entries]
    scores = {
        name: score(model, paths, settings, f"{name} on held-out normals").scores for name, model in models.items()
    }
    sure = scores["candidate"][[not entry.doubtful for entry in entries]]
    calibration = calibrate_threshold(
        scores["candidate"],
        settings.target_false_alarm_rate,
        parts=[entry.part for entry in entries],
        # Doubtful images say how many good ones score high, but some are defects: none of them sets the threshold.
        ceiling=float(sure.max()) if sure.size else None,
        seed=seed_of("calibrate", candidate.candidate_key),
        bootstrap_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
    )
    nights = tuple(entry.night for entry in entries)
    return calibration, HeldOutScores(nights=nights, expected_nights=expected, scores=scores)


def expected_nights(champion: ModelRef | None, run: RunRef) -> tuple[str, ...]:
    """Other nights of which the champion's package lists held-out normals.

    Args:
        champion: The champion; ``None`` where there is none.
        run: The night that does not count.

    Returns:
        The nights, sorted.

    Raises:
        InputError: The package's list cannot be read.
    """
    if champion is None:
        return ()
    path = Path(champion.package_dir) / "replay.json"
    try:
        memory = json.loads(path.read_text(encoding="utf-8"))
        nights = {str(image["night"]) for image in memory["held_out"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the champion's list of normals {path} cannot be read: {error!r}") from error
    return tuple(sorted(nights - {run.partition}))
