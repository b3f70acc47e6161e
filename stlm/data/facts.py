"""What can be said about an image file without a model: one row per file, whatever is in it.

The perceptual hash has 256 bits: the signs of the 16 × 16 lowest horizontal-and-vertical frequencies of the 64 × 64
picture. Parts from one camera look alike, and the usual 64-bit hashes take them for copies: of 588 normal cells of
ELPV, 449 have a neighbour within 8 of 64 bits (DCT hash) or 562 (difference hash). Here the nearest two different
cells are 19 of 256 bits apart, while a copy that is 5 % brighter and saved as JPEG is within 14 bits in 99 %.
"""

import datetime as dt
import hashlib
import io
import math
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy.fft import dctn
from skimage.measure import blur_effect

from stlm.data.image_files import open_image

__all__ = ["HASH_BITS", "ImageFacts", "hash_words", "image_facts", "nearest_hashes", "read_facts"]

HASH_BITS = 256
_HASH_SIDE = 16
_HASH_PICTURE = 64
_BITS_OF_MODE = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}
_MEASURED_PIXELS = 4_000_000
"""Larger pictures are reduced by a whole factor before they are measured."""
_SHARPNESS_WINDOW = 5
_EXIF_IFD, _EXIF_TAKEN, _EXIF_MODIFIED = 0x8769, 36867, 306
_TIFF_BITS = 258


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """One file; where it does not decode, ``error`` says why and what was not reached is ``None``."""

    num_bytes: int
    sha256: str
    """Hex digest of the file; empty where it could not be read."""
    decodes: bool
    error: str
    format: str | None = None
    mode: str | None = None
    """Pillow's mode."""
    bit_depth: int | None = None
    """Bits per channel in the file, which may be more than Pillow hands out."""
    height: int | None = None
    width: int | None = None
    brightness: float | None = None
    """Mean grey level in [0, 1]."""
    sharpness: float | None = None
    """``1 - blur`` of Crete et al. (2007) in [0, 1]; ``None`` for a picture without any edge."""
    entropy_bits: float | None = None
    """Of the histogram of 256 grey levels."""
    hash: str | None = None
    """Hex of the 256-bit perceptual hash."""
    taken_at: str | None = None
    """Local time from EXIF, ISO 8601, where the file has one."""


def read_facts(paths: Sequence[Path], *, max_pixels: int, num_threads: int = 0) -> list[ImageFacts]:
    """Facts of many files; see :func:`image_facts`.

    Args:
        paths: The files.
        max_pixels: Larger images are refused before they are decoded.
        num_threads: 0 for the number of processors.

    Returns:
        One per file, in order.
    """
    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda path: image_facts(path, max_pixels=max_pixels), paths))


