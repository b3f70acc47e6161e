"""Landing zone: what a lot's manifest says, and how a lot is delivered: the images first, the manifest last."""

import datetime as dt
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.adapters.storage import open_storage
from components.adapters.storage.base import Storage
from components.core.contracts import Contract, ModelKey, canonical_json
from components.core.errors import InputError, shorten

__all__ = ["MANIFEST_NAME", "LotImage", "LotManifest", "deliver", "lot_manifest", "open_landing"]

MANIFEST_NAME = "manifest.json"
"""A lot is complete when this file is there."""
_LOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_PART_BYTES = 200
_SHA256 = re.compile(r"[0-9a-f]{64}")
# DVC would take such files for its own.
_RESERVED_SUFFIXES = (".dvc", "dvc.yaml", "dvc.lock")


@dataclass(frozen=True, kw_only=True, slots=True)
class LotImage(Contract):
    """A file as its producer announced it."""

    name: str
    bytes: int
    sha256: str
    part: str = ""
    """Serial number of the part in the picture, where the producer knows it; pictures of one part stay together."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 of {self.name!r} must be 64 lower-case hex digits, got {self.sha256!r}")
        if self.bytes < 0:
            raise ValueError(f"bytes of {self.name!r} must not be negative, got {self.bytes}")
        if len(self.part.encode()) > _MAX_PART_BYTES or not self.part.isprintable():
            raise ValueError(
                f"part of {self.name!r} must be printable and of at most {_MAX_PART_BYTES} bytes, got {self.part!r}"
            )
        if not _is_plain(self.name):
            raise ValueError(
                f"image name {self.name!r} is refused: expected a file name of at most 200 bytes, without a path, "
                "a leading dot or control characters, and not DVC's own"
            )


def _is_plain(name: str) -> bool:
    return (
        0 < len(name.encode()) <= 200
        and not name.startswith(".")
        and not any(char in "/\\" or not char.isprintable() for char in name)
        and not name.endswith(_RESERVED_SUFFIXES)
    )


def _is_date(text: str) -> bool:
    try:
        return dt.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class LotManifest(Contract):
    """The producer's manifest of a lot."""

    key: str
    lot: str
    date: str
    """``YYYY-MM-DD``, the day the lot was produced."""
    images: tuple[LotImage, ...]

    def __post_init__(self) -> None:
        if not _is_date(self.date):
            raise ValueError(f"date must be YYYY-MM-DD, got {self.date!r}")
        if not self.images:
            raise ValueError("images is empty, expected at least one")
        # Case, and how an accent is written, count for nothing on some file systems: two files would become one there.
        names = Counter(unicodedata.normalize("NFC", image.name.casefold()) for image in self.images)
        twice = sorted(name for name, num in names.items() if num > 1)
        if twice:
            raise ValueError(f"images are named twice (upper and lower case alike): {shorten(twice)}")


def lot_manifest(
    images: Mapping[str, Path], key: ModelKey, lot: str, date: str, *, parts: Mapping[str, str] | None = None
) -> str:
    """The manifest of a lot, as ``collect`` reads it.

    Args:
        images: Name in the lot -> file.
        key: Whose lot.
        lot: Name of the lot.
        date: ``YYYY-MM-DD``, the day the lot was produced.
        parts: Name in the lot -> serial number of the part, where that is known.

    Returns:
        Canonical JSON; the same images give the same text.

    Raises:
        InputError: The lot's name is none.
    """
    if not _LOT.fullmatch(lot):
        raise InputError(f"lot {lot!r} must be named with letters, digits, '.', '_' and '-'")
    entries = []
    for name, path in sorted(images.items()):
        content = path.read_bytes()
        entry = {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        part = (parts or {}).get(name)
        entries.append({**entry, "part": part} if part else entry)
    return canonical_json({"key": key.slug, "lot": lot, "date": date, "images": entries})


def deliver(
    storage: Storage,
    place: str,
    images: Mapping[str, Path],
    manifest: bytes | None,
) -> None:
    """Write a lot, unless it is there already.

    Args:
        storage: The landing zone.
        place: ``<product>/<line>/<camera>/<lot>``.
        images: Name in the lot -> file.
        manifest: Written last; ``None`` for a lot that is not complete.

    Raises:
        InputError: There is a lot of this name with other images.
    """
    last = f"{place}/{MANIFEST_NAME}"
    if manifest is not None and storage.exists(last):
        if storage.read(last) != manifest:
            raise InputError(f"{storage.uri}/{place} is there already with other images; name another lot with --lot")
        return
    for name, path in images.items():
        storage.put(f"{place}/{name}", path)
    if manifest is not None:
        storage.put(last, manifest)


def open_landing(landing: str, s3_endpoint_url: str = "") -> Storage:
    """The landing zone: a folder, made if missing, or ``s3://bucket/prefix``."""
    if "://" not in landing:
        Path(landing).mkdir(parents=True, exist_ok=True)
    return open_storage(landing, endpoint_url=s3_endpoint_url)
