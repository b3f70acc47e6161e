"""What evaluation leaves for the gate, from made-up scores: in memory for simulations, on disk for the step."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import ndtri

from components.config import GateSettings
from components.core.atomic_files import write_json
from components.core.contracts import EvaluationRef, GateDecision, ModelKey, PackageRef, RunRef, digest_of
from components.steps.gate.evidence import Evidence, GoldenRecords, HeldOutEvidence, Leakage
from components.steps.gate.inputs import GateInputs
from components.steps.gate.step import gate
from stlm.calibration import Calibration, calibrate_threshold
from stlm.comparison import MeasuredModel
from stlm.data.layout import read_golden_set
from stlm.metrics import ImageMeasurement, PixelMeasurement, pixel_statistics, units_of

KEY = "c" * 64
NIGHT, OTHER_NIGHT = "2026-11-02", "2026-11-01"
IMAGE_ONLY = GateSettings(
    floors={"image_auroc": 0.7},
    margins={"image_auroc": 0.02},
    anchor_margins={"image_auroc": 0.02},
    bootstrap_samples=500,
)
"""Judges image scores; margins wide enough for a verdict on a few hundred images."""

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """Binormal scores: what all models find hard, and each model's own noise beside it."""

    labels: NDArray[np.bool_]
    common: Scores
    rho: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, num_good: int, num_bad: int, rho: float = 0.85) -> "Golden":
        labels = np.r_[np.zeros(num_good, dtype=bool), np.ones(num_bad, dtype=bool)]
        return cls(labels=labels, common=rng.normal(size=labels.size), rho=rho)

    def scores(self, auroc: float, own_noise: Scores) -> Scores:
        """Scores of a model of this true AUROC; those of two models correlate by ``rho`` within a class."""
        shift = np.sqrt(2) * ndtri(min(auroc, 1 - 1e-6))
        scores: Scores = np.sqrt(self.rho) * self.common + np.sqrt(1 - self.rho) * own_noise + shift * self.labels
        return scores


def binormal_pair(
    seed: int, *, num_good: int = 188, num_bad: int = 300, auroc: float = 0.97, worse: float = 0.0, rho: float = 0.85
) -> tuple[NDArray[np.bool_], Scores, Scores]:
    """Labels, and scores of champion and candidate; the candidate's true AUROC is lower by ``worse``."""
    rng = np.random.default_rng(seed)
    golden = Golden.draw(rng, num_good=num_good, num_bad=num_bad, rho=rho)
    noise = rng.normal(size=(2, golden.labels.size))
    return golden.labels, golden.scores(auroc, noise[0]), golden.scores(auroc - worse, noise[1])


def evidence_of(
    labels: NDArray[np.bool_], *, candidate: Scores, champion: Scores | None, anchor: Scores | None = None
) -> Evidence:
    """Evidence in memory; held-out normals are like the good images, half of them of another night."""

    def model(scores: Scores) -> MeasuredModel:
        threshold = float(np.quantile(scores[~labels], 0.95))
        images = ImageMeasurement(scores=scores, labels=labels, threshold=threshold, recall=0.9)
        return MeasuredModel(images=images, pixels=PixelMeasurement(statistics=None, reason="no masks"))

    ours = model(candidate)
    theirs = None if champion is None else model(champion)
    good = np.flatnonzero(~labels)
    defects = ["bad" if label else "good" for label in labels]
    strata = ["all"] * len(labels)
    return Evidence(
        candidate=ours,
        champion=theirs,
        anchor=theirs if anchor is champion else (None if anchor is None else model(anchor)),
        calibration=Calibration(
            threshold=ours.images.threshold,
            target_false_alarm_rate=0.05,
            promised_false_alarm_rate=0.05,
            num_normals=len(good),
            interval=(0.0, 0.0),
            confidence=0.95,
        ),
        defects=tuple(defects),
        strata=tuple(strata),
        units=units_of(strata, defects),
        pixel_classes=(),
        pixel_units=units_of([], []),
        synthetic=True,
        held_out=HeldOutEvidence(
            nights=np.array([NIGHT if i % 2 else OTHER_NIGHT for i in range(len(good))]),
            candidate_scores=candidate[good],
            champion_scores=None if champion is None else champion[good],
            expected_nights=(OTHER_NIGHT,),
        ),
        golden=GoldenRecords(measured="g", now="g", champion="g", anchor="g"),
        leakage=Leakage(num_golden=len(labels), num_images=100, num_same=0, num_near=0, max_bits=14),
    )


