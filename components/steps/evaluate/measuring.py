"""Measuring of candidate and champion: loaded from their packages, on the golden set."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from components.config import EvaluateSettings
from components.core.contracts import CandidateRef
from components.core.errors import InputError
from stlm.calibration import CALIBRATION_FILE, Calibration
from stlm.comparison import MeasuredModel
from stlm.constants import GOOD
from stlm.data.layout import GoldenSet
from stlm.data.pixel_set import PixelSet, masks_at
from stlm.errors import MetricUndefinedError
from stlm.evaluation import Detector, ImageSource, ScoredImages, score_images, shrink_maps
from stlm.metrics import ImageMeasurement, PixelMeasurement, pixel_statistics
from stlm.models.registry import load_model
from stlm.serving.package import GOLDEN_FILE

__all__ = [
    "ModelResults",
    "file_sha256",
    "golden_record",
    "labels_of",
    "load_candidate",
    "load_package",
    "measure",
    "pixel_measurement",
    "score",
    "stored_calibration",
]

_MAP_SIDE_PX = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelResults:
    """One model's results."""

    figures: MeasuredModel
    calibration: Calibration
    golden_digest: str | None
    """Golden set that its package says it was judged on; ``None`` where it does not say, or is being judged now."""
    maps: npt.NDArray[np.float16] | None = None
    """``(N, 64, 64)``, for pictures; not of the anchor."""


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def labels_of(golden: GoldenSet) -> npt.NDArray[np.bool_]:
    """``(N,)`` true for defective images."""
    return np.array([item.defect != GOOD for item in golden.items], dtype=bool)


def _device(settings: EvaluateSettings) -> str:
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device


def load_package(package: Path, settings: EvaluateSettings) -> Detector:
    """The model of a package; raises ``InputError`` where there is none."""
    if not package.is_dir():
        raise InputError(f"model package {package} does not exist")
    detector: Detector = load_model(package, device=_device(settings))
    return detector


def load_candidate(candidate: CandidateRef, settings: EvaluateSettings) -> Detector:
    """The candidate; raises ``InputError`` where its weights are missing or others than it says."""
    weights = Path(candidate.package_dir) / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"{weights} does not exist")
    found = file_sha256(weights)
    if found != candidate.weights_sha256:
        raise InputError(f"{weights} has sha256 {found}, the candidate's is {candidate.weights_sha256}")
    return load_package(Path(candidate.package_dir), settings)


def stored_calibration(package: Path) -> Calibration:
    """The threshold in a package; raises ``InputError`` where it cannot be read."""
    path = package / CALIBRATION_FILE
    try:
        return Calibration.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the threshold {path} cannot be read: {error}") from error


def golden_record(package: Path) -> str | None:
    """Digest of the golden set that a package was judged on, or ``None`` where it does not say."""
    try:
        return str(json.loads((package / GOLDEN_FILE).read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def score(model: Detector, images: Sequence[ImageSource], settings: EvaluateSettings, description: str) -> ScoredImages:
    """Score images as the settings say."""
    return score_images(
        model, images, batch_size=settings.batch_size, device=_device(settings), description=description
    )


def measure(
    name: str,
    model: Detector,
    calibration: Calibration,
    golden: GoldenSet,
    pixel_set: PixelSet,
    settings: EvaluateSettings,
    *,
    record: str | None = None,
) -> ModelResults:
    """Score the golden set with one model.

    Args:
        name: On the progress bar.
        model: The model.
        calibration: Its threshold.
        golden: The golden set.
        pixel_set: Images of the pixel metrics.
        settings: How to measure.
        record: Golden set that its package says it was judged on.

    Returns:
        Its results.
    """
    scored = score(model, [item.path for item in golden.items], settings, f"{name} on golden images")
    altered = [image.altered for image in pixel_set.images if image.altered is not None]
    probes = iter(score(model, altered, settings, f"{name} on synthetic defects").maps if altered else ())
    maps = [scored.maps[i.golden_row] if i.altered is None else next(probes) for i in pixel_set.images]
    images = ImageMeasurement(
        scores=scored.scores, labels=labels_of(golden), threshold=calibration.threshold, recall=settings.recall
    )
    return ModelResults(
        figures=MeasuredModel(images=images, pixels=pixel_measurement(maps, pixel_set, settings)),
        calibration=calibration,
        golden_digest=record,
        maps=shrink_maps(scored.maps, _MAP_SIDE_PX),
    )


def pixel_measurement(
    maps: Sequence[npt.NDArray[np.float32]], pixel_set: PixelSet, settings: EvaluateSettings
) -> PixelMeasurement:
    """Pixel metrics of ``(H, W)`` maps in the order of the pixel set, or why there are none."""
    try:
        if not maps:
            raise MetricUndefinedError("the golden set has no image for pixel metrics")
        height, width = maps[0].shape
        masks = masks_at(pixel_set, (height, width))
        return PixelMeasurement(statistics=pixel_statistics(np.stack(maps), masks, fpr_limit=settings.pro_fpr_limit))
    except MetricUndefinedError as error:
        return PixelMeasurement(statistics=None, reason=str(error))
