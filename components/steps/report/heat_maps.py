"""Heat maps on the page: false alarms, missed defects, disagreements."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.core.npz import read_arrays
from components.rendering.charts import Chart, Charts, histogram_svg
from components.rendering.facts import LabelledValue, number
from components.rendering.pictures import (
    Picture,
    ThumbnailEncoder,
    colour_scale_uri,
    open_picture,
    overlay,
    paint_map,
)

__all__ = [
    "Gallery",
    "GoldenScores",
    "HeatMaps",
    "gather_heat_maps",
    "read_scores",
    "score_charts",
]

_PANEL_PX = 196


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One view of an image."""

    name: str
    picture: Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMap:
    """One golden image with its views and figures."""

    name: str
    panels: list[Panel]
    facts: list[LabelledValue]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Images that share a story."""

    title: str
    caption: str
    entries: list[HeatMap]
    note: str = ""
    wide: bool = False
    """Five panels an image: one image a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMaps:
    """The section of the page."""

    groups: list[Gallery] = field(default_factory=list)
    caption: str = ""
    scale_uri: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenScores:
    """What evaluation stored per golden image; ``N`` images."""

    paths: list[str]
    labels: NDArray[np.bool_]
    """``(N,)``, True for a defective image."""
    defect: list[str]
    scores: dict[str, NDArray[np.float64]]
    """``candidate`` and, if there is one, ``champion`` -> ``(N,)``."""
    maps: dict[str, NDArray[np.float32]]
    """The same keys -> ``(N, h, w)``; empty when evaluation kept none."""
    thresholds: dict[str, float]
    golden: Path

    def file(self, index: int) -> Path:
        """The golden image's file."""
        path = Path(self.paths[index])
        return path if path.is_absolute() else self.golden / path

    def name(self, index: int) -> str:
        """The golden image's name for people: relative to the golden set where possible."""
        path = self.file(index)
        return str(path.relative_to(self.golden)) if path.is_relative_to(self.golden) else path.name

    def mask(self, index: int) -> Any:
        """The true mask as a picture, or ``None``."""
        folder, stem = (
            self.golden / "ground_truth" / self.defect[index],
            self.file(index).stem,
        )
        for name in (f"{stem}_mask.png", f"{stem}.png"):
            if self.labels[index] and (folder / name).is_file():
                try:
                    return open_picture(folder / name)
                except ValueError:
                    return None
        return None

    def truth(self, index: int) -> str:
        """The class of the image."""
        return self.defect[index] if self.labels[index] else "good"

    def says(self, model: str, index: int) -> str:
        """What ``model`` calls the image at its own threshold."""
        if model not in self.thresholds:
            return ""
        return "anomalous" if self.scores[model][index] > self.thresholds[model] else "good"


def read_scores(scores_path: Path, golden: Path, thresholds: dict[str, float]) -> GoldenScores:
    """Load ``scores.npz`` and, beside it, ``maps.npz``.

    Args:
        scores_path: Layout as in ``components/steps/evaluate/step.py``.
        golden: The golden set, to which the stored paths are relative.
        thresholds: Operating threshold per model.

    Returns:
        The arrays, checked to belong together.

    Raises:
        ValueError: A file is missing or lacks an array; the message names it.
    """
    try:
        arrays = read_arrays(scores_path)
        maps_path = scores_path.with_name("maps.npz")
        maps: dict[str, NDArray[np.float32]] = {}
        if maps_path.exists():
            maps = {name: v.astype(np.float32) for name, v in read_arrays(maps_path).items() if v.ndim == 3}
        num_images = len(arrays["paths"])
        scores = {
            model: np.asarray(arrays[f"{model}_scores"], dtype=np.float64)
            for model in ("candidate", "champion")
            if len(arrays.get(f"{model}_scores", ())) == num_images
        }
        return GoldenScores(
            paths=[str(path) for path in arrays["paths"]],
            labels=np.asarray(arrays["labels"]).astype(bool),
            defect=[str(name) for name in arrays["defect"]],
            scores=scores,
            maps={model: values for model, values in maps.items() if model in scores and len(values) == num_images},
            thresholds={model: value for model, value in thresholds.items() if math.isfinite(value)},
            golden=golden,
        )
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{scores_path.name} cannot be read ({type(error).__name__}: {error})") from error


def score_charts(golden: GoldenScores, names: dict[str, str]) -> Charts:
    """Histogram of each model's scores; ``names`` maps ``candidate``/``champion`` to words for people."""
    charts = []
    for model, scores in golden.scores.items():
        threshold = golden.thresholds.get(model)
        svg = histogram_svg(model, scores, golden.labels, threshold)
        if threshold is None:
            caption = "No threshold is known."
        else:
            alarms = int(np.count_nonzero(scores[~golden.labels] > threshold))
            found = int(np.count_nonzero(scores[golden.labels] > threshold))
            caption = (
                f"Above the threshold {number(threshold, 4)}: {alarms} of {int((~golden.labels).sum())} good and "
                f"{found} of {int(golden.labels.sum())} defective images."
            )
        if svg:
            charts.append(Chart(title=names.get(model, model), svg=svg, caption=caption))
    return Charts(charts=charts, note="" if charts else "No score is a finite number.")


