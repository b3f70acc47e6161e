"""Delivering any images as a lot."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from components.adapters.landing import deliver, lot_manifest, open_landing
from components.core.contracts import ModelKey

__all__ = ["feed_from_folder"]


def feed_from_folder(
    images: Sequence[Path],
    landing: str,
    key: ModelKey,
    lot: str,
    date: str,
    *,
    parts: Mapping[str, str] | None = None,
    s3_endpoint_url: str = "",
) -> None:
    """Deliver any images as one lot with its manifest.

    Args:
        images: The files; their names become the names in the lot.
        landing: The landing zone: a folder, made if missing, or ``s3://bucket/prefix``.
        key: Whose lot.
        lot: Name of the lot.
        date: ``YYYY-MM-DD``, the day the lot was produced.
        parts: Name of an image -> serial number of its part, where that is known.
        s3_endpoint_url: Server of an ``s3://`` landing zone that is not AWS.
    """
    named = {path.name: path for path in images}
    manifest = lot_manifest(named, key, lot, date, parts=parts)
    deliver(open_landing(landing, s3_endpoint_url), f"{key.path}/{lot}", named, manifest.encode())
