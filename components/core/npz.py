"""Array files: written whole or not at all, and refused in one way where a file is damaged."""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.core.atomic_files import write_file

__all__ = ["read_arrays", "write_arrays"]

_DAMAGED = (
    EOFError,
    NotImplementedError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy lets through, depending on which byte of a file is wrong."""


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed ``.npz`` atomically; equal arrays give equal bytes.

    Args:
        path: The file.
        arrays: Its content by name.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_file(path, buffer.getvalue(), public=False)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read a whole ``.npz``.

    Args:
        path: The file.

    Returns:
        Its arrays by name.

    Raises:
        OSError: It is missing, or cannot be opened.
        ValueError: It is damaged, or something else; the message names it.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except _DAMAGED as error:
        raise ValueError(f"{path.name} is damaged ({type(error).__name__}: {error})") from error
