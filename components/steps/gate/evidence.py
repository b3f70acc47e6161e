"""Evidence of the gate: what evaluation stored, read back and checked, of this candidate, whole and unaltered."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.core.contracts import digest_of
from components.core.npz import read_arrays
from components.steps.gate.inputs import GateInputs
from stlm.calibration import CALIBRATION_FILE, Calibration
from stlm.comparison import MeasuredModel
from stlm.data.layout import read_golden_set
from stlm.errors import DataError
from stlm.metrics import ImageMeasurement, PixelMeasurement, PixelStatistics, Units, units_of

__all__ = ["Evidence", "EvidenceMismatchError", "GoldenRecords", "HeldOutEvidence", "Leakage", "read_evidence"]


class EvidenceMismatchError(Exception):
    """The evidence is missing, altered or of another candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutEvidence:
    """Normals that neither model has learnt from."""

    nights: npt.NDArray[np.str_]
    """``(K,)``."""
    candidate_scores: npt.NDArray[Any]
    """``(K,)``."""
    champion_scores: npt.NDArray[Any] | None
    expected_nights: tuple[str, ...]
    """Earlier nights of which the champion carries some."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leakage:
    """Golden images among what was learnt from."""

    num_golden: int
    num_images: int
    num_same: int
    num_near: int
    max_bits: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenRecords:
    """Digests of the golden set: as measured on, as it lies there now, and as the other models were judged on."""

    measured: str
    now: str
    champion: str | None = None
    anchor: str | None = None
    problem: str = ""
    """Why it cannot be read now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything but the package."""

    candidate: MeasuredModel
    champion: MeasuredModel | None
    anchor: MeasuredModel | None
    """The champion's own results where it is the anchor."""
    calibration: Calibration
    defects: tuple[str, ...]
    """``(N,)``."""
    strata: tuple[str, ...]
    """``(N,)``."""
    units: Units
    """Of the ``N`` images."""
    pixel_classes: tuple[str, ...]
    """``(M,)``."""
    pixel_units: Units
    """Of the ``M`` images of the pixel metrics."""
    synthetic: bool
    held_out: HeldOutEvidence
    golden: GoldenRecords
    leakage: Leakage
    champion_version: int | None = None
    anchor_version: int | None = None


def read_evidence(inputs: GateInputs) -> Evidence:
    """Read what evaluation stored.

    Args:
        inputs: Which evaluation, and the package it is to be of.

    Returns:
        The evidence.

    Raises:
        UnboundError: It is not whole, not unaltered, or not of this candidate.
    """
    evaluation, package = inputs.evaluation, inputs.package
    if evaluation.candidate_key != package.candidate_key:
        raise EvidenceMismatchError(
            f"The evaluation is of candidate {evaluation.candidate_key}, the package of {package.candidate_key}."
        )
    try:
        report = json.loads(Path(evaluation.report_path).read_text(encoding="utf-8"))
        folder = Path(evaluation.report_path).parent
        stated = {
            "candidate_key": evaluation.candidate_key,
            "champion_version": evaluation.champion_version,
            "anchor_version": evaluation.anchor_version,
        }
        if digest_of(report) != evaluation.digest or any(report[name] != value for name, value in stated.items()):
            raise EvidenceMismatchError(f"{evaluation.report_path} is not the report that evaluation made.")
        for name, sha256 in report["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
                raise EvidenceMismatchError(f"{folder / name} was altered after the evaluation.")
        calibration = Calibration.from_json(json.dumps(report["candidate"]["calibration"]))
        packaged = Path(package.package_dir) / CALIBRATION_FILE
        if Calibration.from_json(packaged.read_text(encoding="utf-8")) != calibration:
            raise EvidenceMismatchError(f"{packaged} is not the threshold that was evaluated.")
        return _evidence(inputs, report, folder, calibration)
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise EvidenceMismatchError(f"The evidence cannot be read: {error!r}") from error


def _evidence(inputs: GateInputs, report: Mapping[str, Any], folder: Path, calibration: Calibration) -> Evidence:
    scores, pixels, normals = (read_arrays(folder / f"{name}.npz") for name in ("scores", "pixels", "normals"))
    champion = None if report["champion"] is None else _model("champion", report, scores, pixels)
    anchor = None
    if report["anchor"] is not None:
        same = champion is not None and report["anchor_version"] == report["champion_version"]
        anchor = champion if same else _model("anchor", report, scores, pixels)
    defects, strata = tuple(scores["defect"].tolist()), tuple(scores["stratum"].tolist())
    pixel_classes = tuple(pixels["classes"].tolist())
    leakage = report["leakage"]
    return Evidence(
        candidate=_model("candidate", report, scores, pixels),
        champion=champion,
        anchor=anchor,
        calibration=calibration,
        defects=defects,
        strata=strata,
        units=units_of(strata, defects, scores["lot"].tolist()),
        pixel_classes=pixel_classes,
        pixel_units=units_of(pixels["stratum"].tolist(), pixel_classes, pixels["lot"].tolist()),
        synthetic=bool(report["pixels"]["synthetic"]),
        held_out=HeldOutEvidence(
            nights=normals["nights"],
            candidate_scores=normals["candidate_scores"],
            champion_scores=None if champion is None else normals["champion_scores"],
            expected_nights=tuple(report["normals"]["expected_nights"]),
        ),
        golden=_golden(inputs, report),
        leakage=Leakage(
            **{name: int(leakage[name]) for name in ("num_golden", "num_images", "num_same", "num_near", "max_bits")},
            examples=(*leakage["same"], *leakage["near"]),
        ),
        champion_version=report["champion_version"],
        anchor_version=report["anchor_version"],
    )


def _golden(inputs: GateInputs, report: Mapping[str, Any]) -> GoldenRecords:
    records = {name: None if report[name] is None else report[name]["golden_digest"] for name in ("champion", "anchor")}
    now = problem = ""
    try:
        now = read_golden_set(Path(inputs.golden)).digest
    except DataError as error:
        problem = str(error)
    return GoldenRecords(
        measured=str(report["golden"]["digest"]),
        now=now,
        champion=records["champion"],
        anchor=records["anchor"],
        problem=problem,
    )


def _model(
    name: str, report: Mapping[str, Any], scores: Mapping[str, npt.NDArray[Any]], pixels: Mapping[str, npt.NDArray[Any]]
) -> MeasuredModel:
    prefix = f"{name}_"
    arrays = {key.removeprefix(prefix): values for key, values in pixels.items() if key.startswith(prefix)}
    reason = report[name]["metrics"]["pro"]["reason"]
    return MeasuredModel(
        images=ImageMeasurement(
            scores=scores[f"{prefix}scores"],
            labels=scores["labels"],
            threshold=float(report[name]["calibration"]["threshold"]),
            recall=float(report["settings"]["recall"]),
        ),
        pixels=PixelMeasurement(statistics=PixelStatistics.from_arrays(arrays) if arrays else None, reason=reason),
    )
