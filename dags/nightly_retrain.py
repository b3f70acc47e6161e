"""The night of every model key: landing zone to verdict and promotion.

One DAG per configured key, ``nightly_retrain.<product>.<line>.<camera>``, so that each key has its own pause button,
history and backfill, and its nights run one after the other. One partition is one night, ``YYYY-MM-DD``; a run started
by hand names it in its partition key or in the parameter ``partition``. A night without new images skips everything
but the report and succeeds; a night in which a step failed still writes its report, and fails.

The runs of Airflow's own backfill, and runs with the parameter ``backfill``, replay a night of the data repository
beside what serves (see ``components/backfill/README.md``): they never move ``champion``, and go one after the other,
oldest night first. One run at a time holds the model key: a nightly run that does not get it in time is skipped.

Where the key has approvers, the task ``approve`` asks them between gate and promotion; where it has shadow nights, the
step ``shadow`` scores the challenger beside the champion before the night's own candidate is trained. Where somebody is
to be told, ``notify`` comes last.
"""

import datetime as dt
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, CronPartitionTimetable, Param
from airflow.sdk.exceptions import AirflowSkipException

from components.config import ModelSettings, PipelineConfig, ScheduleSettings
from components.core.contracts import (
    Approval,
    BatchRef,
    CandidateRef,
    Contract,
    DatasetRef,
    EvaluationRef,
    GateDecision,
    NightStatus,
    PackageRef,
    PromotionRef,
    RunRef,
    ShadowRef,
    ValidationRef,
)
from components.steps.inputs import NightInputs
from dags import _backfill as replayed
from dags._metrics import night_ended
from dags._notify import BEFORE_REPORT, notify_task
from dags._run import Json, Step, configuration, current_fence, failures_of, retrying


def nightly_retrain(config: PipelineConfig, model: ModelSettings) -> DAG:
    """Wire the steps of one model key.

    Args:
        config: The pipeline's configuration.
        model: The key's entry in it.

    Returns:
        The DAG.
    """
    key = model.key
    step = Step(key, config.paths.work_dir, config.schedule, config.promote)

    def inputs(run: RunRef) -> NightInputs:
        return NightInputs(config=config, model=model, run=run)

    @step()
    def collect(run: RunRef) -> Contract:
        """Copy the night's complete lots out of the landing zone, checked byte for byte."""
        from components.steps.collect import step as component

        if run.backfill:
            return replayed.collect(config, model, run)
        return component.collect(inputs(run).collect())

    @step(pool="dvc")
    def version(run: RunRef, collected: Json) -> Contract:
        """Add the night's partition to the data repository and push it; nothing new: skip the rest of the night."""
        from components.steps.version import step as component

        if NightStatus(collected["status"]) is NightStatus.NOTHING_NEW:
            raise AirflowSkipException("nothing new in the landing zone")
        batch = BatchRef.from_json(collected["batch"])
        if run.backfill:
            return replayed.version(config, run, batch, current_fence())
        return component.version(inputs(run).version(batch), fence=current_fence())

    @step()
    def validate(run: RunRef, dataset: Json) -> Contract:
        """Decide image by image what may be learnt from; pin the champion this night builds on."""
        from components.steps.validate import step as component

        return component.validate(
            inputs(run).validate(DatasetRef.from_json(dataset), parent=replayed.parent(run) if run.backfill else None)
        )

    @step(pool="gpu")
    def fine_tune(run: RunRef, dataset: Json, validation: Json) -> Contract:
        """Train a candidate from the champion on the accepted images and a bounded replay of earlier nights."""
        from components.steps.fine_tune import step as component

        return component.fine_tune(
            inputs(run).fine_tune(DatasetRef.from_json(dataset), ValidationRef.from_json(validation))
        )

    @step()
    def evaluate(run: RunRef, candidate: Json, validation: Json) -> Contract:
        """Measure candidate, champion and anchor on the golden set, in one run."""
        from components.steps.evaluate import step as component

        judges = replayed.baselines_of(run, validation)
        return component.evaluate(
            inputs(run).evaluate(CandidateRef.from_json(candidate), champion=judges.champion, anchor=judges.anchor)
        )

    @step()
    def export(run: RunRef, candidate: Json, evaluation: Json, validation: Json) -> Contract:
        """Write the package that would be served and prove that it behaves like the candidate."""
        from components.steps.export import step as component

        return component.export(
            inputs(run).export(
                CandidateRef.from_json(candidate),
                EvaluationRef.from_json(evaluation),
                champion=replayed.baselines_of(run, validation).champion,
            )
        )

    @step()
    def gate(run: RunRef, evaluation: Json, package: Json) -> Contract:
        """Judge the package: floors, and non-inferiority against champion and anchor."""
        from components.steps.gate import step as component

        return component.gate(inputs(run).gate(EvaluationRef.from_json(evaluation), PackageRef.from_json(package)))

    @step(pool="promotion")
    def promote(
        run: RunRef,
        package: Json,
        decision: Json,
        dataset: Json,
        validation: Json,
        evaluation: Json,
        candidate: Json,
        approval: Json | None,
    ) -> Contract:
        """Register the package and move the alias, if and only if the gate said so."""
        from components.steps.promote import step as component

        return component.promote(
            inputs(run).promote(
                package=PackageRef.from_json(package),
                decision=GateDecision.from_json(decision),
                dataset=DatasetRef.from_json(dataset),
                validation=ValidationRef.from_json(validation),
                evaluation=EvaluationRef.from_json(evaluation),
                candidate=CandidateRef.from_json(candidate),
                approval=None if approval is None else Approval.from_json(approval),
            ),
            fence=current_fence(),
        )

    with DAG(
        dag_id=f"nightly_retrain.{key.slug}",
        description="landing zone -> verdict and promotion, one partition a night",
        doc_md=__doc__,
        schedule=CronPartitionTimetable(
            config.schedule.cron,
            timezone=config.schedule.timezone,
            key_format="%Y-%m-%d",
        ),
        start_date=config.schedule.start,
        catchup=False,
        max_active_runs=1,
        params={
            "partition": Param(
                None,
                type=["null", "string"],
                format="date",
                description="The night of a run started by hand.",
            ),
            "backfill": Param(
                None,
                type=["null", "string"],
                pattern="^[a-z0-9][a-z0-9_-]{0,62}$",
                description="Name of a backfill: the night is replayed in it, and champion stays.",
            ),
        },
        tags=["nightly_retrain", key.product, key.line, key.camera],
    ) as dag:
        collected = collect()
        dataset = version(collected)
        validation = validate(dataset)
        shadowed = [_shadow(step, config, model)(dataset, validation)] if model.shadow_nights else []
        candidate = fine_tune(dataset, validation)
        # Two steps of one run cannot hold the key at once: the later one would take the other's fence. The night builds
        # on the champion that validation pinned: where the challenger takes over, its own candidate's verdict is stale.
        shadowed >> candidate
        evaluation = evaluate(candidate, validation)
        package = export(candidate, evaluation, validation)
        decision = gate(evaluation, package)
        approval = _approval(config.schedule, model, package, decision) if model.approvers else None
        promotion = promote(package, decision, dataset, validation, evaluation, candidate, approval)
        page = _report(step, config, model)(
            collected,
            dataset,
            validation,
            candidate,
            evaluation,
            package,
            decision,
            promotion,
            *(shadowed or [None]),
        )
        # The report runs whatever happened, so it cannot say how the run ended: this leaf fails where a step failed.
        [promotion, page] >> EmptyOperator(task_id="finish", trigger_rule="none_failed")
        if config.notify.is_on:
            page >> notify_task(config, model)()
    return dag


