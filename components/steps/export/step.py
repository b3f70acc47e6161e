"""Export: the candidate becomes the package that would be served, and proves that both are the same model.

The package is the candidate's folder plus ``calibration.json`` from the evaluation, ``model.onnx``, the signature, some
golden images with the scores that the evaluation gave them, and the manifest. A
model that cannot be exported, or whose exported file decides differently, is no failure of this step: the figures go
into the outputs and the gate refuses.
"""

import hashlib
import logging
import math
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from components.config import ExportSettings
from components.core.atomic_files import write_json
from components.core.contracts import CandidateRef, EvaluationRef, ModelRef, PackageRef, RunRef
from components.core.errors import InputError
from components.core.npz import read_arrays
from components.core.step_runner import run_once
from stlm.calibration import CALIBRATION_FILE, Calibration
from stlm.data.image_files import read_image
from stlm.data.layout import read_golden_set
from stlm.errors import DataError, ExportError, WeightsError
from stlm.export.latency import latencies_ms
from stlm.export.onnx import ParityReport, export_onnx, parity
from stlm.models.registry import load_model
from stlm.serving.package import GOLDEN_FILE, ONNX_FILE, seal_package
from stlm.serving.probe import ProbeImage, write_probe
from stlm.serving.signature import write_signature

__all__ = [
    "ExportInputs",
    "export",
]

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportInputs:
    """A measured candidate and the images to compare on."""

    run: RunRef
    candidate: CandidateRef
    evaluation: EvaluationRef
    """Its report's folder holds ``calibration.json``; its scores go into the package, to be met again."""
    golden: str
    settings: ExportSettings
    champion: ModelRef | None = None
    """Whose exported file is timed beside the candidate's."""


def export(inputs: ExportInputs) -> PackageRef:
    """Assemble the package, export ONNX and compare it with the model on golden images.

    Args:
        inputs: What to export.

    Returns:
        The package; ``error`` is not empty where there is no exported file.

    Raises:
        InputError: The evaluation is of another candidate or golden set, or a file is missing or altered.
    """
    return run_once("export", inputs, PackageRef, _export)


def _export(inputs: ExportInputs, folder: Path) -> PackageRef:
    _check_binding(inputs)
    images, probe_images = _golden_images(inputs)
    package_dir = folder / "package"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".package-") as temporary:
        staged = Path(temporary) / "package"
        calibration = _assemble(inputs, staged)
        write_signature(staged)
        if probe_images:
            write_probe(staged, probe_images, tolerance=inputs.settings.max_score_difference)
        report, problem = _export_model(staged, images, calibration.threshold)
        times = _times(staged, inputs.champion, images) if not problem else (report.ms_per_image, None)
        digest = seal_package(staged)
        # What an interrupted try left has no outputs.json that speaks of it.
        shutil.rmtree(package_dir, ignore_errors=True)
        staged.rename(package_dir)
    if problem:
        logger.warning("step=export candidate=%s error=%s", inputs.candidate.candidate_key[:12], problem)
    else:
        logger.info(
            "step=export max_score_difference=%.2e num_decision_flips=%d ms_per_image=%.1f",
            report.max_score_difference,
            report.num_decision_flips,
            times[0],
        )
    return PackageRef(
        package_dir=str(package_dir),
        digest=digest,
        candidate_key=inputs.candidate.candidate_key,
        # JSON has no infinity.
        max_score_difference=min(report.max_score_difference, sys.float_info.max),
        num_decision_flips=report.num_decision_flips,
        num_parity_images=report.num_images,
        onnx_ms_per_image=times[0],
        champion_ms_per_image=times[1],
        size_bytes=sum(path.stat().st_size for path in package_dir.rglob("*") if path.is_file()),
        error=problem,
    )


def _check_binding(inputs: ExportInputs) -> None:
    candidate, evaluation = inputs.candidate, inputs.evaluation
    if evaluation.candidate_key != candidate.candidate_key:
        raise InputError(
            f"evaluation {evaluation.report_path} is of candidate {evaluation.candidate_key}, "
            f"expected {candidate.candidate_key}"
        )
    weights = Path(candidate.package_dir) / WEIGHTS_FILE
    try:
        with weights.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"the candidate's weights cannot be read: {error}") from error
    if sha256 != candidate.weights_sha256:
        raise InputError(f"{weights} is altered: sha256 {sha256}, expected {candidate.weights_sha256}")


