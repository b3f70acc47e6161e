"""``stlm bench``: published protocols on the user's own folders, as a table, JSON and one page."""

import csv
import html
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from components.errors import InputError
from stlm.bench.categories import CategoryRow, find_categories, run_category
from stlm.bench.drift import DriftResult, read_drift_nights, run_drift
from stlm.bench.figures import FIGURES
from stlm.bench.learners import learner
from stlm.errors import StlmError

__all__ = ["bench_drift", "bench_mvtec"]

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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.html").write_text(page, encoding="utf-8")
    _say(f"Written: {folder / name}.json and {folder / name}.html")


def bench_mvtec(
    *, root: str, categories: Sequence[str], methods: Sequence[str], recipe_name: str, seeds: Sequence[int], out: str
) -> int:
    """Every method on every category; mean and spread over the seeds.

    Args:
        root: A category in MVTec layout, or a folder of them.
        categories: Names to keep; empty keeps all.
        methods: Strategies of ``stlm.bench.learners``.
        recipe_name: Recipe of the STLM ones.
        seeds: At least one.
        out: Folder for JSON and page; empty writes none.

    Returns:
        0.

    Raises:
        InputError: A folder cannot be read, or a name is unknown.
    """
    rows: list[CategoryRow] = []
    try:
        for method in methods:
            learner(method, recipe_name, 0)
        _say(f"{'category':14} {'method':17} {'seed':>4} " + " ".join(f"{_SHORT[n]:>7}" for n in FIGURES) + "  train s")
        for folder in find_categories(Path(root), categories):
            for row in run_category(folder, methods=methods, recipe_name=recipe_name, seeds=seeds):
                rows.append(row)
                _say(f"{row.category:14} {row.method:17} {row.seed:>4} {_cells(row)} {row.training_seconds:8.0f}")
    except StlmError as error:
        raise InputError(str(error)) from error
    table = _means(rows)
    _say("\nMean over categories and seeds, +- standard deviation over seeds of the mean over categories; last epoch")
    for line in table:
        _say(line)
    value = [
        {
            "category": row.category,
            "method": row.method,
            "seed": row.seed,
            "training_seconds": row.training_seconds,
            "image_milliseconds": row.image_milliseconds,
            **{name: getattr(row.figures, name) for name in FIGURES},
        }
        for row in rows
    ]
    text = html.escape("\n".join(table))
    _write(out, "mvtec", {"rows": value, **_machine()}, _page("Categories", f"<pre>{text}</pre>"))
    return 0


def _cells(row: CategoryRow) -> str:
    values = [getattr(row.figures, name) for name in FIGURES]
    return " ".join(f"{'-':>7}" if value is None else f"{value:7.3f}" for value in values)


def _means(rows: Sequence[CategoryRow]) -> list[str]:
    lines = [f"{'method':17} " + " ".join(f"{_SHORT[name]:>13}" for name in FIGURES) + "  train s  ms/image"]
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        cells = []
        for name in FIGURES:
            by_seed = [
                [getattr(row.figures, name) for row in own if row.seed == seed]
                for seed in dict.fromkeys(row.seed for row in own)
            ]
            known = [float(np.mean(values)) for values in by_seed if None not in values]
            cells.append(f"{np.mean(known):.3f}+-{np.std(known):.3f}" if known else "-")
        seconds = np.mean([row.training_seconds for row in own])
        milliseconds = np.mean([row.image_milliseconds for row in own])
        lines.append(
            f"{method:17} " + " ".join(f"{cell:>13}" for cell in cells) + f" {seconds:8.0f} {milliseconds:9.1f}"
        )
    return lines


def bench_drift(
    *, root: str, strategies: Sequence[str], recipe_name: str, seed: int, shuffle: bool, parts: str, out: str
) -> int:
    """Every strategy through all nights of drift.

    Args:
        root: Folder of folders in MVTec layout; each is a night, in the order of their names.
        strategies: Of ``stlm.bench.learners``.
        recipe_name: Recipe of the STLM ones.
        seed: Decides everything drawn.
        shuffle: Take the nights in another order, decided by the seed.
        parts: CSV file with columns ``path`` and ``part``: pictures of one part stay together; empty for none.
        out: Folder for JSON and page; empty writes none.

    Returns:
        0.

    Raises:
        InputError: A folder or file cannot be read, or a name is unknown.
    """
    results: list[DriftResult] = []
    try:
        learners = [learner(name, recipe_name, seed) for name in strategies]
        nights = read_drift_nights(Path(root), shuffle_seed=seed if shuffle else None)
        known = _parts(Path(parts)) if parts else None
        for name, one in zip(strategies, learners, strict=True):
            results.append(run_drift(one, nights, strategy=name, seed=seed, parts=known, tell=_say))
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
    head = (
        f"{'strategy':17} {'I-AUROC':>8} {'PRO':>6} {'P-AP':>6}  {'forgetting (rel.)':>18} {'of PRO':>7} "
        f"{'plasticity':>10} {'false alarms':>12} {'s/night':>8} {'replay MB':>9}"
    )
    lines = [head]
    for result in results:
        forgetting = f"{result.forgetting('image_auroc'):.4f} ({100 * result.relative_forgetting('image_auroc'):.2f} %)"
        later = result.seconds[1:] or result.seconds
        lines.append(
            f"{result.strategy:17} {result.final_mean('image_auroc'):8.3f} {result.final_mean('pro'):6.3f} "
            f"{result.final_mean('pixel_ap'):6.3f}  {forgetting:>18} {result.forgetting('pro'):7.4f} "
            f"{result.plasticity('image_auroc'):10.3f} {result.false_alarms[-1].mean():12.3f} "
            f"{np.mean(later):8.0f} {result.replay_bytes[-1] / 1e6:9.1f}"
        )
    return lines


def _drift_page(results: Sequence[DriftResult]) -> str:
    parts = [f"<pre>{html.escape(chr(10).join(_drift_table(results)))}</pre>"]
    for result in results:
        parts.append(f"<h2>{html.escape(result.strategy)}</h2><div class='row'>")
        shown = [("image AUROC", result.matrices["image_auroc"]), ("PRO", result.matrices["pro"])]
        shown.append(("false alarms of the night's threshold", result.false_alarms))
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
