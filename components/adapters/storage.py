"""Folders and buckets behind one Protocol: a landing zone looks the same on a disk and on S3.

Names are relative POSIX paths below the storage's root. Nothing outside the root can be named, and symbolic links
are refused, so that a producer cannot make the pipeline read what it should not.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError, PartialCredentialsError

from components.errors import InputError, TransientError

__all__ = ["LocalStorage", "S3Storage", "Storage", "StoredFile", "checked_name", "open_storage"]

_CHUNK_BYTES = 1 << 20
_TRANSIENT_CODES = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "503", "500"}


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


def checked_name(name: str) -> str:
    """``name`` if it is a plain relative POSIX path; ``..``, ``/x``, ``a//b`` or a backslash is an ``InputError``."""
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"file name {name!r} is refused: expected a relative path without '..', '.', '\\' or '//'")
    return name


def open_storage(uri: str, *, endpoint_url: str = "") -> Storage:
    """The store at ``uri``.

    Args:
        uri: A folder (``/folder`` or ``file:///folder``) or ``s3://bucket/prefix``.
        endpoint_url: Server of an ``s3://`` store that is not AWS; empty for AWS.

    Returns:
        The store; nothing is read yet.

    Raises:
        InputError: The address is of another kind.
    """
    if uri.startswith("s3://"):
        return S3Storage(uri, endpoint_url=endpoint_url)
    if uri.startswith("file://"):
        return LocalStorage(Path(unquote(urlsplit(uri).path)))
    if "://" in uri or not uri:
        raise InputError(f"storage address {uri!r} is not supported; expected a folder, file:// or s3://bucket/prefix")
    return LocalStorage(Path(uri))


def _download(storage: Storage, name: str, target: Path) -> None:
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
        for part in PurePosixPath(checked_name(name)).parts:
            path = path / part
            if path.is_symlink():
                raise InputError(f"{path} is a symbolic link; links are refused in {self.uri}")
        return path

    def _scan(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            if not self._root.is_dir():
                raise TransientError(f"folder {self.uri} does not exist, or is not mounted") from None
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
                else:
                    name = Path(entry.path).relative_to(self._root).as_posix()
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
        _download(self, name, target)

    def put(self, name: str, content: bytes | Path) -> None:
        """See :class:`Storage`."""
        path = self._resolve(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


class S3Storage:
    """A bucket, or a prefix in one. Credentials come the usual boto3 way, never through configuration."""

    def __init__(self, uri: str, *, endpoint_url: str = "") -> None:
        """``uri`` is ``s3://bucket[/prefix]``; nothing is asked of the server yet."""
        parts = urlsplit(uri)
        if not parts.netloc:
            raise InputError(f"storage address {uri!r} names no bucket; expected s3://bucket/prefix")
        self._bucket = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/".lstrip("/")
        self._endpoint = endpoint_url
        # boto3 asks for a region even where the server has none.
        region = None if not endpoint_url else os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        # A session of its own: the default one is not thread-safe and keeps the first credentials it saw.
        self._client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url or None,
            region_name=region,
            config=Config(
                connect_timeout=5,
                read_timeout=30,
                max_pool_connections=16,
                retries={"max_attempts": 3, "mode": "standard"},
            ),
        )

    @property
    def uri(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def _key(self, name: str) -> str:
        return self._prefix + checked_name(name)

    def _folder_key(self, prefix: str) -> str:
        return f"{self._key(prefix)}/" if prefix else self._prefix

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Tell wrong from unreachable."""
        where = f"{what} at {self._endpoint or 'AWS'}"
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise InputError(f"{where}: {error}") from error
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code in ("NoSuchKey", "404"):
                raise InputError(f"{where} does not exist, expected a file") from error
            if code in _TRANSIENT_CODES or status >= 500:
                raise TransientError(f"{where}: {error}") from error
            raise InputError(f"{where}: {error}") from error
        except (HTTPClientError, BotoCoreError, OSError) as error:
            raise TransientError(f"{where}: {error}") from error

    def _pages(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        with self._errors(self.uri):
            yield from self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, **arguments)

    def folders(self, prefix: str = "") -> list[str]:
        """See :class:`Storage`; only this level is listed, however much lies below."""
        key = self._folder_key(prefix)
        found = [
            item["Prefix"] for page in self._pages(Prefix=key, Delimiter="/") for item in page.get("CommonPrefixes", [])
        ]
        return sorted(name[len(key) :].rstrip("/") for name in found)

    def files(self, prefix: str = "") -> list[StoredFile]:
        """See :class:`Storage`."""
        pages = self._pages(Prefix=self._folder_key(prefix))
        objects = [item for page in pages for item in page.get("Contents", [])]
        return sorted(
            StoredFile(name=item["Key"][len(self._prefix) :], num_bytes=item["Size"])
            for item in objects
            # Some consoles make folders by empty objects with a closing slash.
            if not item["Key"].endswith("/")
        )

    def exists(self, name: str) -> bool:
        """See :class:`Storage`."""
        try:
            with self._errors(f"{self.uri}/{name}"):
                self._client.head_object(Bucket=self._bucket, Key=self._key(name))
        except InputError as error:
            if isinstance(error.__cause__, ClientError) and "404" in str(error.__cause__):
                return False
            raise
        return True

    def chunks(self, name: str) -> Iterator[bytes]:
        """See :class:`Storage`."""
        key = self._key(name)
        with self._errors(f"s3://{self._bucket}/{key}"):
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
            with contextlib.closing(body):
                yield from body.iter_chunks(_CHUNK_BYTES)

    def read(self, name: str) -> bytes:
        """See :class:`Storage`."""
        return b"".join(self.chunks(name))

    def download(self, name: str, target: Path) -> None:
        """See :class:`Storage`."""
        _download(self, name, target)

    def put(self, name: str, content: bytes | Path) -> None:
        """See :class:`Storage`."""
        key = self._key(name)
        with self._errors(f"s3://{self._bucket}/{key}"):
            if isinstance(content, bytes):
                self._client.put_object(Bucket=self._bucket, Key=key, Body=content)
            else:
                # Not upload_file(): it wraps what went wrong so that wrong and unreachable look alike.
                with content.open("rb") as file:
                    self._client.upload_fileobj(file, self._bucket, key)
