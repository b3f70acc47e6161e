"""Image index: hashes of the images that nights accepted and of golden sets, as duplicates are sought in.

Each night leaves an index of its accepted images in ``<state_dir>/index/<key>/<partition>.parquet``. A night consults
only those of earlier nights, so that an old night can be validated again with the same result.
"""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from components.core.contracts import RunRef
from components.core.errors import InputError
from stlm.data.facts import read_facts
from stlm.data.layout import read_golden_set
from stlm.errors import DataError

__all__ = ["accepted_index", "golden_index", "history_index", "write_index", "write_table"]

_PARTITION = re.compile(r"\d{4}-\d{2}-\d{2}")


_COLUMNS = ("image", "sha256", "hash")


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
