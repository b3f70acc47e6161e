"""Source images of a folder: which can be scored, and in one line why the others cannot."""

from dataclasses import dataclass, replace
from pathlib import Path

from components.core.contracts import Contract
from components.core.errors import InputError
from stlm.data.facts import ImageFacts, read_facts

__all__ = ["SourceImage", "list_images", "refuse_small"]

_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_MODES = ("L", "RGB")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage(Contract):
    """One file of the folder."""

    name: str
    """Relative to the folder, with ``/``."""
    bytes: int
    sha256: str
    height: int = 0
    width: int = 0
    refused: str = ""
    """Why it cannot be judged; empty where it can."""


def list_images(folder: Path, *, max_pixels: int) -> tuple[SourceImage, ...]:
    """All images below a folder, sorted by name.

    Args:
        folder: Images, or sub-folders with images such as lots; hidden files and files that are no images by their
            suffix do not count.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        At least one, each with the reason for which it is refused, if it is.

    Raises:
        InputError: The folder is missing, or has no images.
    """
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    if not names:
        raise InputError(f"folder {folder} has no images, expected files like {', '.join(sorted(_SUFFIXES))}")
    facts = read_facts([folder / name for name in names], max_pixels=max_pixels)
    return tuple(
        SourceImage(
            name=name,
            bytes=fact.num_bytes,
            sha256=fact.sha256,
            height=fact.height or 0,
            width=fact.width or 0,
            refused=_why_not(fact),
        )
        for name, fact in zip(names, facts, strict=True)
    )


def refuse_small(listed: tuple[SourceImage, ...], folder: Path, min_side_px: int) -> tuple[SourceImage, ...]:
    """Refuse what is smaller than a patch as well.

    Args:
        listed: Of :func:`list_images`.
        folder: Whose images they are, for the message.
        min_side_px: Side of a patch of whoever judges.

    Returns:
        The same images; at least one is not refused.

    Raises:
        InputError: None can be judged; the first reasons are listed.
    """
    checked = tuple(
        image
        if image.refused or min(image.height, image.width) >= min_side_px
        else replace(
            image, refused=f"{image.height} x {image.width} pixels, smaller than one patch of {min_side_px} pixels"
        )
        for image in listed
    )
    if all(image.refused for image in checked):
        reasons = "; ".join(f"{image.name}: {image.refused}" for image in checked[:5])
        raise InputError(f"folder {folder}: none of its {len(checked)} images can be judged: {reasons}")
    return checked


def _why_not(fact: ImageFacts) -> str:
    if not fact.decodes:
        return fact.error
    if fact.mode not in _MODES:
        alpha = " with transparency" if fact.mode in ("RGBA", "LA", "PA") else ""
        return f"expected 8-bit grey or RGB, got {fact.bit_depth}-bit {fact.mode}{alpha}"
    if fact.bit_depth != 8:
        return f"expected 8 bits a channel, got {fact.bit_depth}"
    return ""
