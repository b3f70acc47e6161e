"""Calls a component from a task: names the night, maps errors to retry or fail, remembers why a step failed.

A step is a function ``(run, *outputs of the steps it depends on) -> contract``. Everything between two steps is the
plain JSON of a contract; no step sees Airflow.
"""

import datetime as dt
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow.sdk import get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from components.config import PipelineConfig, ScheduleSettings, load_config
from components.contracts import Contract, ModelKey, RunRef, to_json
from components.errors import InputError

__all__ = ["CONFIG_VARIABLE", "Json", "Skip", "Step", "configuration", "failures_of"]

CONFIG_VARIABLE = "STLM_CONFIG"
"""Environment variable with the path of the configuration; unset: the quick start's."""

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Skip(Exception):  # noqa: N818  # not an error: the night has nothing for this step
    """Raised by a step's wiring when there is nothing to do."""


class Step:
    """How the steps of one model key run: which night, how often to retry, how errors are read."""

    def __init__(
        self, key: ModelKey, work_dir: str, schedule: ScheduleSettings
    ) -> None:
        self._key = key
        self._work_dir = work_dir
        self._schedule = schedule

    def __call__(
        self, **task_options: Any
    ) -> Callable[[Callable[..., Contract]], Callable[..., Any]]:
        """Decorator that turns a step function into a task of the same name."""

        def decorate(function: Callable[..., Contract]) -> Callable[..., Any]:
            def body(*upstream: Any) -> Json:
                return _run_step(function, self._run_ref(), upstream)

            options = {
                "task_id": function.__name__,
                "doc_md": function.__doc__,
                "multiple_outputs": False,
                "retries": self._schedule.retries,
                "retry_delay": dt.timedelta(seconds=self._schedule.retry_delay_s),
            }
            decorated: Callable[..., Any] = task(**(options | task_options))(body)
            return decorated

        return decorate

    def _run_ref(self) -> RunRef:
        context = get_current_context()
        partition = _partition(
            context["dag_run"].partition_key, context["params"].get("partition")
        )
        try:
            return RunRef(key=self._key, partition=partition, work_dir=self._work_dir)
        except ValueError as error:
            raise AirflowFailException(str(error)) from error


def configuration() -> PipelineConfig:
    """The configuration named by the environment, or the quick start's next to this repository."""
    default = Path(__file__).resolve().parents[1] / "infra" / "quickstart.toml"
    return load_config(os.environ.get(CONFIG_VARIABLE) or default)


def _partition(partition_key: str | None, param: str | None) -> str:
    """The night: the scheduler's partition key, else the trigger form's; never the clock."""
    if partition_key and param and partition_key != param:
        raise AirflowFailException(
            f"the run's partition key is {partition_key}, its parameter says {param}"
        )
    partition = partition_key or param
    if not partition:
        raise AirflowFailException(
            "which night? give a partition key, or the parameter `partition`, as YYYY-MM-DD"
        )
    return partition


def _run_step(
    function: Callable[..., Contract], run: RunRef, upstream: tuple[Any, ...]
) -> Json:
    name = function.__name__
    note = _failure_note(run, name)
    started = time.monotonic()
    try:
        outputs = to_json(function(run, *upstream))
    except Skip as reason:
        raise AirflowSkipException(str(reason)) from None
    except InputError as error:
        _write_note(note, str(error))
        raise AirflowFailException(f"{name}: {error}") from error
    except Exception as error:
        _write_note(note, f"{type(error).__name__}: {error}")
        raise
    note.unlink(missing_ok=True)
    logger.info(
        "step=%s key=%s night=%s seconds=%.1f",
        name,
        run.key.slug,
        run.partition,
        time.monotonic() - started,
    )
    return dict(outputs)


def _failure_note(run: RunRef, name: str) -> Path:
    return run.run_dir / "failures" / f"{name}.json"


def _write_note(note: Path, message: str) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_suffix(".partial")
    partial.write_text(json.dumps(message), encoding="utf-8")
    partial.replace(note)


def failures_of(run: RunRef, steps: list[str]) -> tuple[str, ...]:
    """``step: why`` for each of ``steps`` that failed in the current run, in order."""
    context = get_current_context()
    ti, dag_run = context["ti"], context["dag_run"]
    states = ti.get_task_states(
        dag_id=dag_run.dag_id, task_ids=steps, run_ids=[dag_run.run_id]
    )[dag_run.run_id]
    failed = [name for name in steps if str(states.get(name)) == "failed"]
    return tuple(f"{name}: {_read_note(_failure_note(run, name))}" for name in failed)


def _read_note(note: Path) -> str:
    if not note.exists():
        return "ended without a message, for example killed; see the task's log"
    return str(json.loads(note.read_text(encoding="utf-8")))
