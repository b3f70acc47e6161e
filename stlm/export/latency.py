"""How long exported files take, side by side."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stlm.errors import ExportError
from stlm.nn.onnx_session import open_session

__all__ = ["latencies_ms"]


def latencies_ms(
    paths: Sequence[Path], images: Sequence[NDArray[np.uint8]], *, num_threads: int = 1
) -> tuple[float, ...]:
    """Median time of each file for one image, resize included.

    The files take turns image by image, so that whatever else the machine does slows all of them alike.

    Args:
        paths: ONNX files from :func:`stlm.export.onnx.export_onnx`.
        images: ``(H, W, 3)`` uint8 each, at least one.
        num_threads: Threads of each file.

    Returns:
        Milliseconds, one per file.

    Raises:
        ExportError: There are no images, or a file cannot be run.
    """
    if not images:
        raise ExportError("no images to measure the time on")
    sessions = [open_session(path, num_threads=num_threads) for path in paths]
    milliseconds = np.zeros((len(sessions), len(images)))
    try:
        for session in sessions:
            session.run(None, {"images": images[0][None]})  # the first run of a session sets up its memory
        for column, image in enumerate(images):
            for row, session in enumerate(sessions):
                started = time.perf_counter()
                session.run(None, {"images": image[None]})
                milliseconds[row, column] = 1000.0 * (time.perf_counter() - started)
    except Exception as error:
        # ONNX Runtime raises whatever its kernels raise; for the caller it is one thing.
        raise ExportError(f"{', '.join(map(str, paths))}: cannot be run: {error}") from error
    return tuple(float(value) for value in np.median(milliseconds, axis=1))
