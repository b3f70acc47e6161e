"""Which earlier normals are learnt again: a bounded choice that gives every night an equal share."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

__all__ = ["NormalImage", "choose_replay", "split_held_out"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalImage:
    """One accepted normal, by place and content."""

    path: str
    """Path inside the data repository."""
    sha256: str
    night: str
    """Partition it came with."""
    part: str = ""
    """Serial number of the part in the picture, if known."""
    doubtful: bool = False
    """Kept from training by screening, though no clear defect; only the threshold is calibrated on it."""


def _rank(image: NormalImage, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{image.sha256}".encode()).hexdigest()


def _drawn(part: str, seed: int) -> float:
    """Even in [0, 1), the same for all pictures of a part."""
    return int(hashlib.sha256(f"{seed}:{part}".encode()).hexdigest()[:13], 16) / 16**13


def choose_replay(history: Sequence[NormalImage], *, limit: int, seed: int) -> tuple[NormalImage, ...]:
    """Choose at most ``limit`` images, turn by turn from each night, within a night by hash.

    Adding nights only ever drops images, so an image that left never comes back and what stays is known in advance.

    Args:
        history: Images of all nights remembered so far.
        limit: Bound on the choice.
        seed: Decides the order within a night.

    Returns:
        The choice, sorted by night and path.
    """
    nights: dict[str, list[NormalImage]] = {}
    for image in {item.sha256: item for item in history}.values():
        nights.setdefault(image.night, []).append(image)
    ordered = [sorted(images, key=lambda image: _rank(image, seed)) for _, images in sorted(nights.items())]
    turns = [image for turn in zip_longest(*ordered) for image in turn if image is not None]
    return tuple(sorted(turns[:limit], key=lambda image: (image.night, image.path)))


def split_held_out(
    images: Sequence[NormalImage], *, share: float, seed: int, minimum: int = 4
) -> tuple[tuple[NormalImage, ...], tuple[NormalImage, ...]]:
    """Keep a share of the normals from training, chosen by content, or by part where that is known.

    A part is on the same side every night: a picture of a part that was learnt in another one is no stranger to the
    model, and a threshold calibrated on such pictures is too low for parts that are new.

    Args:
        images: Accepted normals of one night.
        share: Share to hold out: of the images, or of all parts there could be.
        seed: Decides the choice.
        minimum: Hold out at least this many, as long as one image is left to train on.

    Returns:
        Training images and held-out images, each sorted by path.
    """
    ordered = sorted(images, key=lambda image: _rank(image, seed))
    nameless = [image for image in ordered if not image.part]
    first = {image.sha256 for image in nameless[: round(share * len(nameless))]}
    chosen = [image for image in ordered if image.sha256 in first or (image.part and _drawn(image.part, seed) < share)]
    rest = [image for image in ordered if image not in chosen]
    ordered = [*chosen, *rest]
    count = min(max(len(chosen), minimum), max(0, len(ordered) - 1))
    held_out, training = ordered[:count], ordered[count:]

    def by_path(items: list[NormalImage]) -> tuple[NormalImage, ...]:
        return tuple(sorted(items, key=lambda image: image.path))

    return by_path(training), by_path(held_out)
