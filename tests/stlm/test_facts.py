"""Whatever is in a file, its facts come out; and copies are told from look-alikes."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from stlm.data.facts import HASH_BITS, image_facts, nearest_hashes, read_facts

LIMIT = 1_000_000


def picture(seed: int = 0, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """``size`` is (height, width)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 200, (8, 8), dtype=np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    grain = rng.normal(0, 5, size)
    return Image.fromarray(np.clip(np.asarray(coarse, dtype=float) + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_colour_png(pixels: NDArray[np.uint16]) -> bytes:
    """16 bits per channel in colour, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = pixels.shape
    raw = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def bits_apart(one: str | None, other: str | None) -> int:
    assert one is not None
    assert other is not None
    return (int(one, 16) ^ int(other, 16)).bit_count()


def facts_of(tmp_path: Path, content: bytes):  # type: ignore[no-untyped-def]
    path = tmp_path / "image.png"
    path.write_bytes(content)
    return image_facts(path, max_pixels=LIMIT)


def test_a_good_picture_is_measured(tmp_path: Path) -> None:
    image = picture()

    facts = facts_of(tmp_path, content := encoded(image))

    assert facts.decodes
    assert facts.error == ""
    assert (facts.num_bytes, facts.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (facts.format, facts.mode, facts.bit_depth, facts.height, facts.width) == ("PNG", "L", 8, 96, 80)
    assert facts.brightness == pytest.approx(np.asarray(image).mean() / 255, abs=1e-6)
    assert facts.taken_at is None


def test_entropy_of_four_equally_frequent_levels_is_two_bits(tmp_path: Path) -> None:
    levels = np.repeat(np.array([0, 80, 160, 240], np.uint8), 64 * 16).reshape(64, 64)

    assert facts_of(tmp_path, encoded(Image.fromarray(levels))).entropy_bits == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "empty file"),
        (b"frame grabber: no signal\n", "no image that can be read"),
        (encoded(picture())[:2000], "truncated"),
        (encoded(picture(), "JPEG")[:800], "truncated"),
        (encoded(picture(), "GIF"), "no image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image that can be read"),
    ],
    ids=["empty", "text", "truncated PNG", "truncated JPEG", "GIF", "PostScript"],
)
def test_what_is_no_readable_photograph_is_a_finding(tmp_path: Path, content: bytes, error: str) -> None:
    facts = facts_of(tmp_path, content)

    assert not facts.decodes
    assert error in facts.error
    assert facts.sha256 == hashlib.sha256(content).hexdigest()
    assert facts.brightness is None


def test_the_same_broken_file_gives_the_same_words_twice(tmp_path: Path) -> None:
    assert facts_of(tmp_path, b"no image") == facts_of(tmp_path, b"no image")


def test_a_picture_larger_than_allowed_is_not_decoded(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, encoded(Image.new("L", (2000, 1000))))

    assert not facts.decodes
    assert facts.error == "1000 x 2000 pixels, at most 1000000 are decoded"


def test_a_header_that_promises_a_million_megapixels_is_refused_at_once(tmp_path: Path) -> None:
    content = bytearray(encoded(picture()))
    content[16:24] = struct.pack(">II", 1_000_000, 1_000_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))

    facts = facts_of(tmp_path, bytes(content))

    assert not facts.decodes
    assert facts.error


def test_links_folders_and_missing_files_are_findings(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(encoded(picture()))
    (tmp_path / "link.png").symlink_to("real.png")
    (tmp_path / "folder.png").mkdir()
    names = ["real.png", "link.png", "folder.png", "missing.png"]

    facts = read_facts([tmp_path / name for name in names], max_pixels=LIMIT)

    assert [fact.decodes for fact in facts] == [True, False, False, False]
    assert [fact.error for fact in facts[1:3]] == ["no regular file"] * 2
    assert "cannot be read" in facts[3].error


def test_bit_depth_is_that_of_the_file_not_of_what_pillow_hands_out(tmp_path: Path) -> None:
    grey = np.asarray(picture(), np.uint16) * 257
    colour = np.stack([grey] * 3, axis=-1)

    deep_grey = facts_of(tmp_path, encoded(Image.fromarray(grey)))
    deep_colour = facts_of(tmp_path, deep_colour_png(colour))

    assert (deep_grey.mode, deep_grey.bit_depth) == ("I;16", 16)
    assert (deep_colour.mode, deep_colour.bit_depth) == ("RGB", 16)
    assert deep_grey.brightness == pytest.approx(np.asarray(picture()).mean() / 255, abs=1e-4)
    assert facts_of(tmp_path, encoded(Image.fromarray(grey), "TIFF")).bit_depth == 16
    assert facts_of(tmp_path, encoded(picture().convert("1"))).bit_depth == 1


def test_blur_lowers_sharpness_and_a_flat_frame_has_none(tmp_path: Path) -> None:
    from PIL import ImageFilter

    sharp = facts_of(tmp_path, encoded(picture())).sharpness
    blurred = facts_of(tmp_path, encoded(picture().filter(ImageFilter.GaussianBlur(3)))).sharpness

    assert blurred < 0.5 * sharp
    assert facts_of(tmp_path, encoded(Image.new("L", (64, 64), 90))).sharpness is None


def test_capture_time_is_read_from_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[36867] = "2026:03:01 22:15:00"

    assert facts_of(tmp_path, encoded(picture(), "JPEG", exif=exif)).taken_at == "2026-03-01T22:15:00"


def test_brighter_copies_saved_again_stay_near_and_other_pictures_stay_far(tmp_path: Path) -> None:
    size = (200, 200)
    hashes = [facts_of(tmp_path, encoded(picture(seed, size))).hash for seed in range(40)]
    copies = [ImageEnhance.Brightness(picture(seed, size)).enhance(1.04) for seed in range(40)]
    copied = [facts_of(tmp_path, encoded(copy, "JPEG", quality=88)).hash for copy in copies]

    near = [bits_apart(one, copy) <= 14 for one, copy in zip(hashes, copied, strict=True)]
    _, far = nearest_hashes(hashes[1:], hashes[:1])

    assert np.mean(near) >= 0.95
    assert far.min() > 40


@settings(max_examples=25)
@given(
    st.lists(st.binary(min_size=HASH_BITS // 8, max_size=HASH_BITS // 8), min_size=1, max_size=6),
    st.lists(st.binary(min_size=HASH_BITS // 8, max_size=HASH_BITS // 8), min_size=1, max_size=6),
)
def test_nearest_hashes_agree_with_counting_bits_one_by_one(mine: list[bytes], theirs: list[bytes]) -> None:
    hashes, others = [value.hex() for value in mine], [value.hex() for value in theirs]

    nearest, bits = nearest_hashes(hashes, others)

    for row, value in enumerate(hashes):
        apart = [bits_apart(value, other) for other in others]
        assert (int(nearest[row]), int(bits[row])) == (apart.index(min(apart)), min(apart))


def test_any_bytes_give_facts_and_no_exception(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = encoded(picture())
    for _ in range(200):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 6):
            content[place] = rng.integers(256)
        facts = facts_of(tmp_path, bytes(content))
        assert facts.decodes or facts.error
