"""How long one image takes with the embedded recipe, beside anomalib's EfficientAD-S and PatchCore, and how accurate.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_inference.py``, on a machine with nothing else to do: 256
px, batch 1, two threads, every file in turn. anomalib and OpenVINO come in an environment that uv makes for the run.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from stlm.bench.figures import judge
from stlm.bench.patchcore import PatchCore
from stlm.data.layout import read_golden_set, read_train_normals
from stlm.export.onnx import export_onnx
from stlm.models.outputs import AnomalyOutput
from stlm.models.registry import build_model
from stlm.nn.onnx_session import open_session
from stlm.recipes import lite
from tests.benchmarks.bench_accuracy import SEED, SHARED, _normals, _train
from tests.helpers.other_python import python_with

THREADS, WARM_UP, ROUNDS = 2, 3, 15
PEERS = ("anomalib==2.7.0", "openvino==2026.2.0", "onnx", "onnxscript")


class _Exported:
    """An exported file behind the interface of a detector."""

    image_size = (256, 256)

    def __init__(self, file: Path) -> None:
        self.session = open_session(file, num_threads=THREADS)

    def __call__(self, images: Tensor) -> AnomalyOutput:
        score, anomaly_map = self.session.run(None, {"images": _pixels(images)})
        return AnomalyOutput(score=torch.from_numpy(score), anomaly_map=torch.from_numpy(anomaly_map))


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter(np.split(images, len(images)))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _quantise(file: Path, into: Path, images: NDArray[np.uint8]) -> None:
    """int8 convolutions, calibrated on held-out normals; what follows the trunk stays float32."""
    prepared = into.with_suffix(".prepared.onnx")
    quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(into), _Calibration(images), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"],
    )  # fmt: skip


def _interleaved(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each, taken in turn, so that what else the machine does falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + ROUNDS):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here")
def test_an_image_takes_a_fraction_of_the_time_of_the_peers(tmp_path: Path) -> None:
    torch.set_num_threads(THREADS)
    root = SHARED / "mtd" / "exp1"
    paths, golden = read_train_normals(root), read_golden_set(root)
    held, fitted = paths[::7], [path for index, path in enumerate(paths) if index % 7]
    model = build_model(lite(), seed=SEED)
    _train(model, fitted, held)
    model.eval()
    export_onnx(model, tmp_path / "ours.onnx")
    held_pixels = _normals(held, model.image_size).images
    _quantise(tmp_path / "ours.onnx", tmp_path / "ours-int8.onnx", held_pixels)
    peer = PatchCore(seed=SEED)
    peer.fit(torch.from_numpy(_normals(paths, (256, 256)).images).permute(0, 3, 1, 2) / 255.0)

    script = Path(__file__).with_name("peers_of_anomalib.py")
    subprocess.run([*python_with(*PEERS), str(script), str(tmp_path)], check=True)
    times = json.loads((tmp_path / "peers.json").read_text())

    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(SEED))
    calls: dict[str, Callable[[], object]] = {}
    for name in ("ours", "ours-int8", "EfficientAD-S", "PatchCore"):
        session = _session(tmp_path / f"{name}.onnx")
        given = _pixels(image) if name.startswith("ours") else image.numpy()
        calls[name] = lambda session=session, given=given: session.run(None, {"images": given})
    for name, ms in _interleaved(calls).items():
        times.setdefault(name, {})["ONNX Runtime"] = ms
    with torch.inference_mode():
        times["ours"]["torch"] = _interleaved({"ours": lambda: model(image)})["ours"]

    table = pd.DataFrame(times).T[["torch", "ONNX Runtime", "OpenVINO"]].round(1)
    exported = {name: _Exported(tmp_path / f"{name}.onnx") for name in ("ours", "ours-int8")}
    for name, detector in {**exported, "PatchCore": peer}.items():
        found = judge(detector, golden).figures
        table.loc[name, ["image AUROC", "pixel AUROC", "pixel AP", "PRO"]] = [
            found.image_auroc, found.pixel_auroc, found.pixel_ap, found.pro,
        ]  # fmt: skip
    print(f"\nms for an image of 256 px, batch 1, {THREADS} threads; figures on {root.name}, seed {SEED}")
    print(table.round(3).to_string())
    best = table[["torch", "ONNX Runtime", "OpenVINO"]].min(axis=1)
    print(f"EfficientAD-S / ours: {best['EfficientAD-S'] / best['ours']:.1f}, PatchCore / ours: "
          f"{best['PatchCore'] / best['ours']:.1f}")  # fmt: skip
    assert best["EfficientAD-S"] / best["ours"] >= 10
    assert best["PatchCore"] / best["ours"] > 1
    assert table.loc["ours", "image AUROC"] >= table.loc["PatchCore", "image AUROC"]


def _session(file: Path) -> ort.InferenceSession:
    return open_session(file, num_threads=THREADS)
