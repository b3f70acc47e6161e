"""The matrix of models and nights: read off what earlier nights left, bounded, and never worth a missing page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.config import MlflowSettings
from components.core.atomic_files import write_json
from components.core.contracts import EvaluationRef, ModelKey, PromotionRef, RunRef
from components.core.run_records import StepRecord, read_night, write_record
from components.steps.report.forgetting import EarlierNights, gather_nights
from components.steps.report.inputs import ReportInputs

KEY = ModelKey(product="tiles", line="line1", camera="cam1")
CALM, LOUD = 0.2, 0.8
"""Scores below and above every threshold."""


def evaluated(
    root: Path,
    night: str,
    scores: Mapping[str, Sequence[float]],
    *,
    champion: int | None = None,
    champion_scores: Sequence[float] = (),
    version: int | None = None,
) -> ReportInputs:
    """A night whose candidate gave these scores to held-out normals, per night; the champion, to the night's own."""
    run = RunRef(key=KEY, partition=night, work_dir=str(root))
    nights = [name for name, values in scores.items() for _ in values]
    arrays = {"nights": np.array(nights), "candidate_scores": np.concatenate([*scores.values()]).astype(np.float32)}
    report = {"candidate": {"calibration": {"threshold": 0.5}}}
    if champion is not None:
        theirs = np.full(len(nights), CALM, dtype=np.float32)
        theirs[[name == night for name in nights]] = champion_scores
        arrays["champion_scores"] = theirs
        report["champion"] = {"calibration": {"threshold": 0.6}}
    write_json(run.run_dir / "evaluate" / "report.json", report)
    np.savez(run.run_dir / "evaluate" / "normals.npz", **arrays)
    evaluation = EvaluationRef(
        report_path=str(run.run_dir / "evaluate" / "report.json"),
        scores_path="",
        digest="",
        golden_digest="",
        candidate_key="",
        champion_version=champion,
        synthetic_pixels=False,
        metrics={},
        champion_metrics={},
    )
    promotion = PromotionRef(
        outcome="REFUSED" if version is None else "PROMOTED",
        name=KEY.registered_model,
        version=version,
        champion_version=version,
        previous_version=champion,
    )
    for step, outputs in (("evaluate", evaluation), ("promote", promotion)):
        write_record(run, StepRecord(step=step, outcome="SUCCEEDED", seconds=1.0, outputs=outputs.to_json()))
    return ReportInputs(
        run=run,
        evaluation=evaluation,
        promotion=promotion,
        golden="",
        mlflow=MlflowSettings(tracking_uri="", artifact_root=""),
    )


def three_nights(root: Path) -> ReportInputs:
    first, second, third = "2026-11-01", "2026-11-02", "2026-11-03"
    evaluated(root, first, {first: [CALM] * 4}, version=1)
    evaluated(
        root,
        second,
        {first: [CALM] * 3, second: [CALM] * 4},
        champion=1,
        champion_scores=[LOUD] * 3 + [0.55],
        version=2,
    )
    return evaluated(
        root,
        third,
        {first: [LOUD, CALM], second: [CALM] * 3, third: [0.3] * 4},
        champion=2,
        champion_scores=[LOUD, CALM, CALM, CALM],
    )


def values(found: EarlierNights, grid: int = 0) -> dict[str, list[str]]:
    return {
        f"{row.night} {row.status}": ["" if cell is None else cell.value for cell in row.cells]
        for row in found.grids[grid].rows
    }


def test_a_row_is_a_model_and_a_column_the_normals_of_a_night(tmp_path: Path) -> None:
    found = gather_nights(three_nights(tmp_path))

    assert found.columns == ["2026-11-01", "2026-11-02", "2026-11-03"]
    # Right of its own night, a model is measured as the champion, at its own threshold: 0.55 is no alarm there.
    assert values(found) == {
        "2026-11-01 v1 promoted": ["0%", "75%", ""],
        "2026-11-02 v2 promoted": ["0%", "0%", "25%"],
        "2026-11-03 refused": ["50%", "0%", "0%"],
    }
    assert [[cell is not None and cell.is_own for cell in row.cells] for row in found.grids[0].rows] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert found.grids[0].rows[2].cells[0] is not None
    assert found.grids[0].rows[2].cells[0].note == "1 of 2"


