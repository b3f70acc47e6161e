"""Evaluate: candidate, champion and anchor are measured in one run, on the same golden images.

Files in the step's folder (all figures plain JSON numbers; ``null`` with a reason where a metric is undefined)::

    report.json
      version              2
      key, partition       whose night
      candidate_key        what was measured
      champion_version     int or null
      anchor_version       int or null
      golden               {digest, num_good, num_defective, num_lots, classes: {defect class: images}, has_masks}
      pixels               {synthetic: bool, num_images, classes: {name: images with a defect}, num_lost_masks}
                           synthetic: pixel metrics come from synthetic defects drawn on golden normals; SAY SO
      settings             {target_false_alarm_rate, recall, pro_fpr_limit, bootstrap_samples, confidence}
      candidate            {metrics: {METRIC: ESTIMATE}, calibration: {threshold, interval, num_normals, ...},
                           golden_digest: golden set its package was judged on; null for the candidate, or where it
                           does not say}
      champion, anchor     the same, or null
      difference           {METRIC: ESTIMATE} candidate minus champion, paired bootstrap; or null
      anchor_difference    the same, candidate minus anchor; or null
      strata               {NAME: {num_good, num_defective, candidate: {METRIC: ESTIMATE}, champion, difference}}
                           NAME is "defect:<class>" (that class against all good images), "stratum:<name>" (where the
                           golden set has several) or "synthetic:<kind>" (pixel metrics only)
      decisions            {num_flips, to_anomalous: {good, defective}, to_good: {good, defective}, paths} or null
      score_shift          {good, defective: {median_candidate, median_champion, median_difference}} or null
      normals              {num, nights: {night: images}, expected_nights} of the held-out normals
      leakage              {num_golden, num_images, max_bits, num_same, num_near, same, near}: golden images among what
                           was learnt from
      files                {file name: sha256} of the arrays below
    METRIC    image_auroc, false_alarm_rate_at_recall, false_alarm_rate, recall (both at the model's own threshold),
              pixel_auroc, pixel_ap, pro
    ESTIMATE  {value, interval: [low, high], reason}

    scores.npz     N golden images: paths (relative to the golden set), labels (bool), defect, stratum, lot,
                   candidate_scores, champion_scores (float32; absent without a champion), anchor_scores (absent
                   without an anchor, or where it is the champion)
    maps.npz       candidate, champion: (N, 64, 64) float16 anomaly maps, averaged down, in the same order
    pixels.npz     M images of the pixel metrics: paths, classes ("good" or class), stratum, lot, and PixelStatistics
                   arrays as candidate_<name>, champion_<name>, anchor_<name>; empty without masks. For the gate's own
                   bootstrap
    normals.npz    K held-out normals: nights, candidate_scores, champion_scores
    calibration.json   the candidate's operating threshold; travels with the model
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.config import EvaluateSettings, ValidateSettings
from components.core.atomic_files import write_json
from components.core.contracts import CandidateRef, EvaluationRef, ModelRef, RunRef, digest_of
from components.core.errors import InputError
from components.core.npz import write_arrays
from components.core.step_runner import run_once
from components.steps.evaluate.anchor import Anchor
from components.steps.evaluate.held_out import HeldOutScores, calibrate, expected_nights, read_listing, seed_of
from components.steps.evaluate.leakage import find_leakage
from components.steps.evaluate.measuring import (
    ModelResults,
    file_sha256,
    golden_record,
    labels_of,
    load_candidate,
    load_package,
    measure,
    stored_calibration,
)
from stlm.calibration import CALIBRATION_FILE
from stlm.comparison import Resamples, compare, decision_flips, score_shift, strata_of
from stlm.constants import GOOD
from stlm.data.layout import GoldenSet, read_golden_set
from stlm.data.pixel_set import PixelSet, golden_pixels
from stlm.errors import StlmError
from stlm.metrics import ImageMeasurement, resample_counts, units_of

__all__ = [
    "EvaluateInputs",
    "evaluate",
]

logger = logging.getLogger(__name__)

_REPORT_VERSION = 2
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
    anchor: ModelRef | None = None
    """The best version that was ever approved; often the champion."""
    validate: ValidateSettings = field(default_factory=ValidateSettings)
    """Says how near two pictures are the same."""


def evaluate(inputs: EvaluateInputs) -> EvaluationRef:
    """Measure candidate, champion and anchor on the golden set and calibrate the candidate's threshold."""
    return run_once("evaluate", inputs, EvaluationRef, _evaluate)


