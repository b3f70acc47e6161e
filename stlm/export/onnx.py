"""ONNX export with the preprocessing inside, and the proof that the file behaves like the model.

The graph takes ``images`` ``(B, H, W, 3)`` uint8 of any B, H and W and returns ``score`` ``(B,)`` and ``anomaly_map``
``(B, h, w)`` float32, larger being more anomalous.
"""

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from stlm.data.transforms import preprocess
from stlm.errors import ExportError
from stlm.nn.onnx_session import open_session

__all__ = ["Detector", "ParityReport", "export_onnx", "parity"]

_OPSET = 18
_SELF_CHECK_TOLERANCE = 1e-3
_RANDOM_OPERATORS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


class Detector(Protocol):
    """What is needed of a model: its input size, and scores and maps of ``(B, 3, h, w)`` images in [0, 1]."""

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)``."""

    def __call__(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Scores ``(B,)`` and maps ``(B, h, w)``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """How far the exported file is from the model on the same images."""

    max_score_difference: float
    """Largest absolute difference of a score; infinite where one of the two is not finite."""
    max_map_difference: float
    """Largest absolute difference of an anomaly map's pixel."""
    num_decision_flips: int
    """Images that one of the two calls anomalous and the other does not."""
    num_images: int
    ms_per_image: float
    """Median time of the exported file for one image, resize included."""


class _ServedModel(nn.Module):
    """The model from raw pixels on, in operations that every ONNX runtime computes alike."""

    def __init__(self, *, model: Detector) -> None:
        super().__init__()
        self.model = model
        self.image_size = model.image_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(B,)`` and maps ``(B, h, w)`` of ``(B, H, W, 3)`` uint8 images."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        rows = _resize_weights(pixels.shape[2], self.image_size[0])
        columns = _resize_weights(pixels.shape[3], self.image_size[1])
        resized = torch.matmul(torch.matmul(rows, pixels), columns.transpose(0, 1))
        score, anomaly_map = self.model(resized.clamp(0.0, 1.0))
        return score, anomaly_map


def _resize_weights(num_in: int, num_out: int) -> Tensor:
    """``(num_out, num_in)`` float32 weights of the antialiased bilinear resize; every row sums to 1.

    This is the triangle filter of ``torch.nn.functional.interpolate(antialias=True)``, which the exporter cannot
    translate and which runtimes' own resize operators round differently. While tracing, ``num_in`` stays part of the
    graph, so the exported file takes images of any size.
    """
    scale = torch.ones(()) * num_in / num_out
    inputs = torch.arange(num_in, dtype=torch.float32) + 0.5
    outputs = (torch.arange(num_out, dtype=torch.float32) + 0.5) * scale
    distance = (inputs[None, :] - outputs[:, None]).abs() / scale.clamp(min=1.0)
    weights = (1.0 - distance).clamp(min=0.0)
    return weights / weights.sum(dim=1, keepdim=True)


def export_onnx(model: Detector, path: Path) -> None:
    """Write ``model``, preprocessing included, to one ONNX file, and check that it loads and takes any size.

    Args:
        model: In eval mode, on the CPU.
        path: The file; replaced atomically.

    Raises:
        ExportError: The model cannot be translated or draws random numbers, or the file does not load or does not
            follow the model at another batch and image size than the traced one.
    """
    served = _ServedModel(model=model).eval()
    height, width = model.image_size
    example = torch.zeros((2, height + 17, width + 9, 3), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as folder:
        written = Path(folder) / path.name
        try:
            _trace(served, example, written)
            onnx.checker.check_model(str(written), full_check=True)
        except Exception as error:
            # The exporter raises whatever its passes raise; for the caller it is one thing.
            raise ExportError(f"{path.name}: the model cannot be exported: {error}") from error
        # Two draws may give scores that are alike, so that comparing some would find it only now and then.
        if random := _RANDOM_OPERATORS.intersection(_operators(onnx.load(str(written)).graph)):
            raise ExportError(
                f"{path.name}: the model draws random numbers ({', '.join(sorted(random))}), expected the same scores "
                f"for the same image each time"
            )
        _self_check(model, written)
        written.replace(path)


def _trace(served: nn.Module, example: Tensor, path: Path) -> None:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["score", "anomaly_map"]}
    free_sizes = {"images": {0: "batch", 1: "height", 2: "width"}, "score": {0: "batch"}, "anomaly_map": {0: "batch"}}
    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        # The tracing exporter is the older one and says so several times. It needs nothing beside torch and onnx, and
        # the version of torch is pinned; its successor needs onnxscript.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # Whether something that matters was frozen is found out below, with other sizes than the traced ones.
        warnings.filterwarnings("ignore", category=TracerWarning)
        torch.onnx.export(
            served, (example,), path, **names, dynamic_axes=free_sizes, opset_version=_OPSET, dynamo=False
        )


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    """Types of a graph's operators, branches and loops included."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            yield from _operators(attribute.g)


def _self_check(model: Detector, path: Path) -> None:
    session = open_session(path, num_threads=1)
    height, width = model.image_size
    random = np.random.default_rng(0)
    for batch, rows, columns in ((1, height, width), (3, height // 2 + 3, width * 2 + 5)):
        images = random.integers(0, 256, (batch, rows, columns, 3), dtype=np.uint8)
        expected, _ = _run_model(model, images)
        try:
            got = session.run(None, {"images": images})[0]
        except Exception as error:
            raise ExportError(f"{path.name}: fails on {images.shape} images: {error}") from error
        if not np.allclose(got, expected, atol=_SELF_CHECK_TOLERANCE, rtol=_SELF_CHECK_TOLERANCE, equal_nan=True):
            raise ExportError(f"{path.name}: scores {got} for {images.shape} images, the model gives {expected}")


def _run_model(model: Detector, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.no_grad():
        score, anomaly_map = model(preprocess(torch.tensor(images), model.image_size))
    return score.numpy(), anomaly_map.numpy()


def parity(
    model: Detector, onnx_path: Path, images: Sequence[NDArray[np.uint8]], threshold: float, *, num_threads: int = 1
) -> ParityReport:
    """Score the same images with the model and with the exported file.

    Args:
        model: In eval mode, on the CPU.
        onnx_path: From :func:`export_onnx`.
        images: ``(H, W, 3)`` uint8 each, at least one; sizes may differ.
        threshold: Operating point; an image is anomalous where its score lies above.
        num_threads: Threads of the exported file.

    Returns:
        The differences.

    Raises:
        ExportError: There are no images, or the exported file cannot be run.
    """
    if not images:
        raise ExportError(f"{onnx_path}: no images to compare on")
    session = open_session(onnx_path, num_threads=num_threads)
    score_difference = map_difference = 0.0
    flips = 0
    milliseconds = []
    for image in images:
        batch = image[None]
        expected_score, expected_map = _run_model(model, batch)
        started = time.perf_counter()
        score, anomaly_map = session.run(None, {"images": batch})
        milliseconds.append(1000.0 * (time.perf_counter() - started))
        score_difference = max(score_difference, _difference(score, expected_score))
        map_difference = max(map_difference, _difference(anomaly_map, expected_map))
        flips += int((float(score[0]) > threshold) != (float(expected_score[0]) > threshold))
    return ParityReport(
        max_score_difference=score_difference,
        max_map_difference=map_difference,
        num_decision_flips=flips,
        num_images=len(images),
        ms_per_image=float(np.median(milliseconds)),
    )


def _difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    difference = float(np.abs(got.astype(np.float64) - expected).max())
    return difference if np.isfinite(difference) else float("inf")
