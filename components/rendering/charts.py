"""Charts as inline SVG whose colours are the page's own, so that they follow light, dark and print."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

__all__ = ["Chart", "Charts", "curves_svg", "histogram_svg"]

_INK, _FAINT = "#010203", "#010204"
_SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
_VARIABLES = {_INK: "var(--muted)", _FAINT: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}
_MAX_POINTS = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawing with its words."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Charts:
    """A section of the page; without charts, ``note`` says why."""

    charts: list[Chart] = field(default_factory=list)
    note: str = ""


def _new_figure() -> tuple[Figure, Axes]:
    # Fixed margins: matplotlib's own layout takes longer than all the drawing.
    figure = Figure(figsize=(5.2, 2.7))
    figure.subplots_adjust(left=0.13, right=0.985, bottom=0.17, top=0.87)
    return figure, figure.add_subplot()


def _svg(figure: Figure, salt: str) -> Markup:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None},
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inside an HTML page the name spaces and the metadata are noise, and the groups' names would clash between charts.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| id="[A-Za-z0-9.]+_[0-9]+"', "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    # matplotlib escapes the texts that it draws.
    return Markup(svg.replace("'DejaVu Sans'", "system-ui"))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``_MAX_POINTS`` means of neighbouring points; a curve of thousands of steps stays readable."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    chunks = np.array_split(np.asarray(points, dtype=np.float64), _MAX_POINTS)
    return [(float(chunk[-1, 0]), float(chunk[:, 1].mean())) for chunk in chunks]


def curves_svg(stage: str, records: Sequence[Any]) -> Markup:
    """One stage's losses over its steps.

    Args:
        stage: Name of the stage.
        records: ``[{"step", "<loss name>", ...}]``; entries that are no finite numbers are skipped.

    Returns:
        An ``<svg>`` element; empty when there is nothing to draw.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        step = record.get("step") if isinstance(record, Mapping) else None
        if not _is_number(step):
            continue
        for name, value in record.items():
            if name != "step" and _is_number(value):
                series.setdefault(str(name), []).append((float(step), float(value)))
    if not series:
        return Markup()
    names = sorted(series, key=lambda name: (name not in {"loss", "total"}, name))[: len(_SERIES)]
    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure()
        for name, colour in zip(names, _SERIES, strict=False):
            steps, values = zip(*_thinned(series[name]), strict=True)
            axes.plot(steps, values, color=colour, label=name.replace("_", " "))
        drawn = [value for name in names for _, value in series[name]]
        if min(drawn) > 0 and max(drawn) / min(drawn) > 30:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        if len(names) > 1 or names[0] != "loss":
            axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0.0, 1.0))
        return _svg(figure, f"curves {stage}")


def _bars(
    axes: Axes,
    values: NDArray[np.float64],
    edges: NDArray[np.float64],
    colour: str,
    label: str,
) -> None:
    axes.hist(
        values,
        bins=edges.tolist(),
        color=colour,
        alpha=0.55,
        label=f"{label} ({len(values)})",
        linewidth=0,
    )


def histogram_svg(
    title: str,
    scores: NDArray[np.float64],
    labels: NDArray[np.bool_],
    threshold: float | None,
) -> Markup:
    """Scores of good and defective golden images, with the operating threshold.

    Args:
        title: Name of the model; also keeps the drawing's ids apart from other charts on the page.
        scores: ``(N,)``, larger is more anomalous.
        labels: ``(N,)``, True for a defective image.
        threshold: Scores from here on are called anomalous; ``None`` when there is none.

    Returns:
        An ``<svg>`` element; empty when no score is finite.
    """
    finite = np.isfinite(scores)
    scores, labels = scores[finite], labels[finite]
    if scores.size == 0:
        return Markup()
    edges = np.histogram_bin_edges(scores, bins=36)
    with mpl.rc_context(_STYLE):
        figure, axes = _new_figure()
        _bars(axes, scores[~labels], edges, _SERIES[0], "good")
        _bars(axes, scores[labels], edges, _SERIES[1], "defective")
        if threshold is not None and math.isfinite(threshold):
            axes.axvline(
                threshold,
                color=_INK,
                linewidth=1.2,
                linestyle=(0, (4, 2)),
                label="threshold",
            )
        axes.set_xlabel("anomaly score")
        axes.set_ylabel("golden images")
        axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0.0, 1.0))
        return _svg(figure, f"histogram {title}")
