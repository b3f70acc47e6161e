"""Categories in MVTec layout, one after the other: the recipe beside its peers, on the same split, in one run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stlm.bench.figures import Figures, judge
from stlm.bench.learners import learner, night_of
from stlm.data.layout import read_golden_set, read_train_normals
from stlm.errors import DataError

__all__ = ["CategoryRow", "find_categories", "run_category"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryRow:
    """One method on one category with one seed."""

    category: str
    method: str
    seed: int
    figures: Figures
    training_seconds: float
    image_milliseconds: float
    """Mean over the test set, with reading and metrics."""


def find_categories(root: Path, wanted: Sequence[str] = ()) -> list[Path]:
    """Folders in MVTec layout, sorted by name.

    Args:
        root: A category itself, or a folder of categories.
        wanted: Names to keep; empty keeps all.

    Returns:
        At least one folder.

    Raises:
        DataError: There is none, or a wanted one is missing.
    """
    if (root / "train").is_dir():
        return [root]
    found = {path.name: path for path in sorted(root.iterdir()) if (path / "train").is_dir()} if root.is_dir() else {}
    missing = sorted(set(wanted) - set(found))
    if missing or not found:
        raise DataError(
            f"{root}: expected {', '.join(missing) if missing else 'folders with train and test'} "
            f"in MVTec layout, found {', '.join(found) or 'none'}"
        )
    return [path for name, path in found.items() if not wanted or name in wanted]


def run_category(folder: Path, *, method: str, recipe_name: str, seed: int) -> CategoryRow:
    """Train and judge; the last state counts.

    Args:
        folder: A category.
        method: A key of :data:`stlm.bench.learners.STRATEGIES`.
        recipe_name: Recipe of the STLM ones.
        seed: Decides everything drawn.

    Returns:
        The row.

    Raises:
        DataError: The category cannot be read.
        ConfigError: The method or the recipe is unknown.
    """
    golden = read_golden_set(folder, leave_out_unmarked=True)
    night = night_of(read_train_normals(folder), folder.name)
    one = learner(method, recipe_name, seed)
    started = time.perf_counter()
    one.learn(night)
    trained = time.perf_counter()
    judged = judge(one.detector, golden)
    ended = time.perf_counter()
    return CategoryRow(
        category=folder.name,
        method=recipe_name if method == "recipe" else method,
        seed=seed,
        figures=judged.figures,
        training_seconds=trained - started,
        image_milliseconds=1000.0 * (ended - trained) / len(golden.items),
    )
