"""S3 bucket as a store, behind the Protocol of :mod:`components.adapters.storage.base`."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError, PartialCredentialsError

from components.adapters.storage.base import StoredFile, download_atomic, validate_key
from components.core.errors import InputError, TransientError

__all__ = ["S3Storage"]

_CHUNK_BYTES = 1 << 20
_TRANSIENT_CODES = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "503", "500"}
_MISSING = {"NoSuchKey", "404"}
# AWS answers 409 where two conditional writes meet, and NoSuchKey to If-Match where there is nothing.
_REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", *_MISSING}


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
        return self._prefix + validate_key(name)

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
            if code in _MISSING:
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
            if _code(error) in _MISSING:
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
        download_atomic(self, name, target)

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

    def read_with_etag(self, name: str) -> tuple[bytes, str] | None:
        """See :class:`Storage`."""
        key = self._key(name)
        try:
            with self._errors(f"s3://{self._bucket}/{key}"):
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
                with contextlib.closing(answer["Body"]) as body:
                    return body.read(), str(answer["ETag"])
        except InputError as error:
            if _code(error) in _MISSING:
                return None
            raise

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """See :class:`Storage`."""
        return self._put_if(name, content, IfNoneMatch="*")

    def put_if_match(self, name: str, content: bytes, tag: str) -> bool:
        """See :class:`Storage`."""
        return self._put_if(name, content, IfMatch=tag)

    def _put_if(self, name: str, content: bytes, **condition: str) -> bool:
        key = self._key(name)
        try:
            with self._errors(f"s3://{self._bucket}/{key}"):
                self._client.put_object(Bucket=self._bucket, Key=key, Body=content, **condition)
        except InputError as error:
            if _code(error) not in _REFUSED:
                raise
        except TransientError:
            # The request may have been carried out all the same; if it was not, the caller hears of the trouble.
            if self._holds(name, content):
                return True
            raise
        else:
            return True
        # boto3 repeats a request whose answer was lost; the repetition is then refused because of the first one.
        return self._holds(name, content)

    def _holds(self, name: str, content: bytes) -> bool:
        found = self.read_with_etag(name)
        return found is not None and found[0] == content


def _code(error: InputError) -> str:
    cause = error.__cause__
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""
