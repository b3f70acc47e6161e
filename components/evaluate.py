"""Measure the candidate and the champion, in one run, on the same golden images.

Files in the step's folder (all figures plain JSON numbers; ``null`` with a reason where a metric is undefined)::

    report.json
      version              1
      key, partition       whose night
      candidate_key        what was measured
      champion_version     int or null
      golden               {digest, num_good, num_defective, classes: {defect class: images}, has_masks}
      pixels               {synthetic: bool, num_images, classes: {name: images with a defect}, num_lost_masks}
                           synthetic: pixel metrics come from synthetic defects drawn on golden normals; SAY SO
      settings             {target_false_alarm_rate, recall, pro_fpr_limit, bootstrap_samples, confidence}
      candidate            {metrics: {METRIC: ESTIMATE}, calibration: {threshold, interval, num_normals, ...}}
      champion             the same, or null
      difference           {METRIC: ESTIMATE} candidate minus champion, paired bootstrap; or null
      strata               {NAME: {num_good, num_defective, candidate: {METRIC: ESTIMATE}, champion, difference}}
                           NAME is "defect:<class>" (that class against all good images), "stratum:<name>" (where the
                           golden set has several) or "synthetic:<kind>" (pixel metrics only)
      decisions            {num_flips, to_anomalous: {good, defective}, to_good: {good, defective}, paths} or null
      score_shift          {good, defective: {median_candidate, median_champion, median_difference}} or null
      files                {file name: sha256} of the arrays below
    METRIC    image_auroc, false_alarm_rate_at_recall, false_alarm_rate, recall (both at the model's own threshold),
              pixel_auroc, pixel_ap, pro
    ESTIMATE  {value, interval: [low, high], reason}

    scores.npz     N golden images: paths (relative to the golden set), labels (bool), defect, stratum,
                   candidate_scores, champion_scores (float32; absent without a champion)
    maps.npz       candidate, champion: (N, 64, 64) float16 anomaly maps, averaged down, in the same order
    pixels.npz     M images of the pixel metrics: paths, classes ("good" or class), and PixelStatistics arrays as
                   candidate_<name>, champion_<name>; empty without masks. For the gate's own bootstrap
    calibration.json   the candidate's operating threshold; travels with the model
"""

import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from components._cli import main_for, once, write_json
from components.config import EvaluateSettings
from components.contracts import CandidateRef, EvaluationRef, ModelRef, RunRef, digest_of
from components.errors import InputError
from stlm.calibration import CALIBRATION_FILE, Calibration, calibrate_threshold
from stlm.comparison import MeasuredModel, Resamples, compare, decision_flips, score_shift, strata_of
from stlm.constants import GOOD
from stlm.data.layout import GoldenSet, read_golden_set
from stlm.data.pixel_set import PixelSet, golden_pixels, masks_at
from stlm.errors import MetricUndefinedError, StlmError
from stlm.evaluation import Detector, ImageSource, ScoredImages, score_images, shrink_maps
from stlm.metrics import ImageMeasurement, PixelMeasurement, pixel_statistics, resample_counts
from stlm.models.registry import load_model

__all__ = ["EvaluateInputs", "evaluate", "main"]

logger = logging.getLogger(__name__)

_REPORT_VERSION = 1
_MAP_SIDE_PX = 64
_MAX_PATHS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateInputs:
    """What is measured, and against whom."""

    run: RunRef
    candidate: CandidateRef
    champion: ModelRef | None
    golden: str
    """The golden set, in MVTec layout."""
    settings: EvaluateSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """One model's results."""

    figures: MeasuredModel
    maps: npt.NDArray[np.float16]
    calibration: Calibration


def evaluate(inputs: EvaluateInputs) -> EvaluationRef:
    """Measure candidate and champion on the golden set and calibrate the candidate's threshold."""
    return once("evaluate", inputs, EvaluationRef, _evaluate)


def _evaluate(inputs: EvaluateInputs, folder: Path) -> EvaluationRef:
    settings = inputs.settings
    try:
        golden = read_golden_set(Path(inputs.golden))
        candidate = _load_candidate(inputs)
        models, calibrations = {"candidate": candidate}, {"candidate": _calibrate(candidate, inputs)}
        if inputs.champion is not None:
            package = Path(inputs.champion.package_dir)
            models["champion"] = _load(package, _device(settings))
            calibrations["champion"] = _stored_calibration(package)
        sizes = [model.image_size for model in models.values()]
        pixel_set = golden_pixels(golden, num_synthetic=settings.num_synthetic, map_sizes=sizes)
        measured = {
            name: _measure(name, model, calibrations[name], golden, pixel_set, settings)
            for name, model in models.items()
        }
    except StlmError as error:
        raise InputError(f"evaluate {inputs.run.key.slug} {inputs.run.partition}: {error}") from error
    report = _report(inputs, golden, pixel_set, measured)
    report["files"] = _write_arrays(folder, golden, pixel_set, measured)
    write_json(folder / CALIBRATION_FILE, asdict(measured["candidate"].calibration))
    write_json(folder / "report.json", report)
    logger.info("step=evaluate images=%d metrics=%s", len(golden.items), _values(report["candidate"]))
    return EvaluationRef(
        report_path=str(folder / "report.json"),
        scores_path=str(folder / "scores.npz"),
        digest=digest_of(report),
        golden_digest=golden.digest,
        candidate_key=inputs.candidate.candidate_key,
        champion_version=None if inputs.champion is None else inputs.champion.version,
        synthetic_pixels=pixel_set.synthetic,
        metrics=_values(report["candidate"]),
        champion_metrics=_values(report["champion"]),
    )


