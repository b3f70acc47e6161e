"""Task runner: calls a component, names the night, maps errors to retry or fail, records how it went.

A step is a function ``(run, *outputs of the steps it depends on) -> contract``. Between two steps travels only the
plain JSON of a contract; no component sees Airflow.
"""

import contextlib
import contextvars
import datetime as dt
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airflow.sdk import Context, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from components.config import PipelineConfig, PromoteSettings, ScheduleSettings, load_config
from components.core.contracts import Contract, Fence, ModelKey, RunRef
from components.core.errors import InputError, TransientError
from components.core.run_records import STEPS, StepRecord, begin_step, is_locked, read_night, write_record
from dags._metrics import step_ended

__all__ = [
    "AIRFLOW_BACKFILL",
    "CONFIG_VARIABLE",
    "Json",
    "Step",
    "backfill_of",
    "began",
    "configuration",
    "current_fence",
    "failures_of",
    "manual_task",
    "person_params",
    "retrying",
    "with_account",
]

CONFIG_VARIABLE = "STLM_CONFIG"
"""Environment variable with the path of the configuration; unset: the quick start's."""

AIRFLOW_BACKFILL = "airflow"
"""Name of the backfill that Airflow's own backfills belong to, unless their parameter ``backfill`` gives another."""

_FENCE: contextvars.ContextVar[Fence | None] = contextvars.ContextVar("fence", default=None)
_BACKFILL_RUN = re.compile(r"backfill__.*__(\d{4}-\d{2}-\d{2})__[^_]*")
_ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Step:
    """How the steps of one model key run: which night, how often to retry, how errors are read.

    Args:
        key: The key.
        work_dir: Folder of its nights.
        schedule: How often to retry, and how long to wait for the key.
        ledger: Where the key's lease is; ``None`` for steps that build on no model and so need none.
    """

    def __init__(
        self, key: ModelKey, work_dir: str, schedule: ScheduleSettings, ledger: PromoteSettings | None = None
    ) -> None:
        self._key = key
        self._work_dir = work_dir
        self._schedule = schedule
        self._ledger = ledger

    def __call__(self, **task_options: Any) -> Callable[[Callable[..., Contract]], Callable[..., Any]]:
        """Decorator that turns a step function into the task of the same name."""

        def decorate(function: Callable[..., Contract]) -> Callable[..., Any]:
            def body(*upstream: Any) -> Json:
                run = self._run_ref()
                with self._key_held(function.__name__, run):
                    return _run_step(function, run, upstream)

            return _task_of(function, body, self._schedule, task_options)

        return decorate

    def _run_ref(self) -> RunRef:
        context = get_current_context()
        dag_run, params = context["dag_run"], context["params"]
        partition = _partition(dag_run.partition_key, params.get("partition"))
        try:
            return RunRef(key=self._key, partition=partition, work_dir=self._work_dir, backfill=backfill_of(context))
        except ValueError as error:
            raise AirflowFailException(str(error)) from error

    @contextlib.contextmanager
    def _key_held(self, step: str, run: RunRef) -> Iterator[None]:
        """Hold the model key for this step; the last step gives it back.

        A nightly run that does not get it is skipped: its lots stay where they are, and the next night takes them. A
        backfill's run fails, so that it is not taken for done.
        """
        if self._ledger is None:
            yield
            return
        from components.adapters.lease import LeaseHeldError
        from components.adapters.run_lock import open_run_lock

        context = get_current_context()
        is_first, is_last = step == STEPS[0], step == STEPS[-1]
        if is_first and run.backfill:
            _check_order(context, run)
        begun = _states(context, [STEPS[0]]).get(STEPS[0]) if is_last else None
        if begun == "skipped" or (begun == "failed" and run.backfill):
            raise AirflowSkipException("the night did not begin, so there is nothing to report")
        run_lock = open_run_lock(self._key, work_dir=self._work_dir, promote=self._ledger, schedule=self._schedule)
        what = f"backfill {run.backfill}" if run.backfill else "nightly run"
        name = f"{what} {run.partition} ({context['dag_run'].run_id})"
        with contextlib.ExitStack() as stack:
            try:
                fence = stack.enter_context(run_lock.held(name, release=is_last))
            except LeaseHeldError as error:
                _locked(step, run, f"locked by {run_lock.holder() or 'another run'}: {error}")
                raise
            token = _FENCE.set(fence)
            stack.callback(_FENCE.reset, token)
            try:
                yield
            except BaseException:
                if is_first and run.backfill:  # nothing else of this run will give it back
                    with contextlib.suppress(TransientError):
                        fence.release()
                raise


