"""Collect: landing zone -> the night's batch of complete lots, copied and checked byte for byte.

A lot is a folder ``<landing>/<product>/<line>/<camera>/<lot>/`` with images and, written last by the producer, a
manifest: ``{"key": "product.line.camera", "lot": "...", "date": "YYYY-MM-DD", "images": [{"name", "bytes", "sha256",
"part"}]}``, where ``part`` may be left out. A night takes every complete lot that is dated on or before it and that no
other night has taken, an older one as ``late``. What it took is pinned in ``<run_dir>/collect/taken.json`` as the last
act, so that a re-run gives the same batch whatever has landed since. Whatever is *not* taken is said in ``waiting``,
never dropped.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from components.adapters.landing import MANIFEST_NAME, LotImage, LotManifest
from components.adapters.storage import open_storage
from components.adapters.storage.base import Storage
from components.core.atomic_files import write_json
from components.core.contracts import BatchRef, Contract, NightStatus, RunRef, digest_of, from_json
from components.core.errors import InputError, TransientError, shorten

__all__ = [
    "CollectInputs",
    "CollectOutputs",
    "TakenLot",
    "collect",
]

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 600.0
_MAX_MANIFEST_BYTES = 64 << 20
"""About 400,000 images; a larger file is no manifest, and is not read to its end."""
_NUM_COPIES = 8
"""Copies at once: an object store answers slowly but many at a time."""
_LOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_FINDINGS = 20
"""A message is for a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectInputs(Contract):
    """Which night, and where its images land."""

    run: RunRef
    landing: str
    """A folder or ``s3://bucket/prefix``."""
    s3_endpoint_url: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectOutputs(Contract):
    """The batch, or nothing new; and what was left in the landing zone, for people."""

    status: NightStatus
    batch: BatchRef | None
    waiting: tuple[str, ...]
    """Sentences, one per thing left behind or ignored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenLot(Contract):
    """A lot of the batch, as in the batch manifest."""

    lot: str
    date: str
    late: bool
    """Dated before the night that took it."""
    images: tuple[LotImage, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Taken(Contract):
    """The pin: what a night took, and what it said about the rest."""

    key: str
    partition: str
    lots: tuple[TakenLot, ...]
    waiting: tuple[str, ...]


def collect(inputs: CollectInputs) -> CollectOutputs:
    """Take the night's complete lots out of the landing zone.

    Args:
        inputs: Which night, and where its images land.

    Returns:
        The batch and what was left behind; ``NOTHING_NEW`` without a batch where no lot is ready. A night that took
        something gives the same outputs for ever; one that found nothing looks again when it is asked again.

    Raises:
        InputError: A manifest does not fit, or an image is missing or differs from it; names file, lot, expected, got.
        TransientError: The landing zone cannot be reached, or another night of this key is collecting.
    """
    run = inputs.run
    storage = open_storage(inputs.landing, endpoint_url=inputs.s3_endpoint_url)
    lock = run.run_dir.parent / ".collect.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        # One night of a key at a time, or two of them would take the same lot.
        with FileLock(lock, timeout=_LOCK_SECONDS):
            return _collect(inputs, storage)
    except Timeout:
        raise TransientError(
            f"{lock} has been held for {_LOCK_SECONDS:.0f} s by another collect of {run.key.slug}"
        ) from None


def _collect(inputs: CollectInputs, storage: Storage) -> CollectOutputs:
    folder = inputs.run.run_dir / "collect"
    pin = folder / "taken.json"
    taken = _read_pin(pin) if pin.exists() else _select(inputs, storage)
    if not taken.lots:
        logger.info("collect key=%s partition=%s nothing new", taken.key, taken.partition)
        return CollectOutputs(status=NightStatus.NOTHING_NEW, batch=None, waiting=taken.waiting)
    images = folder / "images"
    _copy_images(storage, inputs.run.key.path, taken.lots, images)
    manifest = {"key": taken.key, "partition": taken.partition, "lots": taken.lots}
    write_json(folder / MANIFEST_NAME, manifest)
    write_json(pin, taken)
    num_images = sum(len(lot.images) for lot in taken.lots)
    logger.info(
        "collect key=%s partition=%s lots=%d images=%d", taken.key, taken.partition, len(taken.lots), num_images
    )
    batch = BatchRef(
        manifest_path=str(folder / MANIFEST_NAME),
        image_dir=str(images),
        digest=digest_of(manifest),
        num_lots=len(taken.lots),
        num_images=num_images,
    )
    return CollectOutputs(status=NightStatus.NEW_IMAGES, batch=batch, waiting=taken.waiting)


def _read_pin(path: Path) -> _Taken:
    return from_json(_Taken, json.loads(path.read_text(encoding="utf-8")), where=str(path))


def _select(inputs: CollectInputs, storage: Storage) -> _Taken:
    """Which lots are this night's; nothing is copied or written."""
    run = inputs.run
    taken_by, waiting = _other_nights(run)
    lots: list[TakenLot] = []
    for name in storage.folders(run.key.path):
        place = f"{run.key.path}/{name}"
        if name in taken_by:
            continue
        if not _LOT.fullmatch(name):
            waiting.append(f"folder {place} is ignored: a lot is named with letters, digits, '.', '_' and '-'")
            continue
        files = {file.name[len(place) + 1 :]: file.num_bytes for file in storage.files(place)}
        if MANIFEST_NAME not in files:
            waiting.append(f"lot {name} has no {MANIFEST_NAME} yet; its {len(files)} files are left for later")
            continue
        manifest = _read_manifest(storage, f"{place}/{MANIFEST_NAME}", run, name)
        if manifest.date > run.partition:
            waiting.append(f"lot {name} is dated {manifest.date}, after this night; it is left for its own")
            continue
        _check_listing(f"{storage.uri}/{place}", manifest, files)
        unlisted = sorted(set(files) - {image.name for image in manifest.images} - {MANIFEST_NAME})
        if unlisted:
            waiting.append(
                f"lot {name} holds {len(unlisted)} files its manifest does not list, ignored: {shorten(unlisted)}"
            )
        lots.append(
            TakenLot(lot=name, date=manifest.date, late=manifest.date < run.partition, images=_by_name(manifest.images))
        )
    return _Taken(key=run.key.slug, partition=run.partition, lots=tuple(lots), waiting=tuple(waiting))


