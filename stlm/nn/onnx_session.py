"""How an exported file is run: on the CPU, with a fixed number of threads."""

import os
from pathlib import Path

# ONNX Runtime reports to its maker unless it finds this when it is imported; a word of the user's own counts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from stlm.errors import ExportError

__all__ = ["open_session"]


def open_session(source: Path | bytes, *, num_threads: int) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU with a fixed number of threads that sleep when idle.

    Args:
        source: ONNX file, or its content.
        num_threads: Threads for one image.

    Returns:
        The session.

    Raises:
        ExportError: ONNX Runtime cannot load the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        model = source if isinstance(source, bytes) else str(source)
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"{source if isinstance(source, Path) else 'model'}: ONNX Runtime cannot load it: {error}"
        ) from error
