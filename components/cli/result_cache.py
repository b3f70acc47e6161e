"""Result cache of long measurements: a run that was stopped goes on where it stood."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.core.atomic_files import write_file
from components.core.errors import InputError
from stlm.source_digest import source_digest
from stlm.strict_json import digest_of

__all__ = ["ResultCache", "content_digest"]


class ResultCache:
    """One file a result below ``<out>/results``; nothing is kept where ``out`` is empty."""

    def __init__(self, out: str) -> None:
        self._folder = Path(out) / "results" if out else None

    def file(self, *names: object, **facts: object) -> Path:
        """Where a result is kept: named for people, and by a digest of everything it depends on, the code included."""
        digest = digest_of({"names": [str(name) for name in names], **facts, "code": source_digest()})
        return Path("-".join(str(name) for name in names) + f"-{digest[:16]}.json")

    def read(self, file: Path) -> dict[str, Any] | None:
        """The result, if it is there."""
        path = (self._folder or Path()) / file
        if self._folder is None or not path.exists():
            return None
        try:
            value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} cannot be read ({error}); delete it to measure anew") from error
        return value

    def write(self, file: Path, value: dict[str, Any]) -> None:
        """Keep a result."""
        if self._folder is not None:
            write_file(self._folder / file, (json.dumps(value, indent=1) + "\n").encode())


def content_digest(folders: Sequence[Path]) -> str:
    """Hex sha256 over names and contents of every file below the folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder)}\0{content}\n".encode())
    return digest.hexdigest()
