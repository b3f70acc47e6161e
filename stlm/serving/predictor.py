"""Prediction from a package folder, with ONNX Runtime or with torch, behind one Protocol.

Both verify the package's manifest before anything of it is loaded, and read the threshold that travels with it. The
ONNX predictor does not import torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stlm.calibration import CALIBRATION_FILE, Calibration
from stlm.data.image_files import read_image
from stlm.errors import DataError, ExportError, WeightsError
from stlm.nn.onnx_session import open_session
from stlm.serving.package import ONNX_FILE, verify_package

__all__ = ["OnnxPredictor", "Prediction", "Predictor", "TorchPredictor", "predict_files"]

_BATCH = 8
"""Images of one size that go through the network together."""
_IN_MEMORY = 4 * _BATCH
"""Images of files that are decoded at a time."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What the model says about one image."""

    score: float
    """Larger is more anomalous."""
    label: int
    """1 where the score lies above the package's threshold, else 0."""
    anomaly_map: NDArray[np.float32]
    """``(H, W)`` float32 at the model's image size; larger is more anomalous."""


class Predictor(Protocol):
    """A loaded package."""

    @property
    def threshold(self) -> float:
        """Scores above it are anomalous."""

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Judge ``(H, W, 3)`` uint8 RGB images of any size, in order."""


def predict_files(predictor: Predictor, paths: Iterable[Path]) -> Iterator[Prediction]:
    """Judge image files, a few in memory at a time.

    Args:
        predictor: A loaded package.
        paths: The files.

    Yields:
        One prediction per file, in order.

    Raises:
        DataError: A file cannot be decoded.
        WeightsError: The model's output is not finite.
    """
    rest = iter(paths)
    while images := [read_image(path) for path in islice(rest, _IN_MEMORY)]:
        yield from predictor.predict(images)


def _check(images: Sequence[NDArray[np.uint8]]) -> None:
    for index, image in enumerate(images):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise DataError(f"image {index}: expected an (H, W, 3) uint8 array, got {got}")
        if 0 in image.shape:
            raise DataError(f"image {index} is empty: {image.shape}")


def _batches(images: Sequence[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Neighbours of one size, stacked ``(B, H, W, 3)``."""
    start = 0
    for end in range(1, len(images) + 1):
        if end == len(images) or images[end].shape != images[start].shape or end - start == _BATCH:
            yield np.stack(images[start:end])
            start = end


class _Judge:
    """Threshold of a package, and what it makes of raw outputs."""

    def __init__(self, *, package_dir: Path) -> None:
        verify_package(package_dir)
        path = package_dir / CALIBRATION_FILE
        try:
            self.calibration = Calibration.from_json(path.read_text(encoding="utf-8"))
        except (OSError, DataError) as error:
            raise WeightsError(f"{path}: {error}") from error
        self._package_dir = package_dir

    def predictions(self, scores: NDArray[np.float32], anomaly_maps: NDArray[np.float32]) -> list[Prediction]:
        if not (np.isfinite(scores).all() and np.isfinite(anomaly_maps).all()):
            # "nan > threshold" is False: a broken model would call everything good.
            raise WeightsError(f"package {self._package_dir}: the model's output is not finite")
        labels = self.calibration.is_anomalous(scores)
        return [
            Prediction(score=float(score), label=int(label), anomaly_map=np.array(anomaly_map, dtype=np.float32))
            for score, label, anomaly_map in zip(scores, labels, anomaly_maps, strict=True)
        ]


class OnnxPredictor:
    """Serves ``model.onnx`` on the CPU.

    Args:
        package_dir: A sealed package.
        num_threads: Threads for one prediction.

    Raises:
        WeightsError: A file of the package is missing, altered or unreadable; the message names it.
    """

    def __init__(self, package_dir: str | Path, *, num_threads: int = 1) -> None:
        folder = Path(package_dir)
        self._judge = _Judge(package_dir=folder)
        try:
            self._session = open_session(folder / ONNX_FILE, num_threads=num_threads)
        except ExportError as error:
            raise WeightsError(f"package {folder}: {error}") from error

    @property
    def threshold(self) -> float:
        """Scores above it are anomalous."""
        return self._judge.calibration.threshold

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Judge ``(H, W, 3)`` uint8 RGB images of any size, in order.

        Args:
            images: Any number, of any sizes; neighbours of one size are scored together.

        Returns:
            One prediction per image.

        Raises:
            DataError: An image is of another type or shape, or empty; the message names its place.
            WeightsError: The model's output is not finite.
        """
        _check(images)
        predictions: list[Prediction] = []
        for batch in _batches(images):
            scores, anomaly_maps = self._session.run(["score", "anomaly_map"], {"images": batch})
            predictions += self._judge.predictions(scores, anomaly_maps)
        return predictions


class TorchPredictor:
    """Serves ``model.safetensors``, on any device that torch has.

    Args:
        package_dir: A sealed package.
        device: Torch device.

    Raises:
        WeightsError: A file of the package is missing, altered or unreadable; the message names it.
    """

    def __init__(self, package_dir: str | Path, *, device: str = "cpu") -> None:
        # Imported here, so that a process that serves ONNX needs no torch.
        from stlm.models.registry import load_model

        folder = Path(package_dir)
        self._judge = _Judge(package_dir=folder)
        self._device = device
        self._model = load_model(folder, device=device)

    @property
    def threshold(self) -> float:
        """Scores above it are anomalous."""
        return self._judge.calibration.threshold

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Judge ``(H, W, 3)`` uint8 RGB images of any size, in order.

        Args:
            images: Any number, of any sizes; neighbours of one size are scored together.

        Returns:
            One prediction per image.

        Raises:
            DataError: An image is of another type or shape, or empty; the message names its place.
            WeightsError: The model's output is not finite.
        """
        import torch

        from stlm.data.transforms import preprocess

        _check(images)
        predictions: list[Prediction] = []
        with torch.inference_mode():
            for batch in _batches(images):
                pixels = preprocess(torch.from_numpy(batch).to(self._device), self._model.image_size)
                output = self._model(pixels)
                predictions += self._judge.predictions(output.score.cpu().numpy(), output.anomaly_map.cpu().numpy())
        return predictions
