"""Backfill wiring: what the steps of ``nightly_retrain`` do differently in a night that is replayed."""

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from components.config import ModelSettings, PipelineConfig
from components.core.contracts import BatchRef, Contract, Fence, Parent, RunRef, ValidationRef
from dags._run import Json

if TYPE_CHECKING:
    from components.backfill.night_start import RunStart

__all__ = ["baselines_of", "close", "collect", "parent", "version"]


def collect(config: PipelineConfig, model: ModelSettings, run: RunRef) -> Contract:
    """The night's images out of the data repository, if it is the night's turn."""
    from components.backfill import night_start as opening

    start = opening.open_night(config, model, run)
    if start is None:
        raise AirflowFailException(
            f"night {run.partition} is not in the data repository, so there is nothing to replay; a night that never "
            f"ran is started with its partition as an ordinary run"
        )
    return opening.restore_batch(config, run, start)


def version(config: PipelineConfig, run: RunRef, batch: BatchRef, fence: Fence | None) -> Contract:
    """Add the night to the backfill's branch of the data repository."""
    from components.backfill import night_start as opening

    return opening.version_on_branch(config, run, opening.read_opening(run), batch, fence)


def parent(run: RunRef) -> Parent:
    """What the night builds on."""
    from components.backfill.night_start import read_opening

    return Parent(model=read_opening(run).parent)


def baselines_of(run: RunRef, validation: Json) -> "ValidationRef | RunStart":
    """Champion and anchor: those that the night builds on, or, of a replayed one, those at the time of its replay."""
    if not run.backfill:
        return ValidationRef.from_json(validation)
    from components.backfill.night_start import read_opening

    return read_opening(run)


def close(run: RunRef, outputs: dict[str, Any]) -> None:
    """Note what the night came to, for the next one to build on."""
    from components.backfill.night_start import finish_run

    finish_run(
        run,
        evaluation=outputs["evaluation"],
        decision=outputs["decision"],
        promotion=outputs["promotion"],
        package_dir=outputs["package"].package_dir,
    )
