"""Atomic files: readers see the old one or the whole new one."""

import os
import tempfile
from pathlib import Path
from typing import Any

from components.core.contracts import canonical_json

__all__ = ["write_file", "write_json"]


def write_file(path: Path, content: bytes, *, public: bool = True) -> None:
    """Write ``content`` to ``path`` atomically; folders are made.

    Args:
        path: The file.
        content: All of it.
        public: Whether everyone who can reach the folder may read it, or its owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if public:
            Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON to ``path`` so that readers see the old file or the whole new one."""
    write_file(path, canonical_json(value).encode(), public=False)
