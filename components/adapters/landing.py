"""Delivering a lot into the landing zone the way a producer must: the images first, the manifest last."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from components.adapters.storage import Storage, open_storage
from components.contracts import ModelKey, canonical_json
from components.errors import InputError

__all__ = ["deliver", "lot_manifest", "open_landing"]

_LOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


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
    *,
    manifest_name: str = "manifest.json",
) -> None:
    """Write a lot, unless it is there already.

    Args:
        storage: The landing zone.
        place: ``<product>/<line>/<camera>/<lot>``.
        images: Name in the lot -> file.
        manifest: Written last; ``None`` for a lot that is not complete.
        manifest_name: Its name.

    Raises:
        InputError: There is a lot of this name with other images.
    """
    last = f"{place}/{manifest_name}"
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