def _by_name(images: tuple[LotImage, ...]) -> tuple[LotImage, ...]:
    """One order whatever the producer's, so that the same images give the same digest."""
    return tuple(sorted(images, key=lambda image: image.name))


def _other_nights(run: RunRef) -> tuple[set[str], list[str]]:
    """Lots that other nights of the key took, and sentences on nights whose images never got any further."""
    taken: set[str] = set()
    waiting: list[str] = []
    for pin in sorted(run.run_dir.parent.glob("*/collect/taken.json")):
        night = pin.parent.parent
        lots = [lot.lot for lot in _read_pin(pin).lots]
        taken.update(lots)
        if night.name < run.partition and not any(night.glob("version/*/outputs.json")):
            waiting.append(f"night {night.name} took {shorten(lots)} but never versioned them: run that night again")
    return taken, waiting


def _read_manifest(storage: Storage, name: str, run: RunRef, lot: str) -> LotManifest:
    where = f"{storage.uri}/{name}"
    content = bytearray()
    for chunk in storage.chunks(name):
        content += chunk
        if len(content) > _MAX_MANIFEST_BYTES:
            raise InputError(f"{where} is larger than {_MAX_MANIFEST_BYTES >> 20} MiB, refused as a manifest")
    try:
        raw: Any = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise InputError(f"{where} is nested too deeply for a manifest") from None
    except ValueError as error:
        # A producer without atomic writes may be at it just now.
        raise TransientError(f"{where} is not JSON, or not all of it yet: {error}") from error
    try:
        manifest = from_json(LotManifest, raw, where=where)
    except ValueError as error:
        raise InputError(str(error)) from error
    for what, expected, got in (("key", run.key.slug, manifest.key), ("lot", lot, manifest.lot)):
        if expected != got:
            raise InputError(f"{where}: {what} is {got!r}, expected {expected!r} as its folder says")
    return manifest


def _check_listing(where: str, manifest: LotManifest, files: dict[str, int]) -> None:
    findings = []
    for image in manifest.images:
        if image.name not in files:
            findings.append(f"{image.name} is missing, expected {image.bytes} bytes")
        elif files[image.name] != image.bytes:
            findings.append(f"{image.name} has {files[image.name]} bytes, expected {image.bytes}")
    if findings:
        more = f"; and {len(findings) - _MAX_FINDINGS} more" if len(findings) > _MAX_FINDINGS else ""
        told = "; ".join(findings[:_MAX_FINDINGS])
        raise InputError(f"lot {manifest.lot} at {where} differs from its manifest: {told}{more}")


def _copy_images(storage: Storage, key_path: str, lots: tuple[TakenLot, ...], images: Path) -> None:
    wanted = {images / lot.lot / image.name: (lot, image) for lot in lots for image in lot.images}
    for target in [path for path in images.rglob("*") if path.is_file() and path not in wanted]:
        target.unlink()  # an earlier attempt that chose differently, or died within a copy

    def copy(item: tuple[Path, tuple[TakenLot, LotImage]]) -> None:
        target, (lot, image) = item
        if not (target.is_file() and _sha256(target) == image.sha256):
            _copy_checked(storage, f"{key_path}/{lot.lot}/{image.name}", target, lot.lot, image)

    with ThreadPoolExecutor(_NUM_COPIES) as pool:
        for _ in pool.map(copy, wanted.items()):
            pass


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_checked(storage: Storage, name: str, target: Path, lot: str, image: LotImage) -> None:
    """Copy while hashing; ``target`` appears only when it is what the manifest says."""
    digest = hashlib.sha256()
    num_bytes = 0

    def passing() -> Iterator[bytes]:
        nonlocal num_bytes
        for chunk in storage.chunks(name):
            digest.update(chunk)
            num_bytes += len(chunk)
            if num_bytes > image.bytes:  # it grew since it was listed, and may go on to
                raise InputError(
                    f"image {image.name} of lot {lot} at {storage.uri}/{name}: expected {image.bytes} bytes, got more: "
                    f"it changed while it was read"
                )
            yield chunk

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    try:
        with temporary.open("wb") as file:
            file.writelines(passing())
        if (num_bytes, digest.hexdigest()) != (image.bytes, image.sha256):
            raise InputError(
                f"image {image.name} of lot {lot} at {storage.uri}/{name}: expected {image.bytes} bytes with sha256 "
                f"{image.sha256}, got {num_bytes} bytes with sha256 {digest.hexdigest()}"
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
