"""Doubles: within the night, of what earlier nights accepted, and of the golden set (leakage).

Each night leaves an index of its accepted images in ``<state_dir>/index/<key>/<partition>.parquet``. A night consults
only those of earlier nights, so that an old night can be validated again with the same result.
"""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from components.contracts import RunRef
from components.errors import InputError
from stlm.data.facts import nearest_hashes, read_facts
from stlm.data.layout import read_golden_set
from stlm.errors import DataError

__all__ = ["accepted_index", "find_doubles", "golden_index", "history_index", "write_index", "write_table"]

_PARTITION = re.compile(r"\d{4}-\d{2}-\d{2}")
_COLUMNS = ("image", "sha256", "hash")
_PLACES = ("night", "history", "golden")


def _index_dir(run: RunRef) -> Path:
    return run.state_dir / "index" / run.key.slug


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write Parquet so that readers see the old file or the whole new one.

    Args:
        path: The file.
        table: Its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        table.to_parquet(temporary, index=False)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_index(run: RunRef, accepted: pd.DataFrame) -> None:
    """Remember a night's accepted images.

    Args:
        run: The night.
        accepted: Columns ``image``, ``sha256`` and ``hash``.
    """
    write_table(_index_dir(run) / f"{run.partition}.parquet", accepted[list(_COLUMNS)])


def history_index(run: RunRef) -> pd.DataFrame:
    """Accepted images of all earlier nights.

    Args:
        run: The night that looks back.

    Returns:
        Columns ``image`` (``night/lot/name``), ``sha256`` and ``hash``.
    """
    return _nights_index(run, lambda night: night < run.partition)


def accepted_index(run: RunRef) -> pd.DataFrame:
    """Accepted images of this and all earlier nights; otherwise as :func:`history_index`."""
    return _nights_index(run, lambda night: night <= run.partition)


def _nights_index(run: RunRef, counts: Callable[[str], bool]) -> pd.DataFrame:
    nights = [
        path
        for path in sorted(_index_dir(run).glob("*.parquet"))
        if _PARTITION.fullmatch(path.stem) and counts(path.stem)
    ]
    tables = [pd.read_parquet(path, columns=list(_COLUMNS)) for path in nights]
    for path, table in zip(nights, tables, strict=True):
        table["image"] = path.stem + "/" + table["image"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(_COLUMNS), dtype=str)


def golden_index(run: RunRef, golden: str, *, max_pixels: int) -> pd.DataFrame:
    """Images of the golden set; measured once per golden set and key, then remembered by its digest.

    Args:
        run: Whose work folder remembers.
        golden: The golden set's folder.
        max_pixels: Larger images cannot be compared with.

    Returns:
        Columns ``image``, ``sha256`` and ``hash``.

    Raises:
        InputError: The golden set is not readable; all findings are listed.
    """
    try:
        items = read_golden_set(Path(golden))
    except DataError as error:
        raise InputError(str(error)) from error
    remembered = _index_dir(run) / f"golden-{items.digest[:16]}-{max_pixels}.parquet"
    if remembered.exists():
        return pd.read_parquet(remembered)
    paths = [item.path for item in items.items]
    facts = read_facts(paths, max_pixels=max_pixels)
    broken = [f"{path}: {fact.error}" for path, fact in zip(paths, facts, strict=True) if not fact.decodes]
    if broken:
        raise InputError(f"golden set {golden}: {'; '.join(broken)}")
    table = pd.DataFrame(
        {
            "image": [path.relative_to(items.root).as_posix() for path in paths],
            "sha256": [fact.sha256 for fact in facts],
            "hash": [fact.hash for fact in facts],
        }
    )
    write_table(remembered, table)
    return table


def find_doubles(images: pd.DataFrame, history: pd.DataFrame, golden: pd.DataFrame, *, max_bits: int) -> pd.DataFrame:
    """Say of whom each image is a double; the first of two in the night stays.

    Args:
        images: Columns ``image``, ``sha256`` and ``hash``, in the order in which they count.
        history: The same columns: earlier nights.
        golden: The same columns: the golden set.
        max_bits: Hashes this far apart are still near duplicates.

    Returns:
        Columns ``same_in_*`` and ``near_in_*`` for night, history and golden, with the double's name or null; rows
        as in ``images``. An exact double is not called a near one as well.
    """
    found = pd.DataFrame(
        {f"{how}_in_{place}": pd.Series(None, index=images.index, dtype=object)
         for how in ("same", "near") for place in _PLACES}
    )  # fmt: skip
    for place, known in (("history", history), ("golden", golden)):
        names = dict(zip(known["sha256"], known["image"], strict=True))
        found[f"same_in_{place}"] = _objects(images, [names.get(sha256) for sha256 in images["sha256"]])
        unclear = images[found[f"same_in_{place}"].isna()]
        found.loc[unclear.index, f"near_in_{place}"] = _objects(unclear, _nearest(unclear, known, max_bits))
    first: dict[str, str] = {}
    kept: list[int] = []
    for row, image in enumerate(images.itertuples(index=False)):
        label = images.index[row]
        twin = first.setdefault(str(image.sha256), str(image.image))
        if twin != image.image:
            found.loc[label, "same_in_night"] = twin
        elif kept and (double := _nearest(images.iloc[[row]], images.iloc[kept], max_bits)[0]) is not None:
            found.loc[label, "near_in_night"] = double
        else:
            kept.append(row)
    return found


def _objects(images: pd.DataFrame, values: Sequence[str | None]) -> pd.Series:
    return pd.Series(list(values), index=images.index, dtype=object)


def _nearest(images: pd.DataFrame, known: pd.DataFrame, max_bits: int) -> list[str | None]:
    if images.empty or known.empty:
        return [None] * len(images)
    nearest, bits = nearest_hashes(list(images["hash"]), list(known["hash"]))
    return [
        str(known["image"].iloc[index]) if apart <= max_bits else None
        for index, apart in zip(nearest, bits, strict=True)
    ]