def _evaluate(inputs: EvaluateInputs, folder: Path) -> EvaluationRef:
    try:
        golden = read_golden_set(Path(inputs.golden))
        measured, held_out, pixel_set = _measure_all(inputs, golden)
        listed = [
            image
            for name in ("training.json", "held_out.json")
            for image in read_listing(inputs.candidate, name, inputs.run)
        ]
        leakage = find_leakage(inputs.run, inputs.golden, listed, inputs.validate)
    except StlmError as error:
        raise InputError(f"evaluate {inputs.run.key.slug} {inputs.run.partition}: {error}") from error
    report = _report(inputs, golden, pixel_set, measured)
    report |= {"normals": held_out.summary(), "leakage": leakage}
    report["files"] = _write_arrays(folder, golden, pixel_set, measured, held_out)
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
        anchor_version=None if inputs.anchor is None else inputs.anchor.version,
        synthetic_pixels=pixel_set.synthetic,
        metrics=_values(report["candidate"]),
        champion_metrics=_values(report["champion"]),
    )


def _measure_all(inputs: EvaluateInputs, golden: GoldenSet) -> tuple[dict[str, ModelResults], HeldOutScores, PixelSet]:
    """All models on the same images; an anchor that is the champion is measured once."""
    settings = inputs.settings
    models = {"candidate": load_candidate(inputs.candidate, settings)}
    if inputs.champion is not None:
        models["champion"] = load_package(Path(inputs.champion.package_dir), settings)
    expected = expected_nights(inputs.champion, inputs.run)
    threshold, held_out = calibrate(models, inputs.candidate, inputs.run, settings, expected=expected)
    own_anchor = inputs.anchor is not None and not _is_champion(inputs)
    anchor = Anchor(inputs.anchor, golden) if inputs.anchor is not None and own_anchor else None
    sizes = [model.image_size for model in models.values()] + ([anchor.image_size] if anchor is not None else [])
    pixel_set = golden_pixels(golden, num_synthetic=settings.num_synthetic, map_sizes=sizes)
    measured = {"candidate": measure("candidate", models["candidate"], threshold, golden, pixel_set, settings)}
    if inputs.champion is not None:
        package = Path(inputs.champion.package_dir)
        measured["champion"] = measure(
            "champion",
            models["champion"],
            stored_calibration(package),
            golden,
            pixel_set,
            settings,
            record=golden_record(package),
        )
    if anchor is not None:
        measured["anchor"] = anchor.measure(inputs.run, pixel_set, settings)
    elif inputs.anchor is not None:
        measured["anchor"] = measured["champion"]
    return measured, held_out, pixel_set


def _is_champion(inputs: EvaluateInputs) -> bool:
    anchor, champion = inputs.anchor, inputs.champion
    return anchor is not None and champion is not None and anchor.version == champion.version


