"""Two models on the same images: figures, paired differences, strata, decisions. Plain values, fit for JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stlm.constants import GOOD
from stlm.metrics import (
    IMAGE_METRICS,
    PIXEL_METRICS,
    ImageMeasurement,
    Measurement,
    PixelMeasurement,
    difference,
    estimate,
)

__all__ = [
    "MeasuredModel",
    "Resamples",
    "Stratum",
    "compare",
    "complete_rows",
    "decision_flips",
    "score_shift",
    "strata_of",
]

Members = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredModel:
    """One model's results on ``N`` images and, for pixel metrics, on ``M`` images."""

    images: ImageMeasurement
    pixels: PixelMeasurement


@dataclass(frozen=True, kw_only=True, slots=True)
class Resamples:
    """Bootstrap draws shared by everything that is compared."""

    images: npt.NDArray[Any]
    """``(S, N)`` counts."""
    pixels: npt.NDArray[Any]
    """``(S, M)`` counts."""
    confidence: float
    """Of every interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """A part of the images that gets its own figures."""

    name: str
    images: Members | None
    """``(N,)``; ``None`` for a stratum with pixel metrics only."""
    pixels: Members
    """``(M,)``."""


def strata_of(
    defects: Sequence[str], strata: Sequence[str], pixel_classes: Sequence[str], pixel_rows: Sequence[int]
) -> list[Stratum]:
    """Each defect class against all good images, each stratum, each kind of synthetic defect.

    Args:
        defects: ``(N,)`` ``good`` or the defect class of each image.
        strata: ``(N,)`` stratum of each image; one stratum alone is not listed.
        pixel_classes: ``(M,)`` ``good``, a defect class or a synthetic kind of each image of the pixel metrics.
        pixel_rows: ``(M,)`` which of the ``N`` images each of those is or was made from.

    Returns:
        The strata, named ``defect:<class>``, ``stratum:<name>`` and ``synthetic:<kind>``.
    """
    defect, stratum, pixel_class = np.array(defects), np.array(strata), np.array(pixel_classes, dtype=str)
    pixel_stratum = stratum[np.array(pixel_rows, dtype=int)]
    classes = sorted(set(defects) - {GOOD})
    found = [
        Stratum(
            name=f"defect:{name}",
            images=(defect == GOOD) | (defect == name),
            pixels=(pixel_class == GOOD) | (pixel_class == name),
        )
        for name in classes
    ]
    names = sorted(set(strata))
    if len(names) > 1:
        found += [
            Stratum(name=f"stratum:{name}", images=stratum == name, pixels=pixel_stratum == name) for name in names
        ]
    found += [
        Stratum(name=f"synthetic:{kind}", images=None, pixels=(pixel_class == GOOD) | (pixel_class == kind))
        for kind in sorted(set(pixel_classes) - {GOOD} - set(classes))
    ]
    return found


def compare(
    candidate: MeasuredModel, champion: MeasuredModel | None, resamples: Resamples, *, stratum: Stratum | None = None
) -> dict[str, Any]:
    """Figures of both models and their paired differences.

    Args:
        candidate: One model.
        champion: The other, on the same images; ``None`` if there is none.
        resamples: Drawn for all images.
        stratum: Only these images; ``None`` for all.

    Returns:
        ``{"candidate", "champion", "difference"}``, each metric -> ``{"value", "interval", "reason"}``; the latter two
        ``None`` without a champion.
    """
    figures: dict[str, dict[str, Any]] = {"candidate": {}, "champion": {}, "difference": {}}
    for metrics, counts, ours, theirs in _parts(candidate, champion, resamples, stratum):
        for metric in metrics:
            figures["candidate"][metric] = asdict(estimate(ours, metric, counts, confidence=resamples.confidence))
            if theirs is not None:
                figures["champion"][metric] = asdict(estimate(theirs, metric, counts, confidence=resamples.confidence))
                figures["difference"][metric] = asdict(
                    difference(ours, theirs, metric, counts, confidence=resamples.confidence)
                )
    return {name: found or None for name, found in figures.items()}


def _parts(
    candidate: MeasuredModel, champion: MeasuredModel | None, resamples: Resamples, stratum: Stratum | None
) -> Iterator[tuple[tuple[str, ...], npt.NDArray[Any], Measurement, Measurement | None]]:
    if stratum is None:
        yield IMAGE_METRICS, resamples.images, candidate.images, None if champion is None else champion.images
        yield PIXEL_METRICS, resamples.pixels, candidate.pixels, None if champion is None else champion.pixels
        return
    if stratum.images is not None:
        members = stratum.images
        theirs = None if champion is None else champion.images.subset(members)
        ours = candidate.images.subset(members)
        counts = complete_rows(resamples.images[:, members], ours.labels, ~ours.labels)
        yield IMAGE_METRICS, counts, ours, theirs
    members = stratum.pixels
    their_pixels = None if champion is None else champion.pixels.subset(members)
    our_pixels = candidate.pixels.subset(members)
    counts = resamples.pixels[:, members]
    if our_pixels.statistics is not None:
        counts = complete_rows(counts, our_pixels.statistics.num_regions > 0)
    yield PIXEL_METRICS, counts, our_pixels, their_pixels


def complete_rows(counts: npt.NDArray[Any], *needed: Members) -> npt.NDArray[Any]:
    """Resamples that hold something of everything a metric needs; a small class may go missing in some.

    Args:
        counts: ``(S, N)`` draws.
        *needed: ``(N,)`` each: of these images at least one must be drawn. Where there is none at all, that is for the
            metric to say.

    Returns:
        ``(S', N)`` the resamples that do; all of them where none would be left.
    """
    kept = np.ones(len(counts), dtype=bool)
    for members in needed:
        if members.any():
            kept &= counts[:, members].any(axis=1)
    return counts[kept] if kept.any() else counts


def decision_flips(candidate: ImageMeasurement, champion: ImageMeasurement) -> dict[str, Any]:
    """Images that the two models decide differently, each at its own threshold.

    Args:
        candidate: One model's scores.
        champion: The other's, on the same images.

    Returns:
        ``{"num_flips", "to_anomalous": {"good", "defective"}, "to_good": {"good", "defective"}, "rows"}``: how many
        images the candidate newly calls anomalous or good, by what they are, and which they are.
    """
    now, before = candidate.scores > candidate.threshold, champion.scores > champion.threshold
    flipped = now != before
    return {
        "num_flips": int(flipped.sum()),
        **{
            name: {
                "good": int((flipped & (now == called) & ~candidate.labels).sum()),
                "defective": int((flipped & (now == called) & candidate.labels).sum()),
            }
            for name, called in (("to_anomalous", True), ("to_good", False))
        },
        "rows": np.flatnonzero(flipped).tolist(),
    }


def score_shift(candidate: ImageMeasurement, champion: ImageMeasurement) -> dict[str, dict[str, float | None]]:
    """How far scores moved, for good and for defective images.

    Args:
        candidate: One model's scores.
        champion: The other's, on the same images.

    Returns:
        ``{"good", "defective"}``, each ``{"median_candidate", "median_champion", "median_difference"}``; ``None``
        where there is no such image or a score is not finite.
    """
    shifts = {}
    for name, members in (("good", ~candidate.labels), ("defective", candidate.labels)):
        ours = candidate.scores[members].astype(np.float64)
        theirs = champion.scores[members].astype(np.float64)
        shifts[name] = {
            "median_candidate": _median(ours),
            "median_champion": _median(theirs),
            "median_difference": _median(ours - theirs),
        }
    return shifts


def _median(values: npt.NDArray[np.float64]) -> float | None:
    return float(np.median(values)) if values.size and np.isfinite(values).all() else None
