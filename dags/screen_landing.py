"""Images of a product that has no model yet, from the intake to a page on which a person decides.

One DAG per configured key, ``screen_landing.<product>.<line>.<camera>``, started by hand for a night (partition
``YYYY-MM-DD``). Lots land in the intake (``zero_shot.intake``) as they would in the landing zone, but no night takes
them from there. The page's decisions, given to ``stlm screen --accept``, become a lot in the landing zone: the first
night. Where the key has a champion, its own map sorts the images, else CLIP does.
"""

from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import AirflowSkipException

from components.config import ModelSettings, PipelineConfig
from components.core.contracts import BatchRef, Contract, NightStatus, RunRef
from components.core.errors import InputError
from dags._run import Json, Step, configuration


def screen_landing(config: PipelineConfig, model: ModelSettings) -> DAG:
    """Wire the two steps of one model key.

    Args:
        config: The pipeline's configuration.
        model: The key's entry in it.

    Returns:
        The DAG.
    """
    paths, key, settings = config.paths, model.key, config.zero_shot
    # A work folder of its own: what is screened is not taken, and the records of the nights stay theirs.
    step = Step(key, f"{paths.work_dir}/screening", config.schedule)

    @step()
    def collect(run: RunRef) -> Contract:
        """Copy the complete lots out of the intake, checked byte for byte."""
        from components.steps.collect import step as component

        if not settings.intake:
            raise InputError("no intake is configured: set zero_shot.intake to a folder or s3:// address")
        return component.collect(
            component.CollectInputs(
                run=run,
                landing=settings.intake,
                s3_endpoint_url=paths.s3_endpoint_url,
            )
        )

    @step()
    def screen(run: RunRef, collected: Json) -> Contract:
        """Sort the images by suspicion; write heat maps, masks and the page to decide on."""
        from components.annotation import screen as component

        if NightStatus(collected["status"]) is NightStatus.NOTHING_NEW:
            raise AirflowSkipException("nothing new in the intake")
        return component.screen(
            component.ScreenInputs(
                # The reviews lie below the common work folder, where `stlm screen --accept` looks for them.
                run=RunRef(key=run.key, partition=run.partition, work_dir=paths.work_dir),
                folder=BatchRef.from_json(collected["batch"]).image_dir,
                mlflow=config.mlflow,
                map="auto",
                settings=settings,
                max_pixels=config.validate.max_pixels,
            )
        )

    with DAG(
        dag_id=f"screen_landing.{key.slug}",
        description="intake -> a page on which a person accepts or rejects",
        doc_md=__doc__,
        schedule=None,
        start_date=config.schedule.start,
        catchup=False,
        max_active_runs=1,
        params={
            "partition": Param(
                None,
                type=["null", "string"],
                format="date",
                description="The night that the images are for.",
            )
        },
        tags=["screen_landing", key.product, key.line, key.camera],
    ) as dag:
        screen(collect())
    return dag


_CONFIG = configuration()
DAGS = {dag.dag_id: dag for dag in (screen_landing(_CONFIG, model) for model in _CONFIG.models)}
