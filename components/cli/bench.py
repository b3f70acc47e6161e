"""``stlm bench``: published protocols on the user's own folders, as a table, JSON and one page."""

import csv
import dataclasses
import html
import itertools
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from components.cli.result_cache import ResultCache, content_digest
from components.core.atomic_files import write_file
from components.core.errors import InputError
from components.local_stack.workspace import Workspace
from components.training_resources import device_of, new_model, sam_teacher, textures_of
from stlm.bench.categories import CategoryRow, find_categories, run_category
from stlm.bench.drift import DriftResult, read_drift_nights, run_drift
from stlm.bench.figures import FIGURES, Figures
from stlm.bench.learners import Ingredients, learner
from stlm.errors import StlmError
from stlm.recipes import recipe
from stlm.strict_json import from_json, to_json

__all__ = ["bench_drift", "bench_mvtec"]

ResultT = TypeVar("ResultT")

_SHORT = {
    "image_auroc": "I-AUROC", "image_ap": "I-AP", "image_f1_max": "I-F1", "pixel_auroc": "P-AUROC", "pixel_ap": "P-AP",
    "pixel_f1_max": "P-F1", "pro": "PRO",
}  # fmt: skip


def _say(line: str) -> None:
    print(line, flush=True)


def _machine() -> dict[str, Any]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}


def _write(out: str, name: str, value: Any, page: str) -> None:
    if not out:
        return
    folder = Path(out)
    write_file(folder / f"{name}.json", (json.dumps(value, indent=1) + "\n").encode())
    write_file(folder / f"{name}.html", page.encode())
    _say(f"Written: {folder / name}.json and {folder / name}.html")


def bench_mvtec(
    workspace: Workspace,
    *,
    root: str,
    categories: Sequence[str],
    strategies: Sequence[str],
    recipe_name: str,
    seeds: Sequence[int],
    judge_every: int,
    out: str,
) -> int:
    """Every strategy on every category; mean and spread over the seeds.

    Args:
        workspace: Names the checkpoints that the recipe wants, and the device.
        root: A category in MVTec layout, or a folder of them.
        categories: Names to keep; empty keeps all.
        strategies: Of ``stlm.bench.learners``.
        recipe_name: Recipe of the STLM ones.
        seeds: At least one.
        judge_every: Also judge the recipe after each so many passes; 0: only at the end.
        out: Folder for JSON, page and single results, which the next run takes over; empty: none.

    Returns:
        0.

    Raises:
        InputError: A folder cannot be read, or a name is unknown.
    """
    rows: list[CategoryRow] = []
    kept = ResultCache(out)
    try:
        ingredients, settings = _ingredients(workspace, strategies, recipe_name)
        _say(f"{'category':14} {'method':17} {'seed':>4} " + " ".join(f"{_SHORT[n]:>7}" for n in FIGURES) + "  train s")
        for folder in find_categories(Path(root), categories):
            content = content_digest([folder])
            for seed, method in itertools.product(seeds, strategies):
                facts = {"recipe": recipe_name, "content": content, "settings": settings, "judge_every": judge_every}
                file = kept.file("mvtec", folder.name, method, seed, **facts)
                known = kept.read(file)
                if known:
                    row = from_json(CategoryRow, known, where=str(file))
                else:
                    row = run_category(
                        folder,
                        method=method,
                        recipe_name=recipe_name,
                        seed=seed,
                        ingredients=ingredients,
                        judge_every=judge_every,
                    )
                    kept.write(file, to_json(row))
                rows.append(row)
                took = f"{row.training_seconds:8.0f}{' (kept from before)' if known else ''}"
                _say(f"{row.category:14} {row.method:17} {row.seed:>4} {_cells(row)} {took}")
                if row.on_the_way:
                    best = _best_on_test(row)
                    _say(f"{'':14} {best.method:17} {row.seed:>4} {_cells(best)} of {len(row.on_the_way)}")
    except StlmError as error:
        raise InputError(str(error)) from error
    table = _means([*rows, *(_best_on_test(row) for row in rows if row.on_the_way)])
    _say("\nMean over categories and seeds, +- standard deviation over seeds of the mean over categories; last epoch")
    for line in table:
        _say(line)
    value = {"rows": [_value_of(row) for row in rows], **_machine()}
    text = html.escape("\n".join(table))
    _write(out, "mvtec", value, _page("Categories", f"<pre>{text}</pre>"))
    return 0


