"""Folders in MVTec layout: what is good, what is defective, and where.

::

    <root>/train/good/<name>.png                          normals to learn from (optional)
    <root>/test/good/<name>.png                           normals to be judged on
    <root>/test/<defect>/<name>.png                       one folder per defect class
    <root>/ground_truth/<defect>/<name>_mask.png          masks: for all defective images, or for none
    <root>/strata.csv                                     optional: header ``path,stratum`` or ``path,stratum,lot``,
                                                          one line per test image
"""

import csv
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stlm.constants import GOOD
from stlm.data.image_files import open_image
from stlm.errors import DataError

__all__ = ["GoldenItem", "GoldenSet", "read_golden_set", "read_train_normals"]

logger = logging.getLogger(__name__)

_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_ONE_STRATUM = "all"
_STRATA_FILE = "strata.csv"
_IS_EMPTY = " is empty, expected at least one defect pixel"


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenItem:
    """An image with its truth."""

    path: Path
    defect: str
    """``good`` or the defect class."""
    mask_path: Path | None
    """Mask of the image's own size, defect pixels not 0; ``None`` for good images and where there are no masks."""
    stratum: str
    """Part of the set that is also measured on its own; ``all`` where the set is not divided."""
    lot: str = ""
    """Images of one lot are not independent and are drawn together; empty for an image that stands for itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenSet:
    """Images on which models are judged, sorted by class and name."""

    root: Path
    items: tuple[GoldenItem, ...]
    digest: str
    """sha256 over relative names and contents of everything that was read; the same on every machine."""
    has_masks: bool


def read_golden_set(root: Path, *, leave_out_unmarked: bool = False) -> GoldenSet:
    """Read and check a golden set.

    Args:
        root: Folder with ``test`` and, if there are masks, ``ground_truth``.
        leave_out_unmarked: A defective image whose mask is empty is left out with a warning instead of refused: for
            benchmarks that somebody else has published so.

    Returns:
        All images below ``test``.

    Raises:
        DataError: Images are missing, of unknown type or not readable; a mask is missing, empty, not binary, of
            another size than its image, or without one. All findings are listed.
    """
    findings: list[str] = []
    images = _test_images(root, findings)
    truth = root / "ground_truth"
    has_masks = truth.is_dir() and any(_files(folder) for folder in truth.iterdir() if folder.is_dir())
    strata = _strata(root, {path.relative_to(root).as_posix() for path, _ in images}, findings)
    items = []
    used: set[Path] = set()
    for path, defect in images:
        mask = truth / defect / f"{path.stem}_mask.png" if has_masks and defect != GOOD else None
        used |= {mask} if mask else set()
        name = path.relative_to(root).as_posix()
        problems = list(_image_findings(root, path, mask))
        if leave_out_unmarked and len(problems) == 1 and problems[0].endswith(_IS_EMPTY):
            logger.warning("golden set %s: %s is left out, because its mask is empty", root, name)
            continue
        findings.extend(problems)
        stratum, lot = strata.get(name, (_ONE_STRATUM, ""))
        items.append(GoldenItem(path=path, defect=defect, mask_path=mask, stratum=stratum, lot=lot))
    if has_masks:
        masks = {path for folder in truth.iterdir() if folder.is_dir() for path in _files(folder)}
        findings += [f"{path.relative_to(root)} belongs to no image" for path in sorted(masks - used)]
    if findings:
        raise DataError(f"golden set {root}: {'; '.join(findings)}")
    files = [item.path for item in items] + sorted(item.mask_path for item in items if item.mask_path)
    files += [root / _STRATA_FILE] if strata else []
    return GoldenSet(root=root, items=tuple(items), digest=_digest(root, files), has_masks=has_masks)


def read_train_normals(root: Path) -> tuple[Path, ...]:
    """Images of ``train/good``, sorted by name.

    Args:
        root: Folder in MVTec layout.

    Returns:
        At least one file.

    Raises:
        DataError: There is none, or something else lies among them.
    """
    folder = root / "train" / GOOD
    files = _files(folder) if folder.is_dir() else []
    strange = [path.name for path in files if path.suffix.lower() not in _SUFFIXES]
    if strange:
        raise DataError(f"{folder}: not an image: {', '.join(strange)}")
    if not files:
        raise DataError(f"{folder} has no images, expected the normals to learn from")
    return tuple(files)


def _files(folder: Path) -> list[Path]:
    """Files that are not hidden, sorted; file managers leave hidden ones everywhere."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _test_images(root: Path, findings: list[str]) -> list[tuple[Path, str]]:
    """Images and their classes, sorted by class and name."""
    test = root / "test"
    if not test.is_dir():
        raise DataError(f"golden set {root} has no folder test")
    images: list[tuple[Path, str]] = []
    findings += [f"test/{path.name} lies outside the folder of a class" for path in _files(test)]
    for folder in sorted(path for path in test.iterdir() if path.is_dir() and not path.name.startswith(".")):
        stems: dict[str, str] = {}
        for path in _files(folder):
            name = path.relative_to(root)
            if path.suffix.lower() not in _SUFFIXES:
                findings.append(f"{name} is not an image")
                continue
            if path.stem in stems:
                findings.append(f"{name} and {stems[path.stem]} would share a mask")
            stems[path.stem] = path.name
            images.append((path, folder.name))
        findings += [] if stems else [f"test/{folder.name} has no images"]
    if not images and not findings:
        findings.append("test has no images")
    return images


def _image_findings(root: Path, path: Path, mask: Path | None) -> Iterator[str]:
    name = path.relative_to(root)
    try:
        with open_image(path) as image:
            size = image.size
    except (OSError, Image.DecompressionBombError) as error:
        yield f"{name} cannot be read ({error})"
        return
    if mask is None:
        return
    mask_name = mask.relative_to(root)
    if not mask.is_file():
        yield f"{name} has no mask, expected {mask_name}"
        return
    try:
        with open_image(mask) as opened:
            if opened.size != size:
                yield f"mask {mask_name} is {opened.size[::-1]}, image {name} is {size[::-1]} (height, width)"
                return
            levels = np.unique(np.asarray(opened.convert("L")))
    except (OSError, Image.DecompressionBombError) as error:
        yield f"mask {mask_name} cannot be read ({error})"
        return
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        yield f"mask {mask_name} has {len(levels)} grey levels, expected 0 and one other"
    elif not levels.any():
        yield f"mask {mask_name}{_IS_EMPTY}"


def _strata(root: Path, names: set[str], findings: list[str]) -> dict[str, tuple[str, str]]:
    """Image name relative to ``root`` -> stratum and lot; empty without a strata file."""
    path = root / _STRATA_FILE
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames not in (["path", "stratum"], ["path", "stratum", "lot"]):
            findings.append(f"{_STRATA_FILE} has columns {reader.fieldnames}, expected path,stratum[,lot]")
            return {}
        strata = {row["path"]: (row["stratum"] or "", row.get("lot") or "") for row in reader}
    findings += [f"{_STRATA_FILE} names {name}, which is no test image" for name in sorted(set(strata) - names)]
    nothing = ("", "")
    unnamed = [name for name in sorted(names) if not strata.get(name, nothing)[0]]
    findings += [f"{_STRATA_FILE} has no stratum for {name}" for name in unnamed]
    return strata


def _digest(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
