"""Forgetting on the page: models of the last nights on the held-out normals of each night.

Nothing is scored for it. Every night's evaluation has scored the held-out normals of that night and of those before it
with the candidate and with the champion; its arrays are read from the folders of the last nights.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from components.core.contracts import EvaluationRef, PromotionRef, RunRef
from components.core.npz import read_arrays
from components.core.run_records import read_night
from components.rendering.facts import MINUS
from components.steps.report.inputs import ReportInputs, why_missing
from components.steps.report.metrics_table import read_json, thresholds_of
from stlm.metrics import auroc

__all__ = ["EarlierNights", "Grid", "GridCell", "GridRow", "gather_nights"]

logger = logging.getLogger(__name__)

_MAX_NIGHTS = 14
_OLDER = "older"
_FULL_HEAT = 0.4
"""This far from what is right, a cell is as hot as can be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridCell:
    """A figure of one model on the normals of one night."""

    value: str
    note: str
    heat: int
    """Percent of the alarm colour behind the figure; at most 50, so that it stays readable."""
    is_own: bool
    """Whether the model was trained on that night."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridRow:
    """One model."""

    night: str
    status: str
    cells: list[GridCell | None]
    """One per column; ``None`` where it was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """One figure of all models on all nights."""

    title: str
    caption: str
    rows: list[GridRow]


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierNights:
    """The section of the page; without grids, ``note`` says why."""

    columns: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    forgetting: float | None = None
    """Mean over earlier nights: false-alarm rate of this night's candidate minus that of the night's own."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Measured:
    """What one night's evaluation left of ``K`` held-out normals."""

    night: str
    status: str
    version: int | None
    champion_version: int | None
    nights: NDArray[np.str_]
    """``(K,)``."""
    scores: Mapping[str, NDArray[np.float64]]
    """``candidate`` and, where there was one, ``champion``; ``(K,)``."""
    thresholds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cell:
    num: int
    num_alarms: int
    above_own: float | None
    """Share of pairs in which one of these scores above one of the model's own night; ``None`` where not two nights."""

    @property
    def rate(self) -> float:
        return self.num_alarms / self.num


_Cells = dict[str, dict[str, _Cell]]
"""Row -> column -> cell."""


class _Draw(Protocol):
    def __call__(self, cell: _Cell, *, is_own: bool) -> GridCell | None: ...


def gather_nights(inputs: ReportInputs) -> EarlierNights:
    """Stack what the last nights measured.

    Args:
        inputs: The night; earlier ones are found in its work folder.

    Returns:
        The section; its note says why something is missing.
    """
    measured, unread = _last_nights(inputs)
    if not measured:
        return EarlierNights(note=why_missing(inputs, "evaluate") if not unread else _unread(unread))
    columns = sorted({str(night) for one in measured for night in one.nights})
    if len(columns) < 2:
        return EarlierNights(note="There is no earlier night to compare with yet.")
    old, columns = columns[:-_MAX_NIGHTS], columns[-_MAX_NIGHTS:]
    cells, rows = _cells(measured, old)
    shown = [_OLDER, *columns] if any(_OLDER in row for row in cells.values()) else columns
    forgetting, sentences = _reading(cells, inputs.run.partition, columns)
    return EarlierNights(
        columns=shown,
        grids=[_alarms(cells, rows, shown), _shifts(cells, rows, shown)],
        sentences=sentences,
        forgetting=forgetting,
        note=_unread(unread) if unread else "",
    )


def _unread(nights: Sequence[str]) -> str:
    return f"What these nights measured cannot be read: {', '.join(nights)}."


def _last_nights(inputs: ReportInputs) -> tuple[list[_Measured], list[str]]:
    """The last nights that were evaluated, this one included, in order; and those that cannot be read."""
    measured, unread = list[_Measured](), list[str]()
    for night, evaluation, promotion in _evaluations(inputs, unread):
        if len(measured) == _MAX_NIGHTS:
            break
        try:
            measured.append(_read(night, evaluation, promotion))
        except (OSError, KeyError, ValueError) as error:
            logger.warning("normals of night %s stay off the page: %s", night, error)
            unread.append(night)
    return measured[::-1], sorted(unread)