def image_facts(path: Path, *, max_pixels: int) -> ImageFacts:
    """Facts of a file; never raises for what is, or is not, in it.

    Args:
        path: A regular file; a link or a folder is a finding, not followed.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        The facts, or why there are none.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return ImageFacts(num_bytes=0, sha256="", decodes=False, error="no regular file")
        content = path.read_bytes()
    except OSError as error:
        return ImageFacts(num_bytes=0, sha256="", decodes=False, error=f"cannot be read: {error.strerror}")
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        return _facts_of_content(content, sha256, max_pixels)
    except Exception as error:  # noqa: BLE001 -- a broken file may raise anything in its decoder
        # Pillow names the buffer's address, which is another one each time.
        message = "no image that can be read" if isinstance(error, UnidentifiedImageError) else str(error)
        return ImageFacts(num_bytes=len(content), sha256=sha256, decodes=False, error=message or repr(error))


def _facts_of_content(content: bytes, sha256: str, max_pixels: int) -> ImageFacts:
    if not content:
        return ImageFacts(num_bytes=0, sha256=sha256, decodes=False, error="empty file")
    with open_image(io.BytesIO(content)) as image:
        if image.width * image.height > max_pixels:
            message = f"{image.height} x {image.width} pixels, at most {max_pixels} are decoded"
            return ImageFacts(num_bytes=len(content), sha256=sha256, decodes=False, error=message)
        image.load()
        depth = _bit_depth(image, content)
        grey = _grey(image)
        levels = np.bincount((grey * 255.0 + 0.5).astype(np.uint8).ravel(), minlength=256)
        shares = levels[levels > 0] / grey.size
        return ImageFacts(
            num_bytes=len(content),
            sha256=sha256,
            decodes=True,
            error="",
            format=image.format,
            mode=image.mode,
            bit_depth=depth,
            height=image.height,
            width=image.width,
            brightness=float(grey.mean()),
            sharpness=_sharpness(grey),
            entropy_bits=float(max(0.0, -(shares * np.log2(shares)).sum())),
            hash=_perceptual_hash(grey),
            taken_at=_taken_at(image),
        )


def _bit_depth(image: Image.Image, content: bytes) -> int:
    if image.format == "PNG":
        return content[24]  # Pillow hands out 8 bits where the file has 2, 4 or, in colour, 16
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        bits = image.tag_v2.get(_TIFF_BITS, (1,))
        return int(max(bits) if isinstance(bits, tuple) else bits)
    return _BITS_OF_MODE.get(image.mode, 8)


def _grey(image: Image.Image) -> NDArray[np.float32]:
    """``(H, W)`` float32 in [0, 1], reduced where the picture is very large."""
    factor = math.isqrt(max(1, image.width * image.height // _MEASURED_PIXELS))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float32)[::factor, ::factor]
        top = 65535.0 if image.mode.startswith("I;16") else float(max(values.max(), 1.0))
        scaled: NDArray[np.float32] = np.nan_to_num(values / top).clip(0.0, 1.0)
        return scaled
    grey = image.convert("L")
    return np.asarray(grey.reduce(factor) if factor > 1 else grey, dtype=np.float32) / 255.0


def _sharpness(grey: NDArray[np.float32]) -> float | None:
    if min(grey.shape) <= _SHARPNESS_WINDOW or float(np.ptp(grey)) == 0.0:
        return None
    sharpness = 1.0 - float(blur_effect(grey, h_size=_SHARPNESS_WINDOW))  # type: ignore[no-untyped-call]
    return sharpness if math.isfinite(sharpness) else None


def _perceptual_hash(grey: NDArray[np.float32]) -> str:
    small = Image.fromarray(grey).resize((_HASH_PICTURE, _HASH_PICTURE), Image.Resampling.BOX)
    waves = dctn(np.asarray(small), norm="ortho")[1 : _HASH_SIDE + 1, 1 : _HASH_SIDE + 1]
    return np.packbits(waves > 0.0).tobytes().hex()


def _taken_at(image: Image.Image) -> str | None:
    exif = image.getexif()
    text = exif.get_ifd(_EXIF_IFD).get(_EXIF_TAKEN) or exif.get(_EXIF_MODIFIED)
    try:
        # EXIF knows no time zone: the camera's local time, as it is.
        return dt.datetime.strptime(str(text), "%Y:%m:%d %H:%M:%S").isoformat()  # noqa: DTZ007
    except ValueError:
        return None


def nearest_hashes(hashes: Sequence[str], others: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each hash the nearest of ``others``.

    Args:
        hashes: ``N`` hex hashes.
        others: ``M`` hex hashes, at least one.

    Returns:
        ``(N,)`` index into ``others`` and ``(N,)`` number of differing bits; the first one of equals.
    """
    mine, theirs = hash_words(hashes), hash_words(others)
    nearest = np.zeros(len(mine), dtype=np.int64)
    distances = np.zeros(len(mine), dtype=np.int64)
    for row, words in enumerate(mine):
        bits = np.bitwise_count(theirs ^ words).sum(axis=1, dtype=np.int64)
        nearest[row] = bits.argmin()
        distances[row] = bits[nearest[row]]
    return nearest, distances


def hash_words(hashes: Sequence[str]) -> NDArray[np.uint64]:
    """``(N, 4)`` words of ``N`` hex hashes, whose differing bits are those of their exclusive or."""
    content = b"".join(bytes.fromhex(value) for value in hashes)
    words = np.frombuffer(content, dtype=np.uint64) if content else np.empty(0, dtype=np.uint64)
    return words.reshape(len(hashes), HASH_BITS // 64)
