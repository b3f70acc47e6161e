"""Calls a component from a task: names the night, maps errors to retry or fail, keeps a record of how it went.

A step is a function ``(run, *outputs of the steps it depends on) -> contract``. Between two steps travels only the
plain JSON of a contract; no component sees Airflow.
"""

import datetime as dt
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow.sdk import Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from components.config import PipelineConfig, ScheduleSettings, load_config
from components.contracts import Contract, ModelKey, RunRef
from components.errors import InputError
from components.night_record import StepRecord, begin_step, read_night, write_record

__all__ = ["CONFIG_VARIABLE", "Json", "Step", "by_hand", "configuration", "failures_of", "person_params", "signed"]

CONFIG_VARIABLE = "STLM_CONFIG"
"""Environment variable with the path of the configuration; unset: the quick start's."""

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Step:
    """How the steps of one model key run: which night, how often to retry, how errors are read."""

    def __init__(self, key: ModelKey, work_dir: str, schedule: ScheduleSettings) -> None:
        self._key = key
        self._work_dir = work_dir
        self._schedule = schedule

    def __call__(self, **task_options: Any) -> Callable[[Callable[..., Contract]], Callable[..., Any]]:
        """Decorator that turns a step function into the task of the same name."""

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
        partition = _partition(context["dag_run"].partition_key, context["params"].get("partition"))
        try:
            return RunRef(key=self._key, partition=partition, work_dir=self._work_dir)
        except ValueError as error:
            raise AirflowFailException(str(error)) from error


def by_hand(schedule: ScheduleSettings, **task_options: Any) -> Callable[[Callable[[Json], Contract]], Any]:
    """Decorator that turns a function of the trigger form's values into a task; it belongs to no night.

    Args:
        schedule: How often to try again after an error that may pass.
        **task_options: Further options of the task.

    Returns:
        The decorator; calling what it gives makes the task.
    """

    def decorate(function: Callable[[Json], Contract]) -> Any:
        def body() -> Json:
            context = get_current_context()
            params = dict(context["params"])
            params["by"] = signed(params["by"], context["dag_run"].triggering_user_name)
            try:
                outputs = function(params).to_json()
            except InputError as error:
                raise AirflowFailException(f"{function.__name__}: {error}") from error
            logger.info("task=%s %s", function.__name__, outputs)
            return outputs

        return task(
            task_id=function.__name__,
            doc_md=function.__doc__,
            multiple_outputs=False,
            retries=schedule.retries,
            retry_delay=dt.timedelta(seconds=schedule.retry_delay_s),
            **task_options,
        )(body)

    return decorate


def signed(by: str, account: str | None) -> str:
    """Who decides: the name given, and the account that started the run where that is another one."""
    return by if account in (None, "", by) else f"{by} (account {account})"


def person_params(config: PipelineConfig) -> Json:
    """Parameters of every run in which a person decides: whose model, who, and why; wrong ones start no task."""
    keys = [model.key.slug for model in config.models]
    only: Json = {"default": keys[0]} if len(keys) == 1 else {}
    return {
        "key": Param(**only, type="string", enum=keys, description="Whose model: product.line.camera."),
        "reason": Param(type="string", pattern=r"\S", description="Why; kept in the ledger."),
        "by": Param(type="string", pattern=r"\S", description="Who you are; kept in the ledger."),
    }


def configuration() -> PipelineConfig:
    """The configuration named by the environment, or the quick start's in this repository."""
    default = Path(__file__).resolve().parents[1] / "infra" / "quickstart.toml"
    return load_config(os.environ.get(CONFIG_VARIABLE) or default)


def failures_of(run: RunRef, steps: tuple[str, ...]) -> tuple[str, ...]:
    """``step: why`` for each of ``steps`` that failed in the current run, in order.

    Airflow says what failed; the records say why, except for a task that was killed.
    """
    context = get_current_context()
    dag_run = context["dag_run"]
    answer = context["ti"].get_task_states(dag_id=dag_run.dag_id, task_ids=list(steps), run_ids=[dag_run.run_id])
    states = answer.get(dag_run.run_id, {})
    records = read_night(run)
    return tuple(f"{step}: {_why(records.get(step))}" for step in steps if states.get(step) == "failed")


def _why(record: StepRecord | None) -> str:
    if record is None or not record.detail:
        return "it ended without a message, as a killed task does; see the task's log"
    return record.detail


def _partition(partition_key: str | None, param: str | None) -> str:
    """The night: the scheduler's partition key, else the trigger form's; never the clock."""
    if partition_key and param and partition_key != param:
        raise AirflowFailException(f"the run's partition key is {partition_key}, its parameter says {param}")
    partition = partition_key or param
    if not partition:
        raise AirflowFailException("which night? give a partition key, or the parameter `partition`, as YYYY-MM-DD")
    return partition


def _run_step(function: Callable[..., Contract], run: RunRef, upstream: tuple[Any, ...]) -> Json:
    step = function.__name__
    begin_step(run, step)
    started = time.monotonic()

    def record(outcome: Any, detail: str = "", outputs: Json | None = None) -> None:
        seconds = round(time.monotonic() - started, 2)
        logger.info(
            "step=%s night=%s outcome=%s seconds=%.2f %s",
            step,
            run.partition,
            outcome,
            seconds,
            detail,
        )
        write_record(
            run,
            StepRecord(
                step=step,
                outcome=outcome,
                seconds=seconds,
                detail=detail,
                outputs=outputs,
            ),
        )

    try:
        outputs = function(run, *upstream).to_json()
    except AirflowSkipException as reason:
        record("SKIPPED", str(reason))
        raise
    except InputError as error:
        record("FAILED", str(error))
        raise AirflowFailException(f"{step}: {error}") from error
    except Exception as error:
        record("FAILED", f"{type(error).__name__}: {error}")
        raise
    record("SUCCEEDED", outputs=outputs)
    return outputs
