"""A finished night on disk, as the report finds it: real files, made-up figures."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from components.config import MlflowSettings, ReportSettings
from components.core.contracts import (
    CandidateRef,
    DatasetRef,
    EvaluationRef,
    GateDecision,
    ModelKey,
    ModelRef,
    PackageRef,
    PromotionRef,
    Reason,
    RunRef,
    ValidationRef,
    Verdict,
)
from components.steps.report.inputs import ReportInputs

__all__ = ["finished_night", "some_images"]

_METRICS = ("image_auroc", "false_alarm_rate_at_recall", "false_alarm_rate", "recall", "pixel_auroc", "pixel_ap", "pro")


def some_images(num: int, *, seed: int = 0, side_px: int = 48) -> list[NDArray[np.uint8]]:
    """``num`` grey textures, ``(side_px, side_px)`` uint8."""
    rng = np.random.default_rng(seed)
    return [rng.integers(60, 180, (side_px, side_px)).astype(np.uint8) for _ in range(num)]


def _write_json(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def _collected(run: RunRef, images: Sequence[NDArray[np.uint8]], names: Sequence[str]) -> dict[str, Any]:
    folder = run.run_dir / "collect"
    lots = []
    for lot, late, members in (("lot-a", False, names[: len(names) // 2]), ("lot-b", True, names[len(names) // 2 :])):
        (folder / "images" / lot).mkdir(parents=True, exist_ok=True)
        for name in members:
            Image.fromarray(images[names.index(name)]).save(folder / "images" / lot / name, format="PNG")
        records = [{"name": name, "bytes": 1, "sha256": "0" * 64} for name in members]
        lots.append({"lot": lot, "date": run.partition, "late": late, "images": records})
    (folder / "images" / "lot-b" / names[-1]).write_bytes(b"no image at all")
    manifest = _write_json(folder / "manifest.json", {"key": run.key.slug, "partition": run.partition, "lots": lots})
    return {
        "status": "NEW_IMAGES",
        "batch": {
            "manifest_path": manifest,
            "image_dir": str(folder / "images"),
            "digest": "b" * 64,
            "num_lots": 2,
            "num_images": len(names),
        },
        "waiting": ["lot lot-c has no manifest.json yet; its 12 files are left for later"],
    }


def _validated(run: RunRef, names: Sequence[str], quarantined: dict[str, str], champion: ModelRef) -> ValidationRef:
    rows = [
        {
            "lot": "lot-a" if index < len(names) // 2 else "lot-b",
            "name": name,
            "accepted": name not in quarantined,
            "rejected": False,
            "double_of": "2026-11-02/lot-x/img_004.png" if "duplicate" in quarantined.get(name, "") else None,
            "reasons": quarantined.get(name, ""),
        }
        for index, name in enumerate(names)
    ]
    folder = run.run_dir / "validate"
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "images.parquet")
    reasons = [reason for text in quarantined.values() for reason in text.split(";")]
    return ValidationRef(
        table_path=str(folder / "images.parquet"),
        docs_path=str(folder / "docs" / "index.html"),
        digest="c" * 64,
        num_accepted=len(names) - len(quarantined),
        num_quarantined=len(quarantined),
        num_rejected=0,
        rejected_lots=(),
        reasons={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        champion=champion,
    )


def _estimate(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "interval": [value - half, value + half], "reason": ""}


def _evaluated(
    run: RunRef, golden: Path, good: Sequence[NDArray[np.uint8]], bad: Sequence[NDArray[np.uint8]]
) -> tuple[EvaluationRef, str]:
    folder = run.run_dir / "evaluate"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for defect, images in (("good", good), ("crack", bad)):
        (golden / "test" / defect).mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            paths.append(f"test/{defect}/{index:03d}.png")
            Image.fromarray(image).save(golden / paths[-1])
    num, num_good = len(paths), len(good)
    rng = np.random.default_rng(0)
    labels = np.arange(num) >= num_good
    scores = {
        model: (rng.normal(0.3, 0.06, num) + 0.16 * labels).astype(np.float32) for model in ("candidate", "champion")
    }
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64)), axis=-1)
    centres = rng.uniform(-0.7, 0.7, (num, 1, 1, 2))
    bumps = np.exp(-((grid[None] - centres) ** 2).sum(-1) * 18)
    maps = {
        model: (0.1 + rng.normal(0, 0.01, (num, 64, 64)) + values[:, None, None] * bumps).astype(np.float16)
        for model, values in scores.items()
    }
    np.savez_compressed(
        folder / "scores.npz",
        paths=np.asarray(paths),
        labels=labels,
        defect=np.asarray(["good"] * num_good + ["crack"] * len(bad)),
        stratum=np.asarray([""] * num),
        candidate_scores=scores["candidate"],
        champion_scores=scores["champion"],
    )
    np.savez_compressed(folder / "maps.npz", **maps)
    candidate = dict(zip(_METRICS, (0.957, 0.12, 0.043, 0.86, 0.931, 0.412, 0.803), strict=True))
    champion = dict(zip(_METRICS, (0.941, 0.17, 0.048, 0.81, 0.934, 0.405, 0.797), strict=True))
    half = dict.fromkeys(_METRICS, 0.02)

    def calibration(threshold: float) -> dict[str, Any]:
        return {"threshold": threshold, "interval": [threshold - 0.01, threshold + 0.02], "num_normals": 41}

    report = {
        "version": 1,
        "key": run.key.slug,
        "partition": run.partition,
        "candidate_key": "d" * 64,
        "champion_version": 2,
        "golden": {"digest": "e" * 64, "num_good": num_good, "num_defective": len(bad), "has_masks": False},
        "pixels": {"synthetic": True, "num_images": num_good, "classes": {"scratch": 9}, "num_lost_masks": 0},
        "settings": {"target_false_alarm_rate": 0.05, "recall": 0.9, "pro_fpr_limit": 0.3, "confidence": 0.95},
        "candidate": {
            "metrics": {m: _estimate(candidate[m], half[m]) for m in _METRICS},
            "calibration": calibration(0.38),
        },
        "champion": {
            "metrics": {m: _estimate(champion[m], half[m]) for m in _METRICS},
            "calibration": calibration(0.4),
        },
        "difference": {m: _estimate(candidate[m] - champion[m], 0.009 if m != "recall" else 0.07) for m in _METRICS},
        "strata": {
            "defect:crack": {"num_good": num_good, "num_defective": len(bad)}
            | {
                name: {
                    "image_auroc": _estimate(values["image_auroc"], 0.02),
                    "recall": _estimate(values["recall"], 0.05),
                }
                for name, values in (("candidate", candidate), ("champion", champion))
            },
            "synthetic:scratch": {"num_good": num_good, "num_defective": 9}
            | {
                name: {"pixel_ap": _estimate(values["pixel_ap"], 0.04), "pro": _estimate(values["pro"], 0.03)}
                for name, values in (("candidate", candidate), ("champion", champion))
            },
        },
        "decisions": {"num_flips": 11},
        "score_shift": None,
    }
    ref = EvaluationRef(
        report_path=_write_json(folder / "report.json", report),
        scores_path=str(folder / "scores.npz"),
        digest="f" * 64,
        golden_digest="e" * 64,
        candidate_key="d" * 64,
        champion_version=2,
        synthetic_pixels=True,
        metrics=dict(candidate),
        champion_metrics=dict(champion),
    )
    return ref, str(golden)


def _trained(run: RunRef) -> CandidateRef:
    folder = run.run_dir / "fine_tune"
    package = folder / "package"
    _write_json(package / "lineage.json", {"seed": 0, "recipe": "lite", "code": "1" * 64, "device": "cpu"})
    steps = range(1, 401)
    curves = {
        "reconstruction": [{"step": s, "loss": 2.0 / s**0.5 + 0.02 * np.sin(s)} for s in steps],
        "pixel": [{"step": s, "loss": 1.4 / s**0.4, "focal": 0.9 / s**0.5, "dice": 0.5 / s**0.3} for s in steps],
    }
    return CandidateRef(
        package_dir=str(package),
        candidate_key="d" * 64,
        weights_sha256="9" * 64,
        parent_version=2,
        num_steps=800,
        num_new_images=112,
        num_replay_images=100,
        training_seconds=143.7,
        curves_path=_write_json(folder / "curves.json", curves),
    )


def finished_night(
    root: Path,
    *,
    night_images: Sequence[NDArray[np.uint8]] | None = None,
    golden_good: Sequence[NDArray[np.uint8]] | None = None,
    golden_bad: Sequence[NDArray[np.uint8]] | None = None,
    names: Sequence[str] | None = None,
    max_pictures: int = 3,
) -> ReportInputs:
    """Write a promoted night under ``root`` and return what the report is told about it.

    Args:
        root: Empty folder.
        night_images: The night's images; the last one's file is then destroyed.
        golden_good: Good golden images.
        golden_bad: Defective golden images.
        names: File names of the night's images.
        max_pictures: The report's setting.
    """
    run = RunRef(
        key=ModelKey(product="elpv-mono", line="line1", camera="cam1"),
        partition="2026-11-03",
        work_dir=str(root / "work"),
    )
    night = list(night_images) if night_images is not None else some_images(12)
    names = list(names) if names is not None else [f"img_{index:03d}.png" for index in range(len(night))]
    causes = (
        "too_dark",
        "blurred",
        "near_duplicate",
        "champion_anomalous",
        "wrong_size;low_information",
        "not_decodable",
    )
    quarantined = dict(zip(names[-len(causes) :], causes, strict=True))
    champion = ModelRef(
        name="stlm.elpv-mono.line1.cam1", version=2, candidate_key="8" * 64, package_dir=str(root / "v2")
    )
    evaluation, golden = _evaluated(
        run,
        root / "golden",
        golden_good if golden_good is not None else some_images(9, seed=1),
        golden_bad if golden_bad is not None else some_images(7, seed=2),
    )
    reasons = (
        Reason(
            rule="floor:image_auroc",
            verdict=Verdict.PROMOTE,
            value=0.957,
            limit=0.7,
            detail="image_auroc 0.957 is at least 0.7",
        ),
        Reason(
            rule="non_inferiority:image_auroc",
            verdict=Verdict.PROMOTE,
            value=0.008,
            limit=-0.02,
            detail="the lower bound of the difference, +0.008, is above the margin -0.02",
        ),
        Reason(
            rule="parity",
            verdict=Verdict.PROMOTE,
            value=0.0,
            limit=0.0,
            detail="0 of 32 decisions flip under ONNX Runtime",
        ),
    )
    return ReportInputs(
        run=run,
        collect=_collected(run, night, names),
        dataset=DatasetRef(
            repo=str(root / "data-repo"),
            revision="a" * 40,
            tag="night/elpv-mono.line1.cam1/2026-11-03",
            dvc_md5="7" * 32 + ".dir",
            path="data/elpv-mono/line1/cam1/2026-11-03",
            digest="b" * 64,
            num_images=len(night),
        ),
        validation=_validated(run, names, quarantined, champion),
        candidate=_trained(run),
        evaluation=evaluation,
        package=PackageRef(
            package_dir=str(root / "package"),
            digest="6" * 64,
            candidate_key="d" * 64,
            max_score_difference=2.1e-6,
            num_decision_flips=0,
            num_parity_images=32,
            onnx_ms_per_image=21.4,
            size_bytes=18_000_000,
        ),
        decision=GateDecision(
            verdict=Verdict.PROMOTE,
            reasons=reasons,
            candidate_key="d" * 64,
            champion_version=2,
            bootstrap=False,
            evaluation_digest="f" * 64,
            package_digest="6" * 64,
        ),
        promotion=PromotionRef(
            outcome="PROMOTED", name="stlm.elpv-mono.line1.cam1", version=3, champion_version=3, previous_version=2
        ),
        golden=golden,
        mlflow=MlflowSettings(
            tracking_uri=f"sqlite:///{root / 'mlflow.db'}", artifact_root=os.fspath(root / "artifacts")
        ),
        settings=ReportSettings(max_pictures=max_pictures),
    )