def backfill_of(context: Context) -> str:
    """Name of the backfill that a run belongs to; empty for an ordinary run."""
    named = context["params"].get("backfill")
    return str(named) if named else AIRFLOW_BACKFILL if context["dag_run"].run_type == "backfill" else ""


def current_fence() -> Fence | None:
    """The fence under which the present step runs; ``None`` where it needs none."""
    return _FENCE.get()


def _locked(step: str, run: RunRef, why: str) -> None:
    logger.warning("step=%s night=%s %s", step, run.partition, why)
    if step != STEPS[0] or run.backfill:
        return
    if not read_night(run):  # the holder may be at work on this very night
        write_record(run, StepRecord(step=step, outcome="SKIPPED", seconds=0.0, detail=why))
    raise AirflowSkipException(why)


def _check_order(context: Context, run: RunRef) -> None:
    """Refuse a backfill that runs backwards or several nights at a time: each builds on the one before.

    Airflow tells a run nothing about its backfill, but a backfill's runs are all there from the beginning, and their
    ids name their nights.
    """
    dag_run, ti = context["dag_run"], context["ti"]
    states = ti.get_task_states(dag_id=dag_run.dag_id, task_ids=[STEPS[-1]])
    for run_id, of_run in states.items():
        named = _BACKFILL_RUN.fullmatch(run_id)
        if named is None or named[1] >= run.partition or of_run.get(STEPS[-1]) in _ENDED:
            continue
        if ti.get_dagrun_state(dag_id=dag_run.dag_id, run_id=run_id) in ("queued", "running"):
            raise AirflowFailException(
                f"out of order: night {named[1]} of a backfill of this key is not done yet, and {run.partition} builds "
                f"on it; create the backfill with max_active_runs 1, and not backwards"
            )


def _task_of(
    function: Callable[..., Contract], body: Callable[..., Json], schedule: ScheduleSettings, more: dict[str, Any]
) -> Callable[..., Any]:
    """``body`` as the task that is named and described like ``function``; ``more`` may change every option."""
    options = {
        "task_id": function.__name__,
        "doc_md": function.__doc__,
        "multiple_outputs": False,
        **retrying(schedule),
    }
    decorated: Callable[..., Any] = task(**(options | more))(body)
    return decorated


def retrying(schedule: ScheduleSettings) -> dict[str, Any]:
    """A task's options that say how often it tries again after an error that may pass."""
    return {"retries": schedule.retries, "retry_delay": dt.timedelta(seconds=schedule.retry_delay_s)}


def manual_task(schedule: ScheduleSettings, **task_options: Any) -> Callable[[Callable[[Json], Contract]], Any]:
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
            params["by"] = with_account(params["by"], context["dag_run"].triggering_user_name)
            try:
                outputs = function(params).to_json()
            except InputError as error:
                raise AirflowFailException(f"{function.__name__}: {error}") from error
            logger.info("task=%s %s", function.__name__, outputs)
            return outputs

        return _task_of(function, body, schedule, task_options)

    return decorate


def with_account(by: str, account: str | None) -> str:
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
    states = _states(get_current_context(), list(steps))
    records = read_night(run)
    return tuple(f"{step}: {_why(records.get(step))}" for step in steps if states.get(step) == "failed")


def began(run: RunRef) -> bool:
    """Whether the records of the night are the current run's own: one that found the key held may find the holder's."""
    skipped = _states(get_current_context(), [STEPS[0]]).get(STEPS[0]) == "skipped"
    return not skipped or is_locked(read_night(run))


def _states(context: Context, steps: list[str]) -> dict[str, Any]:
    """Step -> Airflow's state of its task in the present run."""
    dag_run = context["dag_run"]
    answer = context["ti"].get_task_states(dag_id=dag_run.dag_id, task_ids=steps, run_ids=[dag_run.run_id])
    states: dict[str, Any] = answer.get(dag_run.run_id, {})
    return states


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
            current_fence(),
        )
        step_ended(run, step, outcome, seconds, outputs)

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
