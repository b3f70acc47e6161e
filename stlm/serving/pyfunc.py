"""The package as an MLflow model, by models-from-code: nothing is pickled.

MLflow runs this file when ``mlflow.pyfunc.load_model`` loads the model; the package is its artifact ``package``.

Input: a DataFrame with the column ``image`` (MLflow makes one of a list of ``{"image": ...}`` or a
``{"image": [...]}``). Each cell is one image of any size:

- ``bytes``: an encoded image file: BMP, JPEG, PNG, TIFF or WEBP;
- an ``(H, W, 3)`` uint8 RGB array, or the same as nested lists;
- a string: an encoded image file in base64, for JSON over HTTP.

Paths are not accepted: a server would open whatever file a caller names.

Output: a DataFrame with one row per image, under the caller's index: ``score`` (float), ``label`` (1 is anomalous) and
``anomaly_map`` (``(h, w)`` float32 array at the model's image size).

``load_model(uri, model_config={"num_threads": 4})`` gives the model more threads.
"""

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from stlm.data.image_files import read_image
from stlm.errors import DataError
from stlm.serving.predictor import OnnxPredictor

__all__ = ["StlmPyfunc"]

COLUMN = "image"


def _decode(cell: Any, index: int) -> NDArray[np.uint8]:
    if isinstance(cell, np.ndarray):
        return cell
    if isinstance(cell, list):
        array = np.asarray(cell)
        if array.dtype.kind != "i" or array.size == 0 or array.min() < 0 or array.max() > 255:
            raise DataError(f"image {index}: expected nested lists of integers from 0 to 255")
        return array.astype(np.uint8)
    if isinstance(cell, str):
        try:
            cell = base64.b64decode(cell, validate=True)
        except binascii.Error as error:
            raise DataError(f"image {index}: expected base64 of an image file ({error})") from error
    if isinstance(cell, bytes):
        try:
            return read_image(io.BytesIO(cell))
        except DataError as error:
            raise DataError(f"image {index} of {len(cell)} bytes: {error}") from error
    raise DataError(f"image {index}: expected bytes, base64 or an (H, W, 3) uint8 array, got {type(cell).__name__}")


class StlmPyfunc(PythonModel):
    """Serves the package's ONNX file."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the package; its manifest is verified first."""
        config = context.model_config or {}
        self._predictor = OnnxPredictor(
            Path(context.artifacts["package"]), num_threads=int(config.get("num_threads", 1))
        )

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  MLflow passes all three
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Judge the images of column ``image``; see the top of this file for what a cell may be.

        Args:
            context: What the model was loaded from.
            model_input: One row per image.
            params: None are known.

        Returns:
            One row per image, under its index: ``score``, ``label``, ``anomaly_map``.

        Raises:
            DataError: A cell is no image; the message names its place.
        """
        cells, index = list(model_input[COLUMN]), model_input.index
        if len(cells) == 1 and isinstance(cells[0], list) and all(isinstance(item, str) for item in cells[0]):
            # MLflow makes one row, not many, of {"image": ["...", "..."]}.
            cells = cells[0]
            index = pd.RangeIndex(len(cells))
        images = [_decode(cell, index) for index, cell in enumerate(cells)]
        predictions = self._predictor.predict(images)
        return pd.DataFrame(
            {
                "score": [prediction.score for prediction in predictions],
                "label": [prediction.label for prediction in predictions],
                "anomaly_map": [prediction.anomaly_map for prediction in predictions],
            },
            index=index,
        )


mlflow.models.set_model(StlmPyfunc())
