"""Quick start's data: real photographs of solar cells, three nights with real trouble, and a golden set.

The photographs come from the installed package ``elpv-dataset`` (images CC BY-NC-SA 4.0; for demonstration only).
``data/landing`` holds the three nights' lots, ``data/golden`` the golden set in MVTec layout, ``data/planted.json``
the truth about every landing image, which only measurements read. Everything is made byte for byte the same on every
machine: genuine files are copied, made ones are written without a compressor, and nothing is drawn at random.
"""

import argparse
import hashlib
import importlib.util
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from components.adapters.landing import MANIFEST_NAME, deliver, lot_manifest, open_landing
from components.core.contracts import ModelKey, canonical_json
from components.core.errors import EXIT_INPUT_ERROR, InputError
from components.quickstart import corruptions
from stlm.data.image_files import open_image

__all__ = ["KEY", "NIGHTS", "feed_landing", "main", "materialise"]

logger = logging.getLogger(__name__)

KEY = ModelKey(product="elpv-mono", line="line1", camera="cam1")
NIGHTS = ("2026-11-01", "2026-11-02", "2026-11-03")

_SEED = 1
_NUM_NORMALS, _NUM_DEFECTS = 588, 313
_NUM_GOLDEN_GOOD = 188
_SOURCE_SHA256 = "4579c655be684d072e3d5a229c19c20221598fb9fac87d270137d1be66baf2d1"
"""Digest of the 901 photographs that are used, over names and contents."""
_TREE_SHA256 = "e3fe290a9cb0e457c5a04806d1378bd4a84013f00965031477b16d6099bd1a1f"
"""Digest of the finished ``data`` folder, over names and contents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Night:
    """The recipe of a night."""

    date: str
    lots: tuple[str, ...]
    num_normals: int
    """Photographs of normal cells, the spoiled ones included."""
    spoiled: tuple[str, ...]
    """Troubles made of a photograph that is not used otherwise."""
    added: tuple[str, ...]
    """Troubles that are files of their own."""
    num_defective: int = 4
    unannounced: tuple[int, ...] = ()
    """Sizes of further lots of good images whose manifest never comes."""


_PLAN = (
    _Night(
        date=NIGHTS[0],
        lots=("a", "b", "c"),
        num_normals=240,
        spoiled=("truncated", "16-bit", "wrong size", "blurred"),
        added=("empty", "text", "black", "exact duplicate", "near duplicate"),
    ),
    _Night(
        date=NIGHTS[1],
        lots=("a", "b"),
        num_normals=80,
        spoiled=("truncated", "blurred"),
        added=("black", "exact duplicate of an earlier night"),
        unannounced=(8,),
    ),
    _Night(
        date=NIGHTS[2],
        lots=("a", "b"),
        num_normals=80,
        spoiled=("16-bit", "wrong size"),
        added=("text", "near duplicate of an earlier night", "copy of a golden image"),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """A file of a lot before it has a name."""

    kind: str
    cell: str
    """The photograph it is, or is made of; empty where it is made of nothing."""
    content: bytes


@dataclass(kw_only=True, slots=True)
class _Cells:
    """The photographs, dealt out once."""

    folder: Path
    normals: list[str]
    defects: list[str]
    golden: list[str]
    earlier: list[str] = field(default_factory=list)
    """Good cells of the nights dealt so far."""

    def read(self, cell: str) -> bytes:
        return (self.folder / cell).read_bytes()


def _order(names: Sequence[str], salt: str) -> list[str]:
    """A shuffle that no library version can change."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{_SEED}:{salt}:{name}".encode()).digest())