def _ingredients(
    workspace: Workspace, strategies: Sequence[str], recipe_name: str
) -> tuple[Ingredients, dict[str, Any]]:
    """What the recipe's training takes, as ``[fine_tune]`` names it, and what of it decides figures.

    An unknown strategy or recipe is refused here, before hours of measuring the known ones.
    """
    for strategy in strategies:
        learner(strategy, recipe_name, 0)
    settings, checkpoints = workspace.config.fine_tune, Path(workspace.config.paths.work_dir) / "checkpoints"
    device = device_of(settings)
    ingredients = Ingredients(
        new_model=lambda config, seed: new_model(config, settings, checkpoints, seed=seed),
        teacher=sam_teacher(recipe(recipe_name), settings, checkpoints, device),
        textures=textures_of(settings),
        device=str(device),
        bf16=settings.precision == "bf16",
    )
    names = ("teacher_sha256", "student_sha256", "precision")
    return ingredients, {
        **{name: getattr(settings, name) for name in names},
        "textures": content_digest([Path(settings.textures)]) if settings.textures else "",
        "device": device.type,
    }


def _value_of(row: CategoryRow) -> dict[str, Any]:
    facts: dict[str, Any] = to_json(row)
    figures: dict[str, Any] = facts.pop("figures")
    return facts | figures


def _best_on_test(row: CategoryRow) -> CategoryRow:
    """Each figure's best on the way, as if the epoch were chosen on the test images."""
    best: dict[str, Any] = {}
    for name in FIGURES:
        known = [value for each in row.on_the_way if (value := getattr(each.figures, name)) is not None]
        best[name] = max(known, default=None)
    return dataclasses.replace(row, method="chosen on test", figures=Figures(**best))


def _cells(row: CategoryRow) -> str:
    values = [getattr(row.figures, name) for name in FIGURES]
    return " ".join(f"{'-':>7}" if value is None else f"{value:7.3f}" for value in values)


def _means(rows: Sequence[CategoryRow]) -> list[str]:
    lines = [f"{'method':17} " + " ".join(f"{_SHORT[name]:>13}" for name in FIGURES) + "  train s  ms/image"]
    for method, own in _grouped(rows, "method").items():
        cells = []
        for name in FIGURES:
            by_seed = [[getattr(row.figures, name) for row in of_seed] for of_seed in _grouped(own, "seed").values()]
            known = [float(np.mean(values)) for values in by_seed if None not in values]
            cells.append(_mean_and_spread(known, ".3f") if known else "-")
        seconds = np.mean([row.training_seconds for row in own])
        milliseconds = np.mean([row.image_milliseconds for row in own])
        lines.append(
            f"{method:17} " + " ".join(f"{cell:>13}" for cell in cells) + f" {seconds:8.0f} {milliseconds:9.1f}"
        )
    return lines


def _grouped(values: Sequence[ResultT], name: str) -> dict[Any, list[ResultT]]:
    """Values by an attribute of theirs, in the order of their first."""
    groups: dict[Any, list[ResultT]] = {}
    for value in values:
        groups.setdefault(getattr(value, name), []).append(value)
    return groups


def _mean_and_spread(values: Sequence[float], form: str) -> str:
    return f"{np.mean(values):{form}}+-{np.std(values):{form}}"


def bench_drift(
    workspace: Workspace,
    *,
    root: str,
    strategies: Sequence[str],
    recipe_name: str,
    seeds: Sequence[int],
    shuffle: bool,
    parts: str,
    out: str,
) -> int:
    """Every strategy through all nights of drift; mean and spread over the seeds.

    Args:
        workspace: Names the checkpoints that the recipe wants, and the device.
        root: Folder of folders in MVTec layout; each is a night, in the order of their names.
        strategies: Of ``stlm.bench.learners``.
        recipe_name: Recipe of the STLM ones.
        seeds: At least one; each decides everything drawn.
        shuffle: Take the nights in another order, decided by the seed.
        parts: CSV file with columns ``path`` and ``part``: pictures of one part stay together; empty for none.
        out: Folder for JSON, page and single results, which the next run takes over; empty: none.

    Returns:
        0.

    Raises:
        InputError: A folder or file cannot be read, or a name is unknown.
    """
    results: list[DriftResult] = []
    try:
        ingredients, settings = _ingredients(workspace, strategies, recipe_name)
        orders = {seed: read_drift_nights(Path(root), shuffle_seed=seed) for seed in (seeds if shuffle else [None])}
        known = _parts(Path(parts)) if parts else None
        kept, content = ResultCache(out), content_digest([Path(root)])
        for seed, name in itertools.product(seeds, strategies):
            nights = orders[seed if shuffle else None]
            order = [night.name for night in nights]
            file = kept.file("drift", Path(root).name, name, seed, recipe=recipe_name, content=content, order=order,
                             parts=known, settings=settings)  # fmt: skip
            if value := kept.read(file):
                result = DriftResult.from_json(value)
                _say(f"{name:17} seed {seed} kept from before")
            else:
                one = learner(name, recipe_name, seed, ingredients)
                result = run_drift(one, nights, strategy=name, seed=seed, parts=known, tell=_say)
                kept.write(file, result.to_json())
            results.append(result)
            _write(out, "drift", {"results": [r.to_json() for r in results], **_machine()}, _drift_page(results))
    except StlmError as error:
        raise InputError(str(error)) from error
    _say("")
    for line in _drift_table(results):
        _say(line)
    return 0