def _shadow(step: Step, config: PipelineConfig, model: ModelSettings) -> Any:
    """The step that scores the challenger."""

    @step(pool="promotion")
    def shadow(run: RunRef, dataset: Json, validation: Json) -> Contract:
        """Score the challenger beside the champion on new normals; after enough nights, let it in or drop it."""
        from components.steps.shadow import step as component

        if run.backfill:
            return ShadowRef(outcome="NO_CHALLENGER", challenger=None, champion=None, detail="a replay has none")
        inputs = NightInputs(config=config, model=model, run=run)
        return component.shadow(inputs.shadow(DatasetRef.from_json(dataset), ValidationRef.from_json(validation)))

    return shadow


def _report(step: Step, config: PipelineConfig, model: ModelSettings) -> Any:
    """The step that writes the morning page."""

    @step(trigger_rule="all_done")
    def report(run: RunRef, *outputs: Json | None) -> Contract:
        """Write the page a person reads in the morning, whatever happened."""
        from components.steps.report import step as component

        fields = _report_fields(*outputs)
        inputs = NightInputs(config=config, model=model, run=run)
        page = component.report(inputs.report(fields, failures=failures_of(run, BEFORE_REPORT)))
        if run.backfill and fields["promotion"] is not None:
            replayed.close(run, fields)
        if not run.backfill:
            night_ended(config, model, run, page.summary["badge"], dt.datetime.now(dt.UTC))
        return page

    return report


def _approval(schedule: ScheduleSettings, model: ModelSettings, package: Any, decision: Any) -> Any:
    """The question to people, and its answer as an input of what follows.

    A retry asks once more: Airflow fails a task that is answered before its executor has put it aside.
    """
    from dags._approval import AskApprovers  # Airflow's part of it takes a while to import, and few keys ask

    return AskApprovers(
        task_id="approve",
        doc_md="Ask the approvers whether the candidate may take over; no answer in time is a no.",
        approvers=model.approvers,
        hours=model.approval_hours,
        model=model.key.registered_model,
        package=package,
        decision=decision,
        **retrying(schedule),
    ).output


def _report_fields(*outputs: Json | None) -> dict[str, Any]:
    """The report's inputs by name, from what the steps before it returned; ``None`` where one did not run."""
    collected, *others = outputs
    kinds: tuple[type[Contract], ...] = (
        DatasetRef,
        ValidationRef,
        CandidateRef,
        EvaluationRef,
        PackageRef,
        GateDecision,
        PromotionRef,
        ShadowRef,
    )
    names = (
        "dataset",
        "validation",
        "candidate",
        "evaluation",
        "package",
        "decision",
        "promotion",
        "shadow",
    )
    refs = (None if value is None else kind.from_json(value) for kind, value in zip(kinds, others, strict=True))
    return {"collect": collected} | dict(zip(names, refs, strict=True))


_CONFIG = configuration()
DAGS = {dag.dag_id: dag for dag in (nightly_retrain(_CONFIG, model) for model in _CONFIG.models)}
