"""Quarantine: a folder and a list that a person can go through with a file manager and a spreadsheet."""

import csv
import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd

__all__ = ["write_quarantine"]

_COLUMNS = ("lot", "name", "reasons", "error", "double_of", "sha256", "hash")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_quarantine(folder: Path, images: Path, table: pd.DataFrame) -> None:
    """Write ``<folder>/<lot>/<name>`` and ``<folder>/quarantine.csv``, whole or not at all.

    Args:
        folder: Replaced if it is there.
        images: ``<images>/<lot>/<name>`` are the files.
        table: One row per quarantined image, with the columns of the list.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        for lot, name in zip(table["lot"], table["name"], strict=True):
            source, target = images / lot / name, made / lot / name
            target.parent.mkdir(exist_ok=True)
            if source.is_file() and not source.is_symlink():
                _link(source, target)
        with (made / "quarantine.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for row in table[list(_COLUMNS)].fillna("").itertuples(index=False):
                writer.writerow([_harmless(str(value)) for value in row])
        if folder.exists():
            folder.rename(Path(temporary) / "replaced")
        made.rename(folder)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _harmless(value: str) -> str:
    """A spreadsheet runs cells that begin like a formula; file names come from outside."""
    return f"'{value}" if value.startswith(_FORMULA_STARTS) else value
