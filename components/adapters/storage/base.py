"""Storage Protocol: what the steps need of a store, and the names that it takes.

Names are relative POSIX paths below the storage's root. Nothing outside the root can be named.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from components.core.errors import InputError, TransientError

__all__ = ["Storage", "StorageUnavailableError", "StoredFile", "download_atomic", "validate_key"]


class StorageUnavailableError(TransientError):
    """There is no such folder: it was never made, or its mount may come back."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class StoredFile:
    """A file and its size."""

    name: str
    num_bytes: int


class Storage(Protocol):
    """What the steps need of a store. All names are relative to :attr:`uri`."""

    @property
    def uri(self) -> str:
        """Where it is, for messages."""
        ...

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below ``prefix``, sorted; empty where ``prefix`` does not exist."""
        ...

    def files(self, prefix: str = "") -> list[StoredFile]:
        """All files below the folder ``prefix``, recursively, sorted by name (relative to the root)."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]:
        """The file's bytes in pieces; raises ``InputError`` where there is none."""
        ...

    def read(self, name: str) -> bytes:
        """The whole file; raises ``InputError`` where there is none."""
        ...

    def download(self, name: str, target: Path) -> None:
        """Copy the file to ``target``, which appears whole or not at all."""
        ...

    def put(self, name: str, content: bytes | Path) -> None:
        """Store bytes, or a local file, under ``name``; readers see the old file or the whole new one."""
        ...

    def read_with_etag(self, name: str) -> tuple[bytes, str] | None:
        """The whole file and a tag of this very content, for :meth:`put_if_match`; ``None`` where there is none."""
        ...

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Store ``content`` where there is no such file; of many writers at once exactly one is told ``True``.

        ``content`` must be unique to its writer: a server may apply a request whose answer is lost, and what is found
        there then tells whose it was.
        """
        ...

    def put_if_match(self, name: str, content: bytes, tag: str) -> bool:
        """Store ``content`` where the file still has the content of ``tag``; otherwise as :meth:`put_if_absent`."""
        ...


def validate_key(name: str) -> str:
    """``name`` if it is a plain relative POSIX path; ``..``, ``/x``, ``a//b`` or a backslash is an ``InputError``."""
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"file name {name!r} is refused: expected a relative path without '..', '.', '\\' or '//'")
    return name


def download_atomic(storage: Storage, name: str, target: Path) -> None:
    """Copy a stored file to ``target``, which appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in storage.chunks(name):
                file.write(chunk)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
