"""A tiny real model, its package, and a fresh MLflow on SQLite, made once per test run."""

import functools
import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from mlflow import MlflowClient

from components.config import MlflowSettings
from components.core.contracts import ModelKey, PackageRef, RunRef
from stlm.calibration import CALIBRATION_FILE, Calibration
from stlm.export.onnx import export_onnx
from stlm.models.registry import AnomalyModel, build_model, save_model
from stlm.nn.onnx_session import open_session
from stlm.recipes import recipe
from stlm.serving.package import seal_package
from stlm.serving.probe import ProbeImage, write_probe
from stlm.serving.signature import write_signature

KEY = ModelKey(product="cells", line="line1", camera="cam1")


def night(work_dir: Path, partition: str = "2026-11-01") -> RunRef:
    return RunRef(key=KEY, partition=partition, work_dir=str(work_dir))


@functools.cache
def tiny_model(seed: int = 0) -> AnomalyModel:
    model = build_model(recipe("tiny"), seed=seed)
    with torch.no_grad():
        # An untrained memory and its scale would hide differences between images.
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def calibration(threshold: float) -> Calibration:
    return Calibration(
        threshold=threshold,
        target_false_alarm_rate=0.05,
        promised_false_alarm_rate=0.05,
        num_normals=40,
        interval=(threshold - 0.1, threshold + 0.1),
        confidence=0.95,
    )


def write_candidate(folder: Path, *, seed: int = 0) -> str:
    """What fine_tune leaves; returns the weights' sha256."""
    sha256 = save_model(tiny_model(seed), folder)
    (folder / "lineage.json").write_text("{}")
    (folder / "replay.json").write_text("[]")
    return sha256


@functools.cache
def _sealed(seed: int, threshold: float) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="stlm-tests-")) / "package"
    write_candidate(folder, seed=seed)
    export_onnx(tiny_model(seed), folder / "model.onnx")
    (folder / CALIBRATION_FILE).write_text(calibration(threshold).to_json())
    write_signature(folder)
    write_probe(folder, _probe_images(folder), tolerance=1e-3)
    seal_package(folder)
    return folder


def _probe_images(folder: Path) -> list[ProbeImage]:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (70, 80 + index, 3), dtype=np.uint8) for index in range(2)]
    session = open_session(folder / "model.onnx", num_threads=1)
    scores = [float(session.run(["score"], {"images": image[None]})[0][0]) for image in images]
    return [
        ProbeImage(name=f"test/good/{index:03d}.png", pixels=image, score=score)
        for index, (image, score) in enumerate(zip(images, scores, strict=True))
    ]


def write_package(folder: Path, *, seed: int = 0, threshold: float = 0.5) -> PackageRef:
    """A sealed package as export leaves it."""
    shutil.copytree(_sealed(seed, threshold), folder)
    return PackageRef(
        package_dir=str(folder),
        digest=hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest(),
        candidate_key=hashlib.sha256(f"candidate {seed}".encode()).hexdigest(),
        max_score_difference=0.0,
        num_decision_flips=0,
        num_parity_images=4,
        onnx_ms_per_image=1.0,
        size_bytes=1,
    )


@functools.cache
def _empty_database() -> Path:
    path = Path(tempfile.mkdtemp(prefix="stlm-tests-")) / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def new_mlflow(folder: Path) -> MlflowSettings:
    """A fresh tracking server and registry; its tables are copied, for creating them takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_empty_database(), folder / "mlflow.db")
    return MlflowSettings(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_root=str(folder / "artifacts"))
