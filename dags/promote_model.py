"""A candidate takes over by hand: named by its version or key, with a verdict of PROMOTE against the present champion.

One DAG for all model keys, started by hand; the trigger form asks for the key, the candidate, who and why, and a
wrong value starts no task. Lease, ledger and load check are those of every night. Where the key has approvers, the
person must be one of them and start the run with that account. To let a candidate in without the gate takes two people
and a terminal: `stlm promote --break-glass`.
"""

from airflow.sdk import DAG, Param

from components.config import PipelineConfig
from components.core.contracts import Contract
from dags._run import Json, configuration, manual_task, person_params


def promote_model(config: PipelineConfig) -> DAG:
    """Wire the one task.

    Args:
        config: The pipeline's configuration.

    Returns:
        The DAG.
    """

    @manual_task(config.schedule, pool="promotion")
    def promote_by_hand(params: Json) -> Contract:
        """Check the candidate and make it the champion."""
        from components.promotion import manual as component

        model = config.model(params["key"])
        return component.promote_by_hand(
            component.PromoteByHandInputs(
                key=model.key,
                work_dir=config.paths.work_dir,
                golden=model.golden,
                mlflow=config.mlflow,
                settings=config.promote,
                candidate=params["candidate"],
                reason=params["reason"],
                by=params["by"],
                approvers=model.approvers,
                break_glass=False,
                second="",
            )
        )

    with DAG(
        dag_id="promote_model",
        description="a named candidate takes over by hand",
        doc_md=__doc__,
        schedule=None,
        start_date=config.schedule.start,
        catchup=False,
        params=person_params(config)
        | {
            "candidate": Param(
                type="string",
                pattern="^([1-9][0-9]{0,8}|[0-9a-f]{12,64})$",
                description="Its version, or at least 12 hex digits of its key.",
            )
        },
        tags=["promote_model"],
    ) as dag:
        promote_by_hand()
    return dag


DAGS = {dag.dag_id: dag for dag in (promote_model(configuration()),)}