def _evaluations(inputs: ReportInputs, unread: list[str]) -> Iterator[tuple[str, EvaluationRef, PromotionRef | None]]:
    """Newest first."""
    if inputs.evaluation is not None:
        yield inputs.run.partition, inputs.evaluation, inputs.promotion
    for night in _nights_before(inputs.run):
        try:
            records = read_night(replace(inputs.run, partition=night))
            found = {step: record.outputs for step, record in records.items() if record.outputs is not None}
            if "evaluate" in found:
                promotion = PromotionRef.from_json(found["promote"]) if "promote" in found else None
                yield night, EvaluationRef.from_json(found["evaluate"]), promotion
        except (OSError, ValueError) as error:
            logger.warning("records of night %s cannot be read: %s", night, error)
            unread.append(night)


def _nights_before(run: RunRef) -> list[str]:
    names = (path.parent.name for path in run.run_dir.parent.glob("*/records"))
    return sorted((name for name in names if name < run.partition), reverse=True)


def _read(night: str, evaluation: EvaluationRef, promotion: PromotionRef | None) -> _Measured:
    path = Path(evaluation.report_path)
    thresholds = thresholds_of(read_json(path))
    arrays = read_arrays(path.with_name("normals.npz"))
    nights = arrays["nights"]
    scores: dict[str, NDArray[np.float64]] = {
        model: arrays[f"{model}_scores"].astype(np.float64)
        for model in ("candidate", "champion")
        if f"{model}_scores" in arrays and model in thresholds
    }
    if "candidate" not in scores or any(values.shape != nights.shape for values in scores.values()):
        raise ValueError("normals.npz lacks scores or threshold of the candidate")
    return _Measured(
        night=night,
        status=_status(promotion),
        version=None if promotion is None else promotion.version,
        champion_version=evaluation.champion_version,
        nights=nights,
        scores=scores,
        thresholds=thresholds,
    )


def _status(promotion: PromotionRef | None) -> str:
    if promotion is None:
        return "not judged"
    version = "" if promotion.version is None else f"v{promotion.version} "
    return version + promotion.outcome.lower().replace("_", " ")


def _cells(measured: Sequence[_Measured], old: Sequence[str]) -> tuple[_Cells, dict[str, str]]:
    """All cells, and the rows with their status."""
    rows = {one.night: one.status for one in measured}
    cells: _Cells = {night: {} for night in rows}
    nights_of = {one.version: one.night for one in measured if one.version is not None}
    for one in measured:
        columns = np.where(np.isin(one.nights, old), _OLDER, one.nights)
        for column in np.unique(columns).tolist():
            found = _cell(one, "candidate", columns == column, one.night)
            if found is not None:
                cells[one.night][column] = found
        if one.champion_version is not None:
            # A model is measured on later nights, of which it knows nothing, only while it is the champion.
            row = nights_of.get(one.champion_version, f"v{one.champion_version}")
            found = _cell(one, "champion", one.nights == one.night, row)
            if found is not None:
                rows.setdefault(row, "champion from before")
                cells.setdefault(row, {}).setdefault(one.night, found)
    before = sorted((row for row in rows if row.startswith("v")), key=lambda row: int(row[1:]))
    return cells, {row: rows[row] for row in (*before, *(one.night for one in measured))}


def _cell(one: _Measured, model: str, chosen: NDArray[np.bool_], own: str) -> _Cell | None:
    if model not in one.scores or not chosen.any():
        return None
    scores, is_own = one.scores[model], (one.nights == own) & ~chosen
    if not np.isfinite(scores).all():
        return None
    among = chosen | is_own
    return _Cell(
        num=int(chosen.sum()),
        num_alarms=int((scores[chosen] > one.thresholds[model]).sum()),
        above_own=auroc(scores[among], chosen[among]) if is_own.any() else None,
    )