def _device(settings: EvaluateSettings) -> str:
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device


def _load(package: Path, device: str) -> Detector:
    if not package.is_dir():
        raise InputError(f"model package {package} does not exist")
    detector: Detector = load_model(package, device=device)
    return detector


def _load_candidate(inputs: EvaluateInputs) -> Detector:
    package = Path(inputs.candidate.package_dir)
    weights = package / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"{weights} does not exist")
    found = _sha256(weights)
    if found != inputs.candidate.weights_sha256:
        raise InputError(f"{weights} has sha256 {found}, the candidate's is {inputs.candidate.weights_sha256}")
    return _load(package, _device(inputs.settings))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _calibrate(model: Detector, inputs: EvaluateInputs) -> Calibration:
    """Threshold from the normals that fine-tuning kept from the model."""
    listing = Path(inputs.candidate.package_dir).parent / "held_out.json"
    try:
        entries = [(Path(entry["path"]), str(entry["sha256"])) for entry in json.loads(listing.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"list of held-out normals {listing}: {error!r}") from error
    if not entries:
        raise InputError(f"{listing} names no image; the threshold needs held-out normals")
    for path, sha256 in entries:
        if not path.is_file() or _sha256(path) != sha256:
            raise InputError(f"held-out normal {path} is missing or not the file of sha256 {sha256}")
    settings = inputs.settings
    scored = _score(model, [path for path, _ in entries], settings, "held-out normals")
    return calibrate_threshold(
        scored.scores,
        settings.target_false_alarm_rate,
        seed=_seed("calibrate", inputs.candidate.candidate_key),
        bootstrap_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
    )


def _stored_calibration(package: Path) -> Calibration:
    path = package / CALIBRATION_FILE
    try:
        return Calibration.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the champion's threshold {path} cannot be read: {error}") from error


def _score(
    model: Detector, images: Sequence[ImageSource], settings: EvaluateSettings, description: str
) -> ScoredImages:
    return score_images(
        model, images, batch_size=settings.batch_size, device=_device(settings), description=description
    )


def _measure(
    name: str,
    model: Detector,
    calibration: Calibration,
    golden: GoldenSet,
    pixel_set: PixelSet,
    settings: EvaluateSettings,
) -> _Measured:
    scored = _score(model, [item.path for item in golden.items], settings, f"{name} on golden images")
    altered = [image.altered for image in pixel_set.images if image.altered is not None]
    probes = iter(_score(model, altered, settings, f"{name} on synthetic defects").maps if altered else ())
    maps = [scored.maps[i.golden_row] if i.altered is None else next(probes) for i in pixel_set.images]
    try:
        if not maps:
            raise MetricUndefinedError("the golden set has no image for pixel metrics")
        masks = masks_at(pixel_set, model.image_size)
        statistics = pixel_statistics(np.stack(maps), masks, fpr_limit=settings.pro_fpr_limit)
        pixels = PixelMeasurement(statistics=statistics)
    except MetricUndefinedError as error:
        pixels = PixelMeasurement(statistics=None, reason=str(error))
    images = ImageMeasurement(
        scores=scored.scores, labels=_labels(golden), threshold=calibration.threshold, recall=settings.recall
    )
    return _Measured(
        figures=MeasuredModel(images=images, pixels=pixels),
        maps=shrink_maps(scored.maps, _MAP_SIDE_PX),
        calibration=calibration,
    )


def _labels(golden: GoldenSet) -> npt.NDArray[np.bool_]:
    return np.array([item.defect != GOOD for item in golden.items], dtype=bool)


def _seed(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:8], "big")


