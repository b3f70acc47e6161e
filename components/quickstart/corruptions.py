"""Corruptions of images, the same on every machine: integer arithmetic, and PNG without a compressor."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grey", "black_frame", "blurred", "near_duplicate", "png"]

Grey = NDArray[np.uint8]

_BLUR_RADIUS_PX = 8
_MAX_STORED_BYTES = 65_535


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _stored(raw: bytes) -> bytes:
    """A zlib stream of stored blocks: its bytes depend on no version of zlib."""
    blocks = [raw[start : start + _MAX_STORED_BYTES] for start in range(0, len(raw), _MAX_STORED_BYTES)]
    out = [b"\x78\x01"]
    for index, block in enumerate(blocks):
        last = int(index == len(blocks) - 1)
        out.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
    out.append(struct.pack(">I", zlib.adler32(raw)))
    return b"".join(out)


def png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """A grey PNG file of ``(H, W)`` pixels, 8 or 16 bits deep as their type is."""
    height, width = pixels.shape
    depth = pixels.dtype.itemsize * 8
    lines = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", _stored(raw)) + _chunk(b"IEND", b"")


def blurred(pixels: Grey) -> Grey:
    """``pixels`` far out of focus: two passes of a box mean, rounded down, edges mirrored."""
    size = 2 * _BLUR_RADIUS_PX + 1
    out = pixels.astype(np.int64)
    for _ in range(2):
        padded = np.pad(out, _BLUR_RADIUS_PX, mode="reflect")
        sums = np.pad(padded.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        out = (sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]) // (size * size)
    return out.astype(np.uint8)


def near_duplicate(pixels: Grey) -> Grey:
    """``pixels`` as a second exposure a moment later: every third pixel one grey level brighter."""
    rows, columns = np.indices(pixels.shape)
    step = ((rows + columns) % 3 == 0) & (pixels < 255)
    out: Grey = pixels + step.astype(np.uint8)
    return out


def black_frame(image_size: tuple[int, int]) -> Grey:
    """A frame of ``(height, width)`` taken with the light off: levels 0 to 2."""
    rows, columns = np.indices(image_size)
    return ((rows * 7 + columns * 13) % 3).astype(np.uint8)