def _parts(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"path", "part"} <= set(reader.fieldnames or ()):
                raise InputError(f"{path}: expected the columns path and part, got {reader.fieldnames}")
            return {Path(row["path"]).name: row["part"] for row in reader}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _drift_table(results: Sequence[DriftResult]) -> list[str]:
    columns: dict[str, tuple[Callable[[DriftResult], float], str]] = {
        "I-AUROC": (lambda r: r.final_mean("image_auroc"), ".3f"),
        "P-AUROC": (lambda r: r.final_mean("pixel_auroc"), ".3f"),
        "P-AP": (lambda r: r.final_mean("pixel_ap"), ".3f"),
        "PRO": (lambda r: r.final_mean("pro"), ".3f"),
        "forgetting": (lambda r: r.forgetting("image_auroc"), ".4f"),
        "relative": (lambda r: r.relative_forgetting("image_auroc"), ".2%"),
        "of PRO": (lambda r: r.forgetting("pro"), ".4f"),
        "plasticity": (lambda r: r.plasticity("image_auroc"), ".3f"),
        "false alarms": (lambda r: float(r.false_alarms[-1].mean()), ".3f"),
        "if frozen": (lambda r: float(r.frozen_false_alarms[-1].mean()), ".3f"),
        "recall": (lambda r: float(r.recalls[-1].mean()), ".3f"),
        "s/night": (lambda r: float(np.mean(r.seconds[1:] or r.seconds)), ".0f"),
        "replay MB": (lambda r: r.replay_bytes[-1] / 1e6, ".1f"),
    }
    by_strategy = _grouped(results, "strategy")
    rows = []
    for own in by_strategy.values():
        known = [([value(result) for result in own], form) for value, form in columns.values()]
        rows.append([_mean_and_spread(v, form) if len(v) > 1 else format(v[0], form) for v, form in known])
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = [
        f"{name:17} " + " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for name, cells in zip(("strategy", *by_strategy), (list(columns), *rows), strict=True)
    ]
    return [*lines, *_below_no_update(by_strategy)]


def _below_no_update(by_strategy: Mapping[str, Sequence[DriftResult]]) -> list[str]:
    """Where learning ended below not learning, by the mean over the seeds of the final image AUROC."""
    final = {
        name: {
            night: float(np.mean([r.matrices["image_auroc"][-1][r.judged.index(night)] for r in own]))
            for night in own[0].judged
        }
        for name, own in by_strategy.items()
    }
    left_alone = final.pop("no-update", {})
    lines = []
    for name, by_night in final.items() if left_alone else ():
        worse = {night: value - left_alone[night] for night, value in by_night.items() if value < left_alone[night]}
        told = ", ".join(f"{night} by {-worse[night]:.3f}" for night in sorted(worse)) or "none"
        lines.append(f"{name}: final image AUROC below no-update on {told}")
    return lines


def _drift_page(results: Sequence[DriftResult]) -> str:
    parts = [f"<pre>{html.escape(chr(10).join(_drift_table(results)))}</pre>"]
    for result in results:
        parts.append(f"<h2>{html.escape(result.strategy)}, seed {result.seed}</h2><div class='row'>")
        shown = [("image AUROC", result.matrices["image_auroc"]), ("PRO", result.matrices["pro"])]
        shown.append(("false alarms of the night's threshold", result.false_alarms))
        shown.append(("recall at the night's threshold", result.recalls))
        parts += [_matrix(title, matrix, result) for title, matrix in shown if not np.isnan(matrix).all()]
        parts.append("</div>")
    return _page("Nights of drift", "\n".join(parts))


def _matrix(title: str, matrix: npt.NDArray[np.float64], result: DriftResult) -> str:
    low, high = float(np.nanmin(matrix)), float(np.nanmax(matrix))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in result.judged)
    body = ""
    for name, row in zip(result.nights, matrix, strict=True):
        shades = [95.0 - 45.0 * (value - low) / max(high - low, 1e-9) for value in row]
        cells = "".join(
            f"<td style='background: hsl(210, 70%, {shade:.0f}%)'>{value:.3f}</td>"
            for value, shade in zip(row, shades, strict=True)
        )
        body += f"<tr><th>after {html.escape(name)}</th>{cells}</tr>"
    return f"<figure><figcaption>{title}</figcaption><table><tr><th></th>{head}</tr>{body}</table></figure>"


def _page(title: str, body: str) -> str:
    style = (
        "body{font:15px system-ui,sans-serif;max-width:80rem;margin:1rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.3rem .6rem;text-align:right;color:#111}"
        ".row{display:flex;flex-wrap:wrap;gap:1rem}pre{overflow-x:auto}"
    )
    return (
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{style}</style></head>"
        f"<body><h1>{title}</h1>{body}</body></html>\n"
    )
