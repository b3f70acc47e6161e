"""Inputs of a night's steps, from the configuration and from what the steps before gave: the one place that knows.

The scheduler's tasks, a replay without a scheduler and tests build the same inputs, so that a step finds its outputs
again whoever runs it. A step's module is imported when its inputs are asked for: some take seconds.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.config import ModelSettings, PipelineConfig
from components.core.contracts import (
    Approval,
    BatchRef,
    CandidateRef,
    DatasetRef,
    EvaluationRef,
    GateDecision,
    ModelRef,
    PackageRef,
    Parent,
    RunRef,
    ValidationRef,
)

if TYPE_CHECKING:
    from components.steps.collect.step import CollectInputs
    from components.steps.evaluate.step import EvaluateInputs
    from components.steps.export.step import ExportInputs
    from components.steps.fine_tune.step import FineTuneInputs
    from components.steps.gate.step import GateInputs
    from components.steps.promote.step import PromoteInputs
    from components.steps.report.step import ReportInputs
    from components.steps.shadow.step import ShadowInputs
    from components.steps.validate.step import ValidateInputs
    from components.steps.version.step import VersionInputs

__all__ = ["NightInputs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NightInputs:
    """One night of one model key; a method a step."""

    config: PipelineConfig
    model: ModelSettings
    """The key's entry in the configuration."""
    run: RunRef

    def collect(self) -> "CollectInputs":
        """Where the night's lots land."""
        from components.steps.collect.step import CollectInputs

        paths = self.config.paths
        return CollectInputs(run=self.run, landing=paths.landing, s3_endpoint_url=paths.s3_endpoint_url)

    def version(self, batch: BatchRef) -> "VersionInputs":
        """What was collected, and the data repository it goes to."""
        from components.steps.version.step import VersionInputs

        paths = self.config.paths
        return VersionInputs(
            run=self.run,
            batch=batch,
            data_repo=paths.data_repo,
            dvc_remote=paths.dvc_remote,
            s3_endpoint_url=paths.s3_endpoint_url,
        )

    def validate(self, dataset: DatasetRef, *, parent: Parent | None = None) -> "ValidateInputs":
        """The night's images; ``parent`` is what a replayed night builds on instead of the champion."""
        from components.steps.validate.step import ValidateInputs

        config = self.config
        return ValidateInputs(
            run=self.run,
            dataset=dataset,
            dvc_remote=config.paths.dvc_remote,
            s3_endpoint_url=config.paths.s3_endpoint_url,
            golden=self.model.golden,
            mlflow=config.mlflow,
            settings=config.validate,
            zero_shot=config.zero_shot,
            parent=parent,
        )

    def fine_tune(self, dataset: DatasetRef, validation: ValidationRef) -> "FineTuneInputs":
        """What may be learnt from, and how."""
        from components.steps.fine_tune.step import FineTuneInputs

        config = self.config
        return FineTuneInputs(
            run=self.run,
            dataset=dataset,
            validation=validation,
            dvc_remote=config.paths.dvc_remote,
            s3_endpoint_url=config.paths.s3_endpoint_url,
            recipe=self.model.recipe,
            settings=config.fine_tune,
        )

    def evaluate(
        self, candidate: CandidateRef, *, champion: ModelRef | None, anchor: ModelRef | None
    ) -> "EvaluateInputs":
        """The models that are measured side by side."""
        from components.steps.evaluate.step import EvaluateInputs

        return EvaluateInputs(
            run=self.run,
            candidate=candidate,
            champion=champion,
            anchor=anchor,
            golden=self.model.golden,
            settings=self.config.evaluate,
            validate=self.config.validate,
        )

    def export(
        self, candidate: CandidateRef, evaluation: EvaluationRef, *, champion: ModelRef | None
    ) -> "ExportInputs":
        """A measured candidate, and the champion beside which its file is timed."""
        from components.steps.export.step import ExportInputs

        return ExportInputs(
            run=self.run,
            candidate=candidate,
            evaluation=evaluation,
            champion=champion,
            golden=self.model.golden,
            settings=self.config.export,
        )

    def gate(self, evaluation: EvaluationRef, package: PackageRef) -> "GateInputs":
        """The evidence."""
        from components.steps.gate.step import GateInputs

        return GateInputs(
            run=self.run,
            evaluation=evaluation,
            package=package,
            golden=self.model.golden,
            settings=self.config.gate,
            export=self.config.export,
        )

    def promote(
        self,
        *,
        package: PackageRef,
        decision: GateDecision,
        dataset: DatasetRef,
        validation: ValidationRef,
        evaluation: EvaluationRef,
        candidate: CandidateRef,
        approval: Approval | None = None,
    ) -> "PromoteInputs":
        """The package, the verdict, and everything that stands behind them."""
        from components.steps.promote.step import PromoteInputs

        return PromoteInputs(
            run=self.run,
            package=package,
            decision=decision,
            dataset=dataset,
            validation=validation,
            evaluation=evaluation,
            candidate=candidate,
            mlflow=self.config.mlflow,
            settings=self.config.promote,
            approvers=self.model.approvers,
            approval=approval,
            shadow_nights=self.model.shadow_nights,
        )

    def shadow(self, dataset: DatasetRef, validation: ValidationRef) -> "ShadowInputs":
        """The night's normals, and what a challenger must hold on them."""
        from components.steps.shadow.step import ShadowInputs

        config, model = self.config, self.model
        return ShadowInputs(
            run=self.run,
            dataset=dataset,
            validation=validation,
            dvc_remote=config.paths.dvc_remote,
            s3_endpoint_url=config.paths.s3_endpoint_url,
            golden=model.golden,
            mlflow=config.mlflow,
            settings=config.promote,
            nights=model.shadow_nights,
            min_agreement=model.shadow_min_agreement,
            max_alarm_rate=model.shadow_alarm_rate,
        )

    def report(self, outputs: dict[str, Any], *, failures: tuple[str, ...] = ()) -> "ReportInputs":
        """What the page tells of: ``outputs`` by the names of the report's fields, ``None`` where none is."""
        from components.steps.report.step import ReportInputs

        return ReportInputs(
            run=self.run,
            **outputs,
            failures=failures,
            golden=self.model.golden,
            mlflow=self.config.mlflow,
            settings=self.config.report,
        )