def _report(
    inputs: EvaluateInputs, golden: GoldenSet, pixel_set: PixelSet, measured: Mapping[str, ModelResults]
) -> dict[str, Any]:
    settings = inputs.settings
    labels = labels_of(golden)
    defects, strata = [item.defect for item in golden.items], [item.stratum for item in golden.items]
    classes, rows = [i.image_class for i in pixel_set.images], [i.golden_row for i in pixel_set.images]
    candidate = measured["candidate"].figures
    champion = measured["champion"].figures if "champion" in measured else None
    resamples = _resamples(inputs, golden, pixel_set)
    overall = compare(candidate, champion, resamples)
    metrics = {"candidate": overall["candidate"], "champion": overall["champion"]}
    to_anchor: dict[str, Any] | None = None
    if "anchor" in measured:
        against = compare(candidate, measured["anchor"].figures, resamples)
        metrics["anchor"], to_anchor = against["champion"], against["difference"]
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
        "anchor_version": None if inputs.anchor is None else inputs.anchor.version,
        "golden": {
            "digest": golden.digest,
            "num_good": int((~labels).sum()),
            "num_defective": int(labels.sum()),
            "num_lots": len({item.lot for item in golden.items if item.lot}),
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
            name: {
                "metrics": metrics[name],
                "calibration": asdict(measured[name].calibration),
                "golden_digest": measured[name].golden_digest,
            }
            if name in measured
            else None
            for name in ("candidate", "champion", "anchor")
        },
        "difference": overall["difference"],
        "anchor_difference": to_anchor,
        "strata": by_stratum,
        "decisions": None if champion is None else _decisions(golden, candidate.images, champion.images),
        "score_shift": None if champion is None else score_shift(candidate.images, champion.images),
    }


def _resamples(inputs: EvaluateInputs, golden: GoldenSet, pixel_set: PixelSet) -> Resamples:
    settings = inputs.settings
    seed = seed_of("evaluate", inputs.candidate.candidate_key)
    items, pixels = golden.items, [golden.items[image.golden_row] for image in pixel_set.images]
    images = units_of([i.stratum for i in items], [i.defect for i in items], [i.lot for i in items])
    parts = units_of([i.stratum for i in pixels], [i.image_class for i in pixel_set.images], [i.lot for i in pixels])
    image_counts, pixel_counts = (
        resample_counts(units.groups, num_samples=settings.bootstrap_samples, seed=seed, units=units.numbers)
        for units in (images, parts)
    )
    return Resamples(images=image_counts, pixels=pixel_counts, confidence=settings.confidence)


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
    folder: Path, golden: GoldenSet, pixel_set: PixelSet, measured: Mapping[str, ModelResults], held_out: HeldOutScores
) -> dict[str, str]:
    """Write the ``.npz`` files; returns their sha256 by name."""
    paths = _paths(golden)
    scores: dict[str, npt.NDArray[Any]] = {
        "paths": np.array(paths),
        "labels": labels_of(golden),
        "defect": np.array([item.defect for item in golden.items]),
        "stratum": np.array([item.stratum for item in golden.items]),
        "lot": np.array([item.lot for item in golden.items]),
    }
    pixels: dict[str, npt.NDArray[Any]] = {
        "paths": np.array([paths[image.golden_row] for image in pixel_set.images], dtype=str),
        "classes": np.array([image.image_class for image in pixel_set.images], dtype=str),
        "stratum": np.array([golden.items[image.golden_row].stratum for image in pixel_set.images], dtype=str),
        "lot": np.array([golden.items[image.golden_row].lot for image in pixel_set.images], dtype=str),
    }
    for name, model in measured.items():
        if name == "anchor" and model is measured.get("champion"):
            continue
        scores[f"{name}_scores"] = model.figures.images.scores
        statistics = model.figures.pixels.statistics
        if statistics is not None:
            pixels |= {f"{name}_{array}": values for array, values in statistics.to_arrays().items()}
    write_arrays(folder / "scores.npz", scores)
    write_arrays(folder / "pixels.npz", pixels)
    write_arrays(folder / "normals.npz", held_out.arrays())
    shown = {name: model.maps for name, model in measured.items() if name != "anchor" and model.maps is not None}
    write_arrays(folder / "maps.npz", shown)
    return {name: file_sha256(folder / name) for name in ("scores.npz", "pixels.npz", "normals.npz", "maps.npz")}
