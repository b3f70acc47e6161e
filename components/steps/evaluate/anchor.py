"""Anchor measurement: the best approved version, measured through its exported file, and then remembered.

Its exported file runs whatever becomes of the code that trained it, and faster. The anchor changes seldom, and so do
the golden images: what was measured is kept in ``<work_dir>/cache/anchor-<key>.npz`` until package, golden set or code
change, and some images are scored anew each night to see that the file still speaks of this machine.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from components.config import EvaluateSettings
from components.core.contracts import ModelRef, RunRef, digest_of
from components.core.errors import InputError
from components.core.npz import read_arrays, write_arrays
from components.steps.evaluate.measuring import (
    ModelResults,
    golden_record,
    labels_of,
    pixel_measurement,
    stored_calibration,
)
from stlm.comparison import MeasuredModel
from stlm.data.image_files import read_image
from stlm.data.layout import GoldenSet
from stlm.data.pixel_set import PixelSet
from stlm.errors import WeightsError
from stlm.metrics import ImageMeasurement, PixelMeasurement, PixelStatistics
from stlm.serving.package import verify_package
from stlm.serving.predictor import OnnxPredictor, Prediction, predict_files
from stlm.source_digest import source_digest

__all__ = ["Anchor"]

logger = logging.getLogger(__name__)

_NUM_SPOT_CHECKS = 4


class Anchor:
    """The anchor's exported file.

    Args:
        ref: The version.
        golden: The golden set.

    Raises:
        InputError: The package is altered or cannot be loaded.
    """

    def __init__(self, ref: ModelRef, golden: GoldenSet) -> None:
        self._package = Path(ref.package_dir)
        self._golden = golden
        try:
            self._digest = verify_package(self._package)
            self._predictor = OnnxPredictor(self._package, num_threads=torch.get_num_threads())
        except WeightsError as error:
            raise InputError(f"anchor version {ref.version}: {error}") from error
        height, width = self._predict([read_image(golden.items[0].path)])[0].anomaly_map.shape
        self.image_size: tuple[int, int] = (height, width)

    def measure(self, run: RunRef, pixel_set: PixelSet, settings: EvaluateSettings) -> ModelResults:
        """Its results on the golden set, remembered or new.

        Args:
            run: Whose work folder remembers.
            pixel_set: Images of the pixel metrics.
            settings: How to measure.

        Returns:
            The results, without pictures.
        """
        path = Path(run.work_dir) / "cache" / f"anchor-{run.key.slug}.npz"
        identity = self._identity(pixel_set, settings)
        arrays = _read(path, identity)
        if arrays is None or not self._still_true(arrays["scores"]):
            arrays = self._arrays(pixel_set, settings) | {"identity": np.array(identity)}
            write_arrays(path, arrays)
        else:
            logger.info("step=evaluate anchor scores remembered file=%s", path)
        calibration = stored_calibration(self._package)
        images = ImageMeasurement(
            scores=arrays["scores"],
            labels=labels_of(self._golden),
            threshold=calibration.threshold,
            recall=settings.recall,
        )
        reason = str(arrays["reason"])
        pixels = PixelMeasurement(statistics=None if reason else PixelStatistics.from_arrays(arrays), reason=reason)
        return ModelResults(
            figures=MeasuredModel(images=images, pixels=pixels),
            calibration=calibration,
            golden_digest=golden_record(self._package),
        )

    def _identity(self, pixel_set: PixelSet, settings: EvaluateSettings) -> str:
        return digest_of(
            {
                "package": self._digest,
                "golden": self._golden.digest,
                "pixels": [[image.golden_row, image.image_class] for image in pixel_set.images],
                "pro_fpr_limit": settings.pro_fpr_limit,
                "code": source_digest(),
                "runtime": onnxruntime.__version__,
            }
        )

    def _arrays(self, pixel_set: PixelSet, settings: EvaluateSettings) -> dict[str, npt.NDArray[Any]]:
        used = {image.golden_row for image in pixel_set.images if image.altered is None}
        scores: list[float] = []
        maps: dict[int, npt.NDArray[np.float32]] = {}
        paths = (item.path for item in self._golden.items)
        for row, found in enumerate(predict_files(self._predictor, paths)):
            scores.append(found.score)
            if row in used:
                maps[row] = found.anomaly_map
        ordered = [
            maps[image.golden_row] if image.altered is None else self._predict([image.altered])[0].anomaly_map
            for image in pixel_set.images
        ]
        pixels = pixel_measurement(ordered, pixel_set, settings)
        arrays = {"scores": np.array(scores, dtype=np.float32), "reason": np.array(pixels.reason)}
        return arrays | (pixels.statistics.to_arrays() if pixels.statistics is not None else {})

    def _still_true(self, scores: npt.NDArray[np.float32]) -> bool:
        rows = np.linspace(0, len(scores) - 1, min(_NUM_SPOT_CHECKS, len(scores))).round().astype(int).tolist()
        found = [prediction.score for prediction in self._predict([self._image(row) for row in rows])]
        return bool(np.allclose(scores[rows], found, rtol=1e-3, atol=1e-5))

    def _image(self, row: int) -> npt.NDArray[np.uint8]:
        return read_image(self._golden.items[row].path)

    def _predict(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Prediction]:
        return self._predictor.predict(images)


def _read(path: Path, identity: str) -> dict[str, npt.NDArray[Any]] | None:
    """What is remembered, if it is of this; a file that cannot be read is written anew."""
    try:
        arrays = read_arrays(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("step=evaluate anchor file=%s cannot be read, measuring again: %s", path, error)
        return None
    return arrays if str(arrays.get("identity")) == identity else None
