"""Finds pickles in what was written, whatever the files are called."""

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["pickles_below"]

_CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}


def pickles_below(folder: Path) -> list[str]:
    """Every pickle below a folder: bare, in a zip file, or as an array of objects."""
    return [
        f"{path.relative_to(folder)}{inner}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for inner in _pickles_in(path.name, path.read_bytes())
    ]


def _pickles_in(name: str, content: bytes) -> list[str]:
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [f"!{n}{i}" for n in archive.namelist() for i in _pickles_in(n, archive.read(n))]
    if content[:6] == b"\x93NUMPY":
        return [": objects"] if np.lib.format.descr_to_dtype(_descr(content)).hasobject else []
    if name.endswith((".pkl", ".pickle", ".joblib")) or _is_pickle(content):
        return [""]
    return []


def _descr(content: bytes) -> Any:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return np.lib.format.dtype_to_descr(read(stream)[2])


def _is_pickle(content: bytes) -> bool:
    if content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and len(content) > 2:
        return True
    try:
        return not _CALLS.isdisjoint([opcode.name for opcode, _, _ in pickletools.genops(content)])
    except Exception:  # noqa: BLE001  whatever stops the disassembler: it is no pickle
        return False