def test_forgetting_is_the_change_since_each_night_was_learnt(tmp_path: Path) -> None:
    found = gather_nights(three_nights(tmp_path))

    assert found.forgetting == pytest.approx((0.5 - 0.0 + 0.0 - 0.0) / 2)
    assert found.sentences == [
        "This night's candidate raises 1 alarm on 5 held-out normals of earlier nights (20.0%).",
        (
            "Forgetting: against the candidate that each night was learnt with, its false-alarm rate has changed by "
            "+25.0 points, the mean of 2 earlier nights."
        ),
        (
            "New nights: the champion, which had not seen them, raises alarms on 50.0% of their normals, their own "
            "candidate on 0.0%, the mean of 2 nights."
        ),
    ]


def test_the_shift_says_how_often_another_nights_normal_scores_higher(tmp_path: Path) -> None:
    found = gather_nights(three_nights(tmp_path))

    assert values(found, grid=1) == {
        "2026-11-01 v1 promoted": ["", "100%", ""],
        "2026-11-02 v2 promoted": ["50%", "", "62%"],
        "2026-11-03 refused": ["50%", "0%", ""],
    }


def test_at_most_fourteen_nights_are_shown_and_older_normals_share_a_column(tmp_path: Path) -> None:
    nights = [f"2026-10-{day:02d}" for day in range(1, 21)]
    for number, night in enumerate(nights, start=1):
        known = {name: [CALM] for name in nights[: number - 1]} | {night: [CALM, LOUD]}
        inputs = evaluated(
            tmp_path, night, known, champion=number - 1 or None, champion_scores=[LOUD, LOUD], version=number
        )

    found = gather_nights(inputs)

    assert found.columns == ["older", *nights[-14:]]
    rows = values(found)
    # The champion that the first of them was measured against is older, but known by that measurement.
    assert list(rows)[:2] == ["v6 champion from before", "2026-10-07 v7 promoted"]
    assert len(rows) == 15
    assert len(values(found, grid=1)) == 14
    assert found.grids[0].rows[-1].cells[0] is not None
    assert found.grids[0].rows[-1].cells[0].note == "0 of 6"


def test_a_night_that_is_run_again_knows_nothing_of_later_ones(tmp_path: Path) -> None:
    again = replace(three_nights(tmp_path).run, partition="2026-11-02")
    second = three_nights(tmp_path)
    evaluation = EvaluationRef.from_json(read_night(again)["evaluate"].outputs)

    found = gather_nights(replace(second, run=again, evaluation=evaluation, promotion=None))

    assert values(found) == {"2026-11-01 v1 promoted": ["0%", "75%"], "2026-11-02 not judged": ["0%", "0%"]}


def test_a_first_night_and_a_night_without_evaluation_say_so(tmp_path: Path) -> None:
    first = evaluated(tmp_path, "2026-11-01", {"2026-11-01": [CALM] * 4}, version=1)
    assert gather_nights(first).note == "There is no earlier night to compare with yet."

    stopped = replace(
        first, run=replace(first.run, work_dir=str(tmp_path / "other")), evaluation=None, failures=("export: no disk",)
    )
    assert "left no result" in gather_nights(replace(stopped, failures=())).note
    assert gather_nights(stopped).grids == []


def spoil(path: Path, where: float) -> None:
    """Turn over one byte."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run_dir: (run_dir / "evaluate" / "normals.npz").write_bytes(b"no archive"),
        lambda run_dir: (run_dir / "evaluate" / "normals.npz").unlink(),
        lambda run_dir: spoil(run_dir / "evaluate" / "normals.npz", 0.5),
        lambda run_dir: (run_dir / "evaluate" / "report.json").write_text("{}"),
        lambda run_dir: (run_dir / "records" / "evaluate.json").write_text("{"),
        lambda run_dir: np.savez(run_dir / "evaluate" / "normals.npz", nights=np.array(["x"]), candidate_scores=[1, 2]),
    ],
)
def test_a_night_that_cannot_be_read_costs_its_own_row(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    inputs = three_nights(tmp_path)
    damage(replace(inputs.run, partition="2026-11-02").run_dir)

    found = gather_nights(inputs)

    assert found.note == "What these nights measured cannot be read: 2026-11-02."
    assert list(values(found))[-1] == "2026-11-03 refused"
    assert "v2 champion from before" in values(found)


def test_scores_that_are_not_finite_leave_their_cells_empty(tmp_path: Path) -> None:
    evaluated(tmp_path, "2026-11-01", {"2026-11-01": [CALM] * 4}, version=1)
    inputs = evaluated(tmp_path, "2026-11-02", {"2026-11-01": [CALM], "2026-11-02": [float("nan")]})

    assert values(gather_nights(inputs))["2026-11-02 refused"] == ["", ""]