class EvidenceFiles:
    """Writes what evaluation and export write."""

    def __init__(
        self,
        folder: Path,
        *,
        labels: NDArray[np.bool_],
        candidate: Scores,
        champion: Scores | None = None,
        anchor: Scores | None = None,
        defects: Sequence[str] | None = None,
        lots: Sequence[str] | None = None,
        pixels: tuple[NDArray[np.bool_], Mapping[str, NDArray[np.float32]]] | None = None,
        candidate_key: str = KEY,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.golden = _golden(folder / "golden")
        self.golden_digest = read_golden_set(self.golden).digest
        defects = list(defects or ["bad" if label else "good" for label in labels])
        self.models = {"candidate": candidate, "champion": champion, "anchor": anchor}
        thresholds = {
            name: calibrate_threshold(scores[~labels], 0.05, bootstrap_samples=10)
            for name, scores in self.models.items()
            if scores is not None
        }
        self.scores: dict[str, NDArray[Any]] = {
            "paths": np.array([f"{i}.png" for i in range(len(labels))]),
            "labels": labels,
            "defect": np.array(defects),
            "stratum": np.array(["all"] * len(labels)),
            "lot": np.array(lots or [""] * len(labels)),
        }
        good = np.flatnonzero(~labels)
        self.normals: dict[str, NDArray[Any]] = {
            "nights": np.array([NIGHT if i % 2 else OTHER_NIGHT for i in range(len(good))])
        }
        for name, values in self.models.items():
            if values is not None:
                self.scores[f"{name}_scores"] = values.astype(np.float32)
                self.normals[f"{name}_scores"] = values[good].astype(np.float32)
        self.pixels: dict[str, NDArray[Any]] = {n: np.array([], dtype=str) for n in ("classes", "stratum", "lot")}
        if pixels is not None:
            masks, maps = pixels
            self.pixels["classes"] = np.array(["scratch" if mask.any() else "good" for mask in masks])
            self.pixels["stratum"] = np.array(["all"] * len(masks))
            self.pixels["lot"] = np.array([""] * len(masks))
            for name, stack in maps.items():
                self.pixels |= {f"{name}_{k}": v for k, v in pixel_statistics(stack, masks).to_arrays().items()}
        reason = "" if pixels is not None else "no masks"
        versions = {"champion": None if champion is None else 4, "anchor": None if anchor is None else 2}
        self.report: dict[str, Any] = {
            "candidate_key": candidate_key,
            "champion_version": versions["champion"],
            "anchor_version": versions["anchor"],
            **{
                name: {
                    "metrics": {"pro": {"value": None, "interval": None, "reason": reason}},
                    "calibration": json.loads(thresholds[name].to_json()),
                    "golden_digest": None if name == "candidate" else self.golden_digest,
                }
                if name in thresholds
                else None
                for name in self.models
            },
            "settings": {"recall": 0.9},
            "golden": {"digest": self.golden_digest},
            "pixels": {"synthetic": True},
            "normals": {"expected_nights": [OTHER_NIGHT] if champion is not None else []},
            "leakage": {"num_golden": len(labels), "num_images": 100, "max_bits": 14}
            | {"num_same": 0, "num_near": 0, "same": [], "near": []},
        }
        self.evaluation = EvaluationRef(
            report_path=str(folder / "report.json"),
            scores_path=str(folder / "scores.npz"),
            digest="",
            golden_digest=self.golden_digest,
            candidate_key=candidate_key,
            champion_version=versions["champion"],
            anchor_version=versions["anchor"],
            synthetic_pixels=True,
            metrics={},
            champion_metrics={},
        )
        self.package = PackageRef(
            package_dir=str(folder / "package"),
            digest="p",
            candidate_key=candidate_key,
            max_score_difference=1e-6,
            num_decision_flips=0,
            num_parity_images=32,
            onnx_ms_per_image=11.0,
            champion_ms_per_image=None if champion is None else 10.0,
            size_bytes=1_000_000,
        )
        (folder / "package").mkdir(exist_ok=True)
        (folder / "package" / "calibration.json").write_text(thresholds["candidate"].to_json())
        self.seal()

    def seal(self) -> None:
        """Write the files; once more after a change to what they hold."""
        for name, arrays in (("scores", self.scores), ("pixels", self.pixels), ("normals", self.normals)):
            np.savez(self.folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        names = ("scores.npz", "pixels.npz", "normals.npz")
        self.report["files"] = {n: hashlib.sha256((self.folder / n).read_bytes()).hexdigest() for n in names}
        write_json(self.folder / "report.json", self.report)
        self.evaluation = replace(self.evaluation, digest=digest_of(self.report))

    def inputs(self, settings: GateSettings = IMAGE_ONLY, **changes: Any) -> GateInputs:
        run = RunRef(
            key=ModelKey(product="p", line="l", camera="c"), partition=NIGHT, work_dir=str(self.folder / "work")
        )
        inputs = GateInputs(
            run=run, evaluation=self.evaluation, package=self.package, golden=str(self.golden), settings=settings
        )
        return replace(inputs, **changes)

    def judge(self, settings: GateSettings = IMAGE_ONLY, **changes: Any) -> GateDecision:
        return gate(self.inputs(settings, **changes))


def _golden(root: Path) -> Path:
    for name, level in (("good", 90), ("bad", 200)):
        (root / "test" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(root / "test" / name / "0.png")
    return root