def _scale(golden: GoldenScores, model: str) -> tuple[float, float]:
    """From the typical pixel of a good image to the typical peak of a defective one."""
    maps = np.nan_to_num(golden.maps[model])
    good, bad = maps[~golden.labels], maps[golden.labels]
    low = float(np.median(good)) if len(good) else float(np.median(maps))
    peaks = bad.reshape(len(bad), -1).max(axis=1) if len(bad) else maps.reshape(len(maps), -1).max(axis=1)
    high = float(np.median(peaks))
    return low, high if high > low else low + 1e-6


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(N,)`` share of images that score lower: comparable between models whose scores are not."""
    return np.searchsorted(np.sort(scores), scores, side="left") / max(1, len(scores))


class _Painter:
    def __init__(self, golden: GoldenScores, album: ThumbnailEncoder) -> None:
        self._golden, self._album = golden, album
        self._scales = {model: _scale(golden, model) for model in golden.maps}

    def paint(self, index: int, models: Sequence[str]) -> list[Panel]:
        golden, name = self._golden, self._golden.name(index)
        try:
            image = self._album.fit(open_picture(golden.file(index)), _PANEL_PX)
        except ValueError as error:
            return [Panel(name="image", picture=Picture(alt=name, problem=str(error)))]
        panels = [Panel(name="image", picture=self._album.add(image, f"{name}"))]
        mask = golden.mask(index)
        for model in models:
            if model not in golden.maps:
                continue
            values, scale = golden.maps[model][index], self._scales[model]
            prefix = "" if len(models) == 1 else f"{model}: "
            for view, picture in (
                ("overlay", overlay(image, values, scale, mask)),
                ("heat map", paint_map(values, image.size, scale)),
            ):
                panels.append(
                    Panel(
                        name=prefix + view,
                        picture=self._album.add(picture, f"{view} of {name}, {model}"),
                    )
                )
        return panels


def _facts(golden: GoldenScores, index: int) -> list[LabelledValue]:
    facts = [LabelledValue(label="truth", value=golden.truth(index))]
    facts.append(LabelledValue(label="score", value=number(golden.scores["candidate"][index], 4)))
    says = golden.says("candidate", index)
    return [*facts, LabelledValue(label="called", value=says)] if says else facts


def _wrong(golden: GoldenScores, model: str, *, defective: bool) -> str:
    chosen = golden.labels if defective else ~golden.labels
    total = int(chosen.sum())
    if model not in golden.thresholds:
        return f"{total} such images in the golden set; no threshold is known."
    above = int(np.count_nonzero(golden.scores[model][chosen] > golden.thresholds[model]))
    if defective:
        return f"{total - above} of {total} defective images do not rise above the threshold. Lowest scores first."
    return f"{above} of {total} good images rise above the threshold. Highest scores first."


def gather_heat_maps(golden: GoldenScores, album: ThumbnailEncoder, max_pictures: int) -> HeatMaps:
    """The three galleries, each of at most ``max_pictures`` images.

    Args:
        golden: Scores and maps.
        album: Encodes the pictures.
        max_pictures: Images per gallery.

    Returns:
        The section; its note says why something is missing.
    """
    if "candidate" not in golden.scores or max_pictures <= 0:
        return HeatMaps(note="No candidate scores, or no pictures were asked for.")
    painter = _Painter(golden, album)
    scores = np.nan_to_num(golden.scores["candidate"])
    order = np.argsort(-scores, kind="stable")
    chosen = {
        "Worst false alarms": ([i for i in order if not golden.labels[i]], False),
        "Missed defects": ([i for i in order[::-1] if golden.labels[i]], True),
    }
    groups = [
        Gallery(
            title=title,
            caption=_wrong(golden, "candidate", defective=defective),
            entries=[
                HeatMap(
                    name=golden.name(i),
                    panels=painter.paint(i, ["candidate"]),
                    facts=_facts(golden, i),
                )
                for i in indices[:max_pictures]
            ],
            note="" if indices else "The golden set has no such image.",
        )
        for title, (indices, defective) in chosen.items()
    ]
    groups.append(_disagreements(golden, painter, max_pictures))
    caption = (
        "Each map is drawn between the typical pixel of a good golden image (dark) and the typical peak of a defective "
        "one (bright), the same for every picture of a model. A green outline is the true defect, where a mask exists."
    )
    return HeatMaps(groups=groups, caption=caption, scale_uri=colour_scale_uri())


def _disagreements(golden: GoldenScores, painter: _Painter, max_pictures: int) -> Gallery:
    title = "Largest disagreements between champion and candidate"
    if "champion" not in golden.scores:
        return Gallery(
            title=title,
            caption="",
            entries=[],
            note="There was no champion to compare with.",
        )
    models = ("champion", "candidate")
    ranks = {model: _ranks(np.nan_to_num(golden.scores[model])) for model in models}
    distance = np.abs(ranks["champion"] - ranks["candidate"])
    flipped = np.asarray([golden.says("champion", i) != golden.says("candidate", i) for i in range(len(golden.paths))])
    order = np.lexsort((np.arange(len(distance)), -distance, ~flipped))[:max_pictures]
    entries = [
        HeatMap(
            name=golden.name(i),
            panels=painter.paint(i, models),
            facts=[
                LabelledValue(label="truth", value=golden.truth(i)),
                *(
                    LabelledValue(
                        label=model,
                        value=golden.says(model, i) or number(golden.scores[model][i], 4),
                        note=f"score {number(golden.scores[model][i], 4)}, rank {ranks[model][i]:.0%}",
                    )
                    for model in models
                ),
            ],
        )
        for i in order
    ]
    caption = (
        f"{int(flipped.sum())} of {len(golden.paths)} golden images are decided differently. Those come first, then "
        "the largest change of rank (the share of the golden set that scores lower), because raw scores of two models "
        "do not compare."
    )
    return Gallery(title=title, caption=caption, entries=entries, wide=True)