def _reading(cells: _Cells, tonight: str, columns: Sequence[str]) -> tuple[float | None, list[str]]:
    """Forgetting, and what can be read off the matrix in words."""
    sentences = []
    old = [cell for column, cell in cells.get(tonight, {}).items() if column != tonight]
    if old:
        alarms, num = sum(cell.num_alarms for cell in old), sum(cell.num for cell in old)
        sentences.append(
            f"This night's candidate raises {_count(alarms, 'alarm')} on {num} held-out normals of earlier nights "
            f"({alarms / num:.1%})."
        )
    learnt = [
        cells[tonight][column].rate - cells[column][column].rate
        for column in columns
        if column != tonight and column in cells.get(tonight, {}) and column in cells.get(column, {})
    ]
    forgetting = float(np.mean(learnt)) if learnt else None
    if forgetting is not None:
        change = f"{100 * forgetting:+.1f}".replace("-", MINUS)
        sentences.append(
            f"Forgetting: against the candidate that each night was learnt with, its false-alarm rate has changed by "
            f"{change} points, the mean of {_count(len(learnt), 'earlier night')}."
        )
    met = [
        (row[column].rate, cells[column][column].rate)
        for night, row in cells.items()
        for column in columns
        if column in row and column in cells.get(column, {}) and (night < column or night.startswith("v"))
    ]
    if met:
        before, after = np.mean(met, axis=0)
        sentences.append(
            f"New nights: the champion, which had not seen them, raises alarms on {before:.1%} of their normals, their "
            f"own candidate on {after:.1%}, the mean of {_count(len(met), 'night')}."
        )
    return forgetting, sentences


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _alarms(cells: _Cells, rows: Mapping[str, str], columns: Sequence[str]) -> Grid:
    def draw(cell: _Cell, *, is_own: bool) -> GridCell:
        note = f"{cell.num_alarms} of {cell.num}"
        return GridCell(value=f"{cell.rate:.0%}", note=note, heat=_heat(cell.rate), is_own=is_own)

    caption = (
        "Rows are the candidates of the last nights at their own thresholds, columns the nights of the held-out "
        "normals; the night that a candidate learnt is framed. Right of the frame stands the champion on nights that "
        "it had not seen. Few normals of each night are kept, so one alarm moves a cell far; whether a rise is more "
        'than chance is for the gate\'s rule "forgetting" to say.'
    )
    return Grid(title="False alarms on held-out normals", caption=caption, rows=_rows(cells, rows, columns, draw))


def _shifts(cells: _Cells, rows: Mapping[str, str], columns: Sequence[str]) -> Grid:
    def draw(cell: _Cell, *, is_own: bool) -> GridCell | None:
        if cell.above_own is None:
            return GridCell(value="", note="", heat=0, is_own=True) if is_own else None
        return GridCell(value=f"{cell.above_own:.0%}", note="", heat=_heat(cell.above_own - 0.5), is_own=is_own)

    caption = (
        "How often a normal of the column's night scores above one of the row's own night: 50 % is alike, more is "
        "stranger to the model. It does not depend on thresholds, and moves before alarms do."
    )
    # Of a champion from before, no score of its own night is at hand.
    drawn = [row for row in _rows(cells, rows, columns, draw) if any(row.cells)]
    return Grid(title="Shift of the scores", caption=caption, rows=drawn)


def _rows(cells: _Cells, rows: Mapping[str, str], columns: Sequence[str], draw: _Draw) -> list[GridRow]:
    return [
        GridRow(
            night=night,
            status=status,
            cells=[
                draw(cells[night][column], is_own=column == night) if column in cells[night] else None
                for column in columns
            ],
        )
        for night, status in rows.items()
    ]


def _heat(excess: float) -> int:
    return round(50 * min(1.0, max(0.0, excess / _FULL_HEAT)))
