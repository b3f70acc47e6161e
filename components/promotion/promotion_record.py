"""Promotion record: what shall be known for good of a version that became champion."""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from components.core.contracts import (
    CandidateRef,
    DatasetRef,
    EvaluationRef,
    GateDecision,
    PackageRef,
    RunRef,
    ValidationRef,
    digest_of,
)
from components.core.errors import InputError
from components.promotion.sbom import SBOM_FILE
from stlm.calibration import Calibration

__all__ = ["promotion_record"]

_FROM_LINEAGE = ("recipe", "config_digest", "code_digest", "seed", "parent_candidate_key", "batch_digest", "complete")


def promotion_record(
    run: RunRef,
    *,
    dataset: DatasetRef,
    validation: ValidationRef,
    candidate: CandidateRef,
    evaluation: EvaluationRef,
    package: PackageRef,
    decision: GateDecision,
    calibration: Calibration,
    sbom: bytes,
) -> dict[str, Any]:
    """Everything that led to a verdict, as JSON; who let the version in is added when that happens.

    Args:
        run: The night.
        dataset: What was learnt from.
        validation: What of it was accepted.
        candidate: What came of it.
        evaluation: How it did.
        package: What is served; its ``lineage.json`` tells of recipe, code, configuration and seed.
        decision: The verdict.
        calibration: The operating threshold.
        sbom: The bill of materials of this environment.

    Returns:
        The record.

    Raises:
        InputError: The package's lineage or the evaluation's report cannot be read, or is another one.
    """
    lineage = _read(Path(package.package_dir) / "lineage.json")
    return {
        "partition": run.partition,
        "candidate_key": package.candidate_key,
        "package_digest": package.digest,
        "weights_sha256": candidate.weights_sha256,
        "data": {"revision": dataset.revision, "tag": dataset.tag, "dvc_md5": dataset.dvc_md5},
        "validation_digest": validation.digest,
        "images": {
            "accepted": validation.num_accepted,
            "quarantined": validation.num_quarantined,
            "rejected": validation.num_rejected,
        },
        "parent_version": candidate.parent_version,
        "lineage": {name: lineage.get(name) for name in _FROM_LINEAGE},
        "library_version": importlib.metadata.version("stlm"),
        "golden_digest": evaluation.golden_digest,
        "evaluation_digest": evaluation.digest,
        "metrics": _metrics(evaluation),
        "synthetic_pixels": evaluation.synthetic_pixels,
        "threshold": {
            "value": calibration.threshold,
            "interval": list(calibration.interval),
            "target_false_alarm_rate": calibration.target_false_alarm_rate,
            "num_normals": calibration.num_normals,
        },
        "verdict": {
            "verdict": decision.verdict.value,
            "judged_against": decision.champion_version,
            "bootstrap": decision.bootstrap,
            "becomes_anchor": decision.becomes_anchor,
            "reasons": [reason.to_json() for reason in decision.reasons],
        },
        "sbom": {
            "file": SBOM_FILE,
            "format": "CycloneDX 1.6",
            "sha256": hashlib.sha256(sbom).hexdigest(),
            "num_components": len(json.loads(sbom)["components"]),
        },
        "seconds": {"training": candidate.training_seconds, "onnx_ms_per_image": package.onnx_ms_per_image},
    }


def _metrics(evaluation: EvaluationRef) -> dict[str, Any]:
    """Metric -> value and interval; from the report, or, where none was kept, values alone."""
    if not evaluation.report_path:
        return {name: {"value": value, "interval": None} for name, value in evaluation.metrics.items()}
    path = Path(evaluation.report_path)
    report = _read(path)
    if digest_of(report) != evaluation.digest:
        raise InputError(f"evaluation report {path} has digest {digest_of(report)}, judged was {evaluation.digest}")
    try:
        metrics = report["candidate"]["metrics"]
        return {
            name: {"value": metric["value"], "interval": metric.get("interval")} for name, metric in metrics.items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"evaluation report {path} has no candidate metrics: {error!r}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, got {value!r}")
    return value
