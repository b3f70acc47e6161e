"""An earlier champion serves again, and promotion is frozen until `stlm unfreeze`.

One DAG for all model keys, started by hand; the trigger form asks for the key, who and why, and for a version unless it
is the champion before the present one. A wrong value starts no task.
"""

from airflow.sdk import DAG, Param

from components.config import PipelineConfig
from components.core.contracts import Contract
from dags._run import Json, configuration, manual_task, person_params


def rollback_model(config: PipelineConfig) -> DAG:
    """Wire the one task.

    Args:
        config: The pipeline's configuration.

    Returns:
        The DAG.
    """

    # No pool: a roll-back does not stand in line behind a night; the lease keeps them apart.
    @manual_task(config.schedule)
    def rollback(params: Json) -> Contract:
        """Check the version and move the alias back."""
        from components.promotion import rollback as component

        return component.rollback(
            component.RollbackInputs(
                key=config.model(params["key"]).key,
                work_dir=config.paths.work_dir,
                mlflow=config.mlflow,
                settings=config.promote,
                reason=params["reason"],
                by=params["by"],
                to=params["to"],
            )
        )

    with DAG(
        dag_id="rollback_model",
        description="an earlier champion serves again",
        doc_md=__doc__,
        schedule=None,
        start_date=config.schedule.start,
        catchup=False,
        params=person_params(config)
        | {
            "to": Param(
                None,
                type=["null", "integer"],
                minimum=1,
                maximum=999_999_999,
                description="The version; empty: the champion before the present one.",
            )
        },
        tags=["rollback_model"],
    ) as dag:
        rollback()
    return dag


DAGS = {dag.dag_id: dag for dag in (rollback_model(configuration()),)}