def _golden_images(inputs: ExportInputs) -> tuple[list[NDArray[np.uint8]], list[ProbeImage]]:
    """Images to compare the exported file on, and those that travel with it."""
    scores, settings = _scores(inputs.evaluation), inputs.settings
    try:
        golden = read_golden_set(Path(inputs.golden))
        if golden.digest != inputs.evaluation.golden_digest:
            raise InputError(
                f"golden set {inputs.golden} has changed since the evaluation: digest {golden.digest}, "
                f"expected {inputs.evaluation.golden_digest}"
            )
        classes = defaultdict(list)
        for item in golden.items:
            classes[item.defect].append(item.path)
        groups = list(classes.values())
        probe = [
            ProbeImage(name=(name := str(path.relative_to(golden.root))), pixels=read_image(path), score=scores[name])
            for path in _spread(groups, settings.probe_images)
        ]
        # A model without finite scores is the gate's to refuse.
        probe = [image for image in probe if math.isfinite(image.score)]
        return [read_image(path) for path in _spread(groups, settings.parity_images)], probe
    except KeyError as error:
        raise InputError(f"evaluation {inputs.evaluation.scores_path} has no score of {error}") from error
    except DataError as error:
        raise InputError(str(error)) from error


def _scores(evaluation: EvaluationRef) -> dict[str, float]:
    """Golden image -> the candidate's score, on which the verdict will rest."""
    try:
        arrays = read_arrays(Path(evaluation.scores_path))
        paths, scores = arrays["paths"].tolist(), arrays["candidate_scores"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"evaluation's scores {evaluation.scores_path!r} cannot be read: {error!r}") from error
    return dict(zip(paths, scores, strict=True))


def _spread(groups: Sequence[Sequence[ItemT]], count: int) -> list[ItemT]:
    """At most ``count`` items: every group as often as the others while it lasts, each evenly over its length."""
    shares = [0] * len(groups)
    while sum(shares) < count and any(share < len(group) for share, group in zip(shares, groups, strict=True)):
        for index, group in enumerate(groups):
            if shares[index] < len(group) and sum(shares) < count:
                shares[index] += 1
    return [
        group[position * len(group) // share]
        for group, share in zip(groups, shares, strict=True)
        for position in range(share)
    ]


def _assemble(inputs: ExportInputs, staged: Path) -> Calibration:
    calibration = Path(inputs.evaluation.report_path).parent / CALIBRATION_FILE
    try:
        shutil.copytree(inputs.candidate.package_dir, staged)
        shutil.copyfile(calibration, staged / CALIBRATION_FILE)
        write_json(staged / GOLDEN_FILE, {"digest": inputs.evaluation.golden_digest})
        return Calibration.from_json(calibration.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the package cannot be assembled: {error}") from error
    except DataError as error:
        raise InputError(f"{calibration}: {error}") from error


def _times(staged: Path, champion: ModelRef | None, images: list[NDArray[np.uint8]]) -> tuple[float, float | None]:
    """Milliseconds an image of the candidate's and the champion's file; the gate asks after a missing one."""
    files = [staged / ONNX_FILE]
    if champion is not None and (Path(champion.package_dir) / ONNX_FILE).is_file():
        files.append(Path(champion.package_dir) / ONNX_FILE)
    try:
        ours, *theirs = latencies_ms(files, images)
    except ExportError as error:
        raise InputError(str(error)) from error
    return ours, theirs[0] if theirs else None


def _export_model(staged: Path, images: list[NDArray[np.uint8]], threshold: float) -> tuple[ParityReport, str]:
    """Parity of the exported file, or why there is none."""
    try:
        model = load_model(staged)
    except WeightsError as error:
        raise InputError(f"candidate {staged.name}: {error}") from error
    try:
        export_onnx(model, staged / ONNX_FILE)
        return parity(model, staged / ONNX_FILE, images, threshold), ""
    except ExportError as error:
        (staged / ONNX_FILE).unlink(missing_ok=True)
        nothing = ParityReport(
            max_score_difference=float("inf"),
            max_map_difference=float("inf"),
            num_decision_flips=0,
            num_images=0,
            ms_per_image=0.0,
        )
        return nothing, str(error)
