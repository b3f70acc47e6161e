"""How an exported file is run: on the CPU, with a fixed number of threads."""

from pathlib import Path

import onnxruntime as ort

from stlm.errors import ExportError

__all__ = ["open_session"]


def open_session(path: Path, *, num_threads: int) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU with a fixed number of threads that sleep when idle.

    Args:
        path: ONNX file.
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
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"{path}: ONNX Runtime cannot load the file: {error}") from error
