"""The deadline of training: a night that is not trained by then is told, once; the champion stays.

One DAG for all model keys, at the hour of ``alerts.training_deadline``. It reads the nights' records and depends on no
run of theirs, so it also finds a night that never began. (Airflow's own deadline alerts are experimental, hang on a
run that exists and on its end, which a night that waits for approval reaches hours after its training, and know no
hour of the clock for runs without a logical date, which partitioned runs are.) The night that is looked at is the last
one due before the deadline; a run started by hand names the day of the deadline in the parameter ``day``.
"""

import datetime as dt
from zoneinfo import ZoneInfo

from airflow.sdk import DAG, CronPartitionTimetable, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from components.config import PipelineConfig, ScheduleSettings
from components.core.contracts import RunRef
from dags._run import Json, configuration, retrying

__all__ = ["night_before", "watch_nights"]


def night_before(schedule: ScheduleSettings, moment: dt.datetime) -> str | None:
    """The night that was due last before a moment, ``YYYY-MM-DD``; ``None`` where none was within a day."""
    from croniter import croniter

    due: dt.datetime = croniter(schedule.cron, moment).get_prev(dt.datetime)
    return due.date().isoformat() if moment - due <= dt.timedelta(days=1) else None


def watch_nights(config: PipelineConfig) -> DAG:
    """Wire the one task.

    Args:
        config: The pipeline's configuration, with a deadline.

    Returns:
        The DAG.
    """
    schedule, deadline = config.schedule, config.alerts.training_deadline
    hour, minute = deadline.split(":")

    def watch() -> Json:
        """Tell of every key whose night is not trained."""
        from components.notifications import deadline as component

        context = get_current_context()
        day = context["dag_run"].partition_key or context["params"]["day"]
        if not day:
            raise AirflowFailException("which day? give the parameter `day`, as YYYY-MM-DD")
        moment = dt.datetime.fromisoformat(f"{day}T{deadline}").replace(tzinfo=ZoneInfo(schedule.timezone))
        night = night_before(schedule, moment)
        if night is None:
            raise AirflowSkipException(f"no night was due in the day before {day} {deadline}")
        return {
            model.key.slug: component.watch(
                component.DeadlineInputs(
                    run=RunRef(key=model.key, partition=night, work_dir=config.paths.work_dir),
                    deadline=f"{day} {deadline} {schedule.timezone}",
                    mlflow=config.mlflow,
                    alerts=config.alerts,
                    settings=config.notify,
                )
            ).to_json()
            for model in config.models
        }

    with DAG(
        dag_id="watch_nights",
        description="is training done by the hour set?",
        doc_md=__doc__,
        schedule=CronPartitionTimetable(
            f"{int(minute)} {int(hour)} * * *", timezone=schedule.timezone, key_format="%Y-%m-%d"
        ),
        start_date=schedule.start,
        catchup=False,
        max_active_runs=1,
        params={
            "day": Param(
                None, type=["null", "string"], format="date", description="The day of the deadline, of a run by hand."
            )
        },
        tags=["watch_nights"],
    ) as dag:
        task(**retrying(schedule))(watch)()
    return dag


_CONFIG = configuration()
DAGS = {dag.dag_id: dag for dag in ([watch_nights(_CONFIG)] if _CONFIG.alerts.training_deadline else [])}