def _report(
    inputs: EvaluateInputs, golden: GoldenSet, pixel_set: PixelSet, measured: Mapping[str, _Measured]
) -> dict[str, Any]:
    settings = inputs.settings
    labels = _labels(golden)
    defects, strata = [item.defect for item in golden.items], [item.stratum for item in golden.items]
    classes, rows = [i.image_class for i in pixel_set.images], [i.golden_row for i in pixel_set.images]
    candidate = measured["candidate"].figures
    champion = measured["champion"].figures if "champion" in measured else None
    resamples = _resamples(
        inputs, list(zip(strata, defects, strict=True)), [(strata[r], c) for r, c in zip(rows, classes, strict=True)]
    )
    overall = compare(candidate, champion, resamples)
    by_stratum = {
        stratum.name: {
            "num_good": 0 if stratum.images is None else int((stratum.images & ~labels).sum()),
            "num_defective": 0 if stratum.images is None else int((stratum.images & labels).sum()),
            **compare(candidate, champion, resamples, stratum=stratum),
        }
        for stratum in strata_of(defects, strata, classes, rows)
    }
    return {
        "version": _REPORT_VERSION,
        "key": inputs.run.key.slug,
        "partition": inputs.run.partition,
        "candidate_key": inputs.candidate.candidate_key,
        "champion_version": None if inputs.champion is None else inputs.champion.version,
        "golden": {
            "digest": golden.digest,
            "num_good": int((~labels).sum()),
            "num_defective": int(labels.sum()),
            "classes": _class_sizes(defects),
            "has_masks": golden.has_masks,
        },
        "pixels": {
            "synthetic": pixel_set.synthetic,
            "num_images": len(classes),
            "classes": _class_sizes(classes),
            "num_lost_masks": pixel_set.num_lost_masks,
        },
        "settings": asdict(settings),
        **{
            name: {"metrics": overall[name], "calibration": asdict(measured[name].calibration)}
            if name in measured
            else None
            for name in ("candidate", "champion")
        },
        "difference": overall["difference"],
        "strata": by_stratum,
        "decisions": None if champion is None else _decisions(golden, candidate.images, champion.images),
        "score_shift": None if champion is None else score_shift(candidate.images, champion.images),
    }


def _resamples(
    inputs: EvaluateInputs, images: Sequence[tuple[str, str]], pixels: Sequence[tuple[str, str]]
) -> Resamples:
    settings = inputs.settings
    seed = _seed("evaluate", inputs.candidate.candidate_key)
    return Resamples(
        images=resample_counts(["/".join(i) for i in images], num_samples=settings.bootstrap_samples, seed=seed),
        pixels=resample_counts(["/".join(i) for i in pixels], num_samples=settings.bootstrap_samples, seed=seed),
        confidence=settings.confidence,
    )


def _class_sizes(classes: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(name for name in classes if name != GOOD).items()))


def _decisions(golden: GoldenSet, candidate: ImageMeasurement, champion: ImageMeasurement) -> dict[str, Any]:
    flips = decision_flips(candidate, champion)
    paths = _paths(golden)
    return {**flips, "rows": flips["rows"][:_MAX_PATHS], "paths": [paths[row] for row in flips["rows"][:_MAX_PATHS]]}


def _paths(golden: GoldenSet) -> list[str]:
    return [str(item.path.relative_to(golden.root)) for item in golden.items]


def _values(model: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {} if model is None else {name: found["value"] for name, found in model["metrics"].items()}


def _write_arrays(
    folder: Path, golden: GoldenSet, pixel_set: PixelSet, measured: Mapping[str, _Measured]
) -> dict[str, str]:
    """Write the ``.npz`` files; returns their sha256 by name."""
    paths = _paths(golden)
    scores: dict[str, npt.NDArray[Any]] = {
        "paths": np.array(paths),
        "labels": _labels(golden),
        "defect": np.array([item.defect for item in golden.items]),
        "stratum": np.array([item.stratum for item in golden.items]),
    }
    pixels: dict[str, npt.NDArray[Any]] = {
        "paths": np.array([paths[image.golden_row] for image in pixel_set.images], dtype=str),
        "classes": np.array([image.image_class for image in pixel_set.images], dtype=str),
        "stratum": np.array([golden.items[image.golden_row].stratum for image in pixel_set.images], dtype=str),
    }
    for name, model in measured.items():
        scores[f"{name}_scores"] = model.figures.images.scores
        statistics = model.figures.pixels.statistics
        if statistics is not None:
            pixels |= {f"{name}_{array}": values for array, values in statistics.to_arrays().items()}
    _save(folder / "scores.npz", scores)
    _save(folder / "pixels.npz", pixels)
    _save(folder / "maps.npz", {name: model.maps for name, model in measured.items()})
    return {name: _sha256(folder / name) for name in ("scores.npz", "pixels.npz", "maps.npz")}


def _save(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main(argv: list[str] | None = None) -> int:
    """Command line of this step."""
    return main_for("evaluate", EvaluateInputs, evaluate, argv)


if __name__ == "__main__":
    raise SystemExit(main())
