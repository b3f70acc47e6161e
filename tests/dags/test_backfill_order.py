"""A backfill's runs go one after the other, oldest night first, whatever its creator asked Airflow for."""

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow.timetables.trigger import CronPartitionTimetable
from airflow.utils.types import DagRunType

from components.core.contracts import RunRef
from dags._run import _BACKFILL_RUN, _check_order
from tests.helpers.tiny_nights import KEY

# As Airflow names them: type, partition date, partition key, eight random letters.
FIRST, SECOND, THIRD = (f"backfill__2026-03-0{day}T02:00:00+00:00__2026-03-0{day}__aB3dE6gH" for day in (1, 2, 3))


def _context(reports: dict[str, str | None], runs: dict[str, str]) -> Any:
    """What Airflow tells a task: the state of every run's last step, and of a run."""
    ti = SimpleNamespace(
        get_task_states=lambda *, dag_id, task_ids: {run: {task_ids[0]: state} for run, state in reports.items()},
        get_dagrun_state=lambda *, dag_id, run_id: runs[run_id],
    )
    return {"ti": ti, "dag_run": SimpleNamespace(dag_id="nightly_retrain")}


def _second() -> RunRef:
    return RunRef(key=KEY, partition="2026-03-02", work_dir="work", backfill="airflow")


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_night_is_refused_while_an_earlier_one_of_a_backfill_waits_or_runs(state: str) -> None:
    context = _context({FIRST: None, SECOND: None, THIRD: None}, {FIRST: state})
    with pytest.raises(AirflowFailException, match=r"night 2026-03-01 .* is not done yet, and 2026-03-02 builds on it"):
        _check_order(context, _second())


@pytest.mark.parametrize(
    ("reports", "runs"),
    [
        ({SECOND: None, THIRD: None}, {}),
        ({FIRST: "success", SECOND: None}, {}),
        ({FIRST: None, SECOND: None}, {FIRST: "failed"}),  # cancelled before it began
        ({"scheduled__2026-03-01T02:00:00+00:00__2026-03-01__aB3dE6gH": None, SECOND: None}, {}),
        ({"manual__2026-03-01": None, "backfill__mine": None, SECOND: None}, {}),
    ],
)
def test_later_nights_nights_that_ended_and_other_runs_do_not_stand_in_the_way(
    reports: dict[str, str | None], runs: dict[str, str]
) -> None:
    _check_order(_context(reports, runs), _second())


def test_airflow_still_names_the_runs_of_a_backfill_by_their_nights() -> None:
    timetable = CronPartitionTimetable("0 2 * * *", timezone="UTC", key_format="%Y-%m-%d")
    run_id = timetable.generate_run_id(
        run_type=DagRunType.BACKFILL_JOB,
        run_after=pendulum.instance(dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)),
        data_interval=None,
        partition_key="2026-03-01",
    )
    named = _BACKFILL_RUN.fullmatch(run_id)
    assert named is not None
    assert named[1] == "2026-03-01"
