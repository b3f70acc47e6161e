"""Night run without a scheduler: the nine steps, one after the other, each leaving its record."""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from components.backfill.chain import Replayed
from components.backfill.night_start import finish_run, open_night, restore_batch, version_on_branch
from components.config import ModelSettings, PipelineConfig
from components.core.contracts import Contract, DatasetRef, Fence, Parent, RunRef
from components.core.errors import InputError
from components.core.run_records import StepRecord, begin_step, write_record
from components.steps.collect.step import CollectOutputs
from components.steps.evaluate.step import evaluate
from components.steps.export.step import export
from components.steps.fine_tune.step import fine_tune
from components.steps.gate.step import gate
from components.steps.inputs import NightInputs
from components.steps.promote.step import promote
from components.steps.report.step import report
from components.steps.validate.step import validate

__all__ = ["BadNightError", "replay_night"]

logger = logging.getLogger(__name__)

OutputsT = TypeVar("OutputsT", bound=Contract)


class BadNightError(InputError):
    """The night's own images cannot be used; the nights around it may well be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Night:
    config: PipelineConfig
    model: ModelSettings
    run: RunRef
    fence: Fence

    def step(self, name: str, body: Callable[[], OutputsT]) -> OutputsT:
        """Run a step and keep its record, as a task does."""
        begin_step(self.run, name)
        started = time.monotonic()

        def record(outcome: Any, **more: Any) -> None:
            seconds = round(time.monotonic() - started, 2)
            write_record(self.run, StepRecord(step=name, outcome=outcome, seconds=seconds, **more), self.fence)
            logger.info("step=%s night=%s backfill=%s outcome=%s seconds=%.2f", name, self.run.partition,
                        self.run.backfill, outcome, seconds)  # fmt: skip

        try:
            outputs = body()
        except Exception as error:
            is_ours = isinstance(error, InputError)
            record("FAILED", detail=str(error) if is_ours else f"{type(error).__name__}: {error}")
            if is_ours and name in ("collect", "version", "validate"):
                raise BadNightError(f"night {self.run.partition}, {name}: {error}") from error
            raise
        record("SUCCEEDED", outputs=outputs.to_json())
        return outputs


def replay_night(config: PipelineConfig, model: ModelSettings, run: RunRef, fence: Fence) -> Replayed:
    """Replay a night whose turn it is.

    Args:
        config: The configuration.
        model: The key's entry in it.
        run: The night of a backfill.
        fence: Of the run that holds the key.

    Returns:
        What it came to.

    Raises:
        BadNightError: Its images are damaged, gone, or none of them may be learnt from.
        InputError: Something else is wrong: recipe, golden set, registry.
        TransientError: A store cannot be reached, or the key was lost to another run.
    """
    opening = open_night(config, model, run)
    if opening is None:
        raise BadNightError(f"night {run.partition} is not in the data repository any more")
    night = _Night(config=config, model=model, run=run, fence=fence)
    inputs = NightInputs(config=config, model=model, run=run)

    def collect() -> CollectOutputs:
        return restore_batch(config, run, opening)

    collected = night.step("collect", collect)
    assert collected.batch is not None
    batch = collected.batch
    dataset: DatasetRef = night.step("version", lambda: version_on_branch(config, run, opening, batch, fence))
    parent = Parent(model=opening.parent)
    validation = night.step("validate", lambda: validate(inputs.validate(dataset, parent=parent)))
    candidate = night.step("fine_tune", lambda: fine_tune(inputs.fine_tune(dataset, validation)))
    evaluation = night.step(
        "evaluate", lambda: evaluate(inputs.evaluate(candidate, champion=opening.champion, anchor=opening.anchor))
    )
    package = night.step("export", lambda: export(inputs.export(candidate, evaluation, champion=opening.champion)))
    decision = night.step("gate", lambda: gate(inputs.gate(evaluation, package)))
    evidence: dict[str, Any] = {
        "dataset": dataset,
        "validation": validation,
        "candidate": candidate,
        "evaluation": evaluation,
        "package": package,
        "decision": decision,
    }
    promotion = night.step("promote", lambda: promote(inputs.promote(**evidence), fence=fence))
    page = night.step(
        "report",
        lambda: report(inputs.report({"collect": collected.to_json(), **evidence, "promotion": promotion})),
    )
    logger.info("backfill=%s night=%s page=%s", run.backfill, run.partition, page.page_path)
    shutil.rmtree(run.run_dir / "collect", ignore_errors=True)  # they are in the data repository
    fence.check_token(0, str(run.run_dir))
    return finish_run(
        run, evaluation=evaluation, decision=decision, promotion=promotion, package_dir=package.package_dir
    )
