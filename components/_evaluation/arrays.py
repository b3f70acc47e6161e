"""Arrays on disk."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.files import write_file

__all__ = ["write_arrays"]


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a compressed ``.npz`` atomically; equal arrays give equal bytes.

    Args:
        path: The file.
        arrays: Its content by name.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_file(path, buffer.getvalue(), public=False)
