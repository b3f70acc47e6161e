"""Notify task: the last one of a night, where somebody is to be told how it ended."""

import logging
from typing import Any

from airflow.sdk.exceptions import AirflowSkipException

from components.config import ModelSettings, PipelineConfig
from components.core.contracts import Contract, RunRef
from components.core.run_records import STEPS
from dags._run import Step, began, failures_of

__all__ = ["BEFORE_REPORT", "notify_task"]

logger = logging.getLogger(__name__)

BEFORE_REPORT = (*STEPS[:-1], "shadow", "approve")
"""Every task whose failure the page tells of."""


def notify_task(config: PipelineConfig, model: ModelSettings) -> Any:
    """The step that tells people and machines; it holds no lease, for the night is over.

    Args:
        config: The configuration.
        model: The key's entry in it.

    Returns:
        What makes the task.
    """

    @Step(model.key, config.paths.work_dir, config.schedule)(trigger_rule="all_done")
    def notify(run: RunRef) -> Contract:
        """Tell how the night ended, whatever happened; what cannot be delivered is logged and changes nothing."""
        from components.steps.notify import step as component

        if run.backfill or not began(run):
            raise AirflowSkipException("a replayed night, or one that another run is at: nothing to tell")
        inputs = component.NotifyInputs(
            run=run,
            failures=failures_of(run, (*BEFORE_REPORT, "report")),
            mlflow=config.mlflow,
            alerts=config.alerts,
            settings=config.notify,
        )
        try:
            return component.notify(inputs)
        except Exception as error:  # whatever it is, the night went as it went
            logger.exception("the night could not be told")
            raise AirflowSkipException(f"the night could not be told: {error}") from error

    return notify
