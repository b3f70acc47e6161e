"""Stores behind one Protocol: a landing zone looks the same in a folder and on S3."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.adapters.storage.base import Storage
from components.adapters.storage.local import LocalStorage
from components.core.errors import InputError

__all__ = ["open_storage"]


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
        from components.adapters.storage.s3 import S3Storage

        return S3Storage(uri, endpoint_url=endpoint_url)
    if uri.startswith("file://"):
        return LocalStorage(Path(unquote(urlsplit(uri).path)))
    if "://" in uri or not uri:
        raise InputError(f"storage address {uri!r} is not supported; expected a folder, file:// or s3://bucket/prefix")
    return LocalStorage(Path(uri))
