"""Local folder as a store: atomic puts and conditional ones; symbolic links are refused.

A producer thus cannot make the pipeline read what it should not.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from components.adapters.storage.base import StorageUnavailableError, StoredFile, download_atomic, validate_key
from components.core.errors import InputError, TransientError

__all__ = ["LocalStorage"]

_CHUNK_BYTES = 1 << 20
_LOCK_TIMEOUT_S = 30.0


class LocalStorage:
    """A folder."""

    def __init__(self, root: Path) -> None:
        """Nothing is read or made yet."""
        self._root = root.absolute()

    @property
    def uri(self) -> str:
        """The folder."""
        return str(self._root)

    def _resolve(self, name: str) -> Path:
        path = self._root
        for part in PurePosixPath(validate_key(name)).parts:
            path = path / part
            if path.is_symlink():
                raise InputError(f"{path} is a symbolic link; links are refused in {self.uri}")
        return path

    def _scan(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with _local_errors(folder), os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            if not self._root.is_dir():
                raise StorageUnavailableError(f"folder {self.uri} does not exist, or is not mounted") from None
            return []
        for entry in found:
            if entry.is_symlink():
                raise InputError(f"{entry.path} is a symbolic link; links are refused in {self.uri}")
        return found

    def folders(self, prefix: str = "") -> list[str]:
        """See :class:`Storage`; a missing root is a ``TransientError``, since a mount may come back."""
        folder = self._resolve(prefix) if prefix else self._root
        return [entry.name for entry in self._scan(folder) if entry.is_dir(follow_symlinks=False)]

    def files(self, prefix: str = "") -> list[StoredFile]:
        """See :class:`Storage`."""
        files: list[StoredFile] = []
        pending = [self._resolve(prefix) if prefix else self._root]
        while pending:
            for entry in self._scan(pending.pop()):
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                name = Path(entry.path).relative_to(self._root).as_posix()
                # Gone since the folder was listed: another writer's hidden file, or one that was taken away.
                with contextlib.suppress(FileNotFoundError):
                    files.append(StoredFile(name=name, num_bytes=entry.stat(follow_symlinks=False).st_size))
        return sorted(files)

    def exists(self, name: str) -> bool:
        """See :class:`Storage`."""
        return self._resolve(name).is_file()

    def chunks(self, name: str) -> Iterator[bytes]:
        """See :class:`Storage`."""
        path = self._resolve(name)
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except (FileNotFoundError, IsADirectoryError):
            raise InputError(f"{path} does not exist, expected a file") from None

    def read(self, name: str) -> bytes:
        """See :class:`Storage`."""
        return b"".join(self.chunks(name))

    def download(self, name: str, target: Path) -> None:
        """See :class:`Storage`."""
        download_atomic(self, name, target)

    def put(self, name: str, content: bytes | Path) -> None:
        """See :class:`Storage`."""
        with self._written(name, content) as (temporary, path):
            temporary.replace(path)

    @contextlib.contextmanager
    def _written(self, name: str, content: bytes | Path) -> Iterator[tuple[Path, Path]]:
        """A hidden file beside ``name`` with ``content``, safely on the disk; gone afterwards, if it is still there."""
        path = self._resolve(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            yield Path(temporary), path
        finally:
            Path(temporary).unlink(missing_ok=True)

    def read_with_etag(self, name: str) -> tuple[bytes, str] | None:
        """See :class:`Storage`."""
        path = self._resolve(name)
        try:
            with _local_errors(path):
                content = path.read_bytes()
        except FileNotFoundError:
            return None
        return content, hashlib.sha256(content).hexdigest()

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """See :class:`Storage`."""
        path = self._resolve(name)
        with _local_errors(path), self._written(name, content) as (temporary, path):
            try:
                # A second name for the same file: the system refuses it where the name is taken, so one writer wins
                # and nobody sees half a file.
                os.link(temporary, path)
            except FileExistsError:
                return False
            _sync_folder(path.parent)
        return True

    def put_if_match(self, name: str, content: bytes, tag: str) -> bool:
        """See :class:`Storage`."""
        path = self._resolve(name)
        if not path.exists():
            return False
        try:
            with _local_errors(path), FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_TIMEOUT_S):
                found = self.read_with_etag(name)
                if found is None or found[1] != tag:
                    return False
                self.put(name, content)
                _sync_folder(path.parent)
        except Timeout as error:
            raise TransientError(f"{path} is being written by another for over {_LOCK_TIMEOUT_S:.0f} s") from error
        return True


@contextlib.contextmanager
def _local_errors(path: Path) -> Iterator[None]:
    """What the system says of a folder, sorted into bad input and bad luck; a missing file is the caller's business."""
    try:
        yield
    except (FileNotFoundError, Timeout):
        raise
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise TransientError(f"{path}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """A new name survives a power cut only once its folder is on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