def _source_cells() -> _Cells:
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise InputError("package elpv-dataset is not installed; the quick start's photographs come from it")
    folder = Path(spec.origin).parent / "data"
    rows = [line.split() for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines()]
    mono = [(name, float(probability)) for name, probability, kind in rows if kind == "mono"]
    normals = sorted(name for name, probability in mono if probability == 0.0)
    defects = sorted(name for name, probability in mono if probability == 1.0)
    if (len(normals), len(defects)) != (_NUM_NORMALS, _NUM_DEFECTS):
        raise InputError(
            f"{folder} has {len(normals)} normal and {len(defects)} defective mono cells, "
            f"expected {_NUM_NORMALS} and {_NUM_DEFECTS}"
        )
    digest = _digest((name, folder / name) for name in [*normals, *defects])
    if digest != _SOURCE_SHA256:
        raise InputError(f"photographs in {folder} have sha256 {digest}, expected {_SOURCE_SHA256}")
    shuffled = _order(normals, "normals")
    return _Cells(
        folder=folder,
        normals=shuffled[_NUM_GOLDEN_GOOD:],
        golden=shuffled[:_NUM_GOLDEN_GOOD],
        defects=_order(defects, "defects"),
    )


def _digest(files: Iterator[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _tree_digest(folder: Path) -> str:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return _digest((name, folder / name) for name in names)


def _pixels(cells: _Cells, cell: str) -> corruptions.Grey:
    with open_image(cells.folder / cell) as image:
        return np.asarray(image)


def _spoiled(cells: _Cells, kind: str, cell: str) -> bytes:
    """The file of a trouble; what has no rule of its own (a duplicate, a copy) is the photograph itself."""
    rules: dict[str, Callable[[], bytes]] = {
        "truncated": lambda: cells.read(cell)[: len(cells.read(cell)) * 3 // 5],
        "16-bit": lambda: corruptions.png(_pixels(cells, cell).astype(np.uint16) * 257),
        "wrong size": lambda: corruptions.png(_pixels(cells, cell)[30:270]),
        "blurred": lambda: corruptions.png(corruptions.blurred(_pixels(cells, cell))),
        "near duplicate": lambda: corruptions.png(corruptions.near_duplicate(_pixels(cells, cell))),
        "black": lambda: corruptions.png(corruptions.black_frame((300, 300))),
        "text": lambda: b"frame grabber: no signal\n",
        "empty": lambda: b"",
    }
    rule = rules.get(kind.removesuffix(" of an earlier night"), lambda: cells.read(cell))
    return rule()


def _deal(cells: _Cells, night: _Night) -> dict[str, list[_Item]]:
    """The night's lots, in which trouble and good images lie mixed."""
    taken = [cells.normals.pop() for _ in range(night.num_normals)]
    raw = [taken.pop() for _ in night.spoiled]
    lots: dict[str, list[_Item]] = {}
    for index, size in enumerate(night.unannounced):
        held_back = [taken.pop() for _ in range(size)]
        name = chr(ord("a") + len(night.lots) + index)
        lots[name] = [_Item(kind="normal, lot without manifest", cell=c, content=cells.read(c)) for c in held_back]
    items = [_Item(kind="normal", cell=cell, content=cells.read(cell)) for cell in taken]
    for kind, cell in zip(night.spoiled, raw, strict=True):
        items.append(_Item(kind=kind, cell=cell, content=_spoiled(cells, kind, cell)))
    for index, kind in enumerate(night.added):
        pool = cells.golden if "golden" in kind else cells.earlier if "earlier" in kind else taken
        cell = "" if kind in ("empty", "text", "black") else pool[index]
        items.append(_Item(kind=kind, cell=cell, content=_spoiled(cells, kind, cell)))
    for _ in range(night.num_defective):
        cell = cells.defects.pop()
        items.append(_Item(kind="defective", cell=cell, content=cells.read(cell)))
    cells.earlier.extend(taken)
    order = _order([str(index) for index in range(len(items))], night.date)
    mixed = [items[int(index)] for index in order]
    lots |= {lot: mixed[index :: len(night.lots)] for index, lot in enumerate(night.lots)}
    return lots


def _write_night(cells: _Cells, night: _Night, landing: Path) -> dict[str, dict[str, str]]:
    """Write the night's lots; returns the truth about each image."""
    truth = {}
    for letter, items in sorted(_deal(cells, night).items()):
        lot = f"{night.date.replace('-', '')}-{letter}"
        folder = landing / lot
        folder.mkdir(parents=True)
        for index, item in enumerate(items):
            name = f"{lot}-{index:04d}.png"
            (folder / name).write_bytes(item.content)
            truth[f"{lot}/{name}"] = {"night": night.date, "kind": item.kind, "cell": item.cell}
        if letter in night.lots:
            manifest = lot_manifest({path.name: path for path in folder.iterdir()}, KEY, lot, night.date)
            (folder / MANIFEST_NAME).write_text(manifest, encoding="utf-8")
    return truth


def materialise(target: Path) -> None:
    """Make the quick start's data in ``target``, whole or not at all; nothing to do where they are there already.

    Args:
        target: The folder, usually ``<project root>/data``.

    Raises:
        InputError: The package with the photographs is missing or another one, or ``target`` holds something else.
    """
    target = target.absolute()
    if target.exists() and any(target.iterdir()):
        if _tree_digest(target) != _TREE_SHA256:
            raise InputError(f"{target} is not, or no longer, the quick start's data; remove it to have it made anew")
        return
    cells = _source_cells()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        made = Path(temporary) / "data"
        truth: dict[str, dict[str, str]] = {}
        for night in _PLAN:
            truth |= _write_night(cells, night, made / "landing" / KEY.path)
        for kind, names in (("good", cells.golden), ("defective", cells.defects)):
            folder = made / "golden" / "test" / kind
            folder.mkdir(parents=True)
            for cell in names:
                shutil.copyfile(cells.folder / cell, folder / Path(cell).name)
        (made / "planted.json").write_text(canonical_json({"images": truth}), encoding="utf-8")
        digest = _tree_digest(made)
        if digest != _TREE_SHA256:
            raise InputError(f"quick-start data came out as {digest}, expected {_TREE_SHA256}")
        made.replace(target)
    logger.info("quick-start data in %s: %d landing images, golden set of %d + %d", target, len(truth),
                len(cells.golden), len(cells.defects))  # fmt: skip


def feed_landing(source: Path, landing: str, key: ModelKey, night: str, *, s3_endpoint_url: str = "") -> list[str]:
    """Deliver a night's lots of the quick start into a landing zone, the way a producer would.

    Args:
        source: ``<project root>/data/landing``.
        landing: The landing zone: a folder, made if missing, or ``s3://bucket/prefix``.
        key: Whose lots.
        night: ``YYYY-MM-DD``; a night's lots are those whose name begins with it, without hyphens.
        s3_endpoint_url: Server of an ``s3://`` landing zone that is not AWS.

    Returns:
        The lots' names; delivering twice is harmless.

    Raises:
        InputError: There is no lot of this night.
    """
    lots = sorted(path for path in (source / key.path).glob(f"{night.replace('-', '')}-*") if path.is_dir())
    if not lots:
        raise InputError(f"{source / key.path} has no lot of {night}; make the quick start's data first")
    storage = open_landing(landing, s3_endpoint_url)
    for lot in lots:
        images = {path.name: path for path in sorted(lot.iterdir()) if path.name != MANIFEST_NAME}
        manifest = lot / MANIFEST_NAME
        deliver(storage, f"{key.path}/{lot.name}", images, manifest.read_bytes() if manifest.exists() else None)
    return [lot.name for lot in lots]


def main(argv: list[str] | None = None) -> int:
    """Command line: make the quick start's data below a project root."""
    parser = argparse.ArgumentParser(prog="python -m components.quickstart", description=main.__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="project root; the data go to <root>/data")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        materialise(arguments.root / "data")
    except InputError as error:
        sys.stderr.write(f"quickstart: {error}\n")
        return EXIT_INPUT_ERROR
    return 0
