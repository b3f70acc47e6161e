"""Categories in MVTec layout, one after the other: the recipe beside its peers, on the same split, in one run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stlm.bench.figures import Figures, judge
from stlm.bench.learners import Ingredients, Learner, StlmLearner, learner, night_of
from stlm.config import RecipeConfig
from stlm.data.layout import GoldenSet, read_golden_set, read_train_normals
from stlm.errors import ConfigError, DataError
from stlm.models.registry import AnomalyModel

__all__ = ["CategoryRow", "OnTheWay", "find_categories", "run_category"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OnTheWay:
    """Figures before training had ended. To choose among them is to choose on the test images."""

    passes: int
    """Over the normals, in the last stage."""
    figures: Figures


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
    on_the_way: tuple[OnTheWay, ...] = ()
    """Only where they were asked for."""


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


def run_category(
    folder: Path,
    *,
    method: str,
    recipe_name: str,
    seed: int,
    ingredients: Ingredients | None = None,
    judge_every: int = 0,
) -> CategoryRow:
    """Train and judge; the last state counts.

    Args:
        folder: A category.
        method: A key of :data:`stlm.bench.learners.STRATEGIES`.
        recipe_name: Recipe of the STLM ones.
        seed: Decides everything drawn.
        ingredients: Of the recipe's training.
        judge_every: Also judge the recipe after each so many passes of its last stage; 0: only at the end.

    Returns:
        The row.

    Raises:
        DataError: The category cannot be read.
        ConfigError: The method or the recipe is unknown, or the recipe cannot be judged before its training has ended.
    """
    golden = read_golden_set(folder, leave_out_unmarked=True)
    night = night_of(read_train_normals(folder), folder.name)
    one = learner(method, recipe_name, seed, ingredients)
    found: list[OnTheWay] = []
    if judge_every and method == "recipe":
        _judge_on_the_way(one, golden, judge_every, found)
    started = time.perf_counter()
    one.learn(night)
    trained = time.perf_counter()
    judged = judge(one.detector, golden, device=one.device)
    ended = time.perf_counter()
    return CategoryRow(
        category=folder.name,
        method=recipe_name if method == "recipe" else method,
        seed=seed,
        figures=judged.figures,
        training_seconds=trained - started,
        image_milliseconds=1000.0 * (ended - trained) / len(golden.items),
        on_the_way=tuple(found),
    )


def _judge_on_the_way(one: Learner, golden: GoldenSet, every: int, found: list[OnTheWay]) -> None:
    """Have ``found`` filled while the learner learns."""
    assert isinstance(one, StlmLearner)
    config = one.config
    if not isinstance(config, RecipeConfig) or {*config.model.maps, *config.model.score_maps} != {"aggregation"}:
        raise ConfigError(
            "judging on the way is for recipes whose only map is the aggregation's, such as 'paper': other maps are "
            "fitted when training has ended"
        )
    last = config.stages[-1]

    def watch(model: AnomalyModel, stage: str, done: int, steps: int) -> None:
        passes = every * (len(found) + 1)
        if stage == last.name and last.passes * done / steps + 1e-6 >= passes:
            found.append(OnTheWay(passes=passes, figures=judge(model, golden, device=one.device).figures))

    one.watch = watch
