"""Start of a replayed night, pinned before its first step so that a try after a crash starts from the same.

The same functions serve a night that Airflow runs and one that ``stlm backfill`` runs: they check that it is this
night's turn, find its images in the data repository, and note what it came to.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from components.adapters.data_repository import DataRepository, NightRevision
from components.adapters.mlflow.registry import open_registry
from components.backfill.chain import (
    BaseVersion,
    PlannedRun,
    Replay,
    Replayed,
    begin_chain,
    data_repository,
    find_ancestor,
    plan_runs,
    read_chain,
)
from components.config import ModelSettings, PipelineConfig
from components.core.atomic_files import write_json
from components.core.contracts import (
    ANCHOR_ALIAS,
    BatchRef,
    Contract,
    DatasetRef,
    EvaluationRef,
    Fence,
    GateDecision,
    ModelRef,
    NightStatus,
    PromotionRef,
    RunRef,
    from_json,
)
from components.core.errors import InputError
from components.core.run_records import read_night
from components.steps.collect.step import CollectOutputs

__all__ = ["RunStart", "finish_run", "open_night", "read_opening", "restore_batch", "skip_run", "version_on_branch"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStart(Contract):
    """``opening.json`` of a replayed night."""

    revision: NightRevision
    """Its images in the data repository."""
    inputs: str
    """Digest of everything that goes into it."""
    ancestor: BaseVersion
    parent: ModelRef | None
    """The candidate of the night before, or the ancestor."""
    champion: ModelRef | None
    """Whom the candidate is judged against: the champion at this moment, not that of the old night."""
    anchor: ModelRef | None


def _opening_path(run: RunRef) -> Path:
    return run.run_dir / "opening.json"


def read_opening(run: RunRef) -> RunStart:
    """What a replayed night starts from.

    Args:
        run: The night of a backfill.

    Returns:
        The pinned start.

    Raises:
        InputError: The night was never opened.
    """
    path = _opening_path(run)
    try:
        return from_json(RunStart, json.loads(path.read_text(encoding="utf-8")), where=str(path))
    except FileNotFoundError:
        raise InputError(
            f"night {run.partition} of backfill {run.backfill} has not begun: run its first step"
        ) from None


def open_night(config: PipelineConfig, model: ModelSettings, run: RunRef) -> RunStart | None:
    """Check that it is the night's turn, and pin what it starts from.

    Args:
        config: The configuration.
        model: The key's entry in it.
        run: The night of a backfill; the backfill begins with it where there is none of that name.

    Returns:
        The start; ``None`` where the data repository has no such night.

    Raises:
        InputError: Nights before it are not done, or it is before the backfill's first.
        TransientError: A store cannot be reached.
    """
    chain = read_chain(run)
    if run.partition not in data_repository(config).nights(model.key):
        return None
    if chain is None:
        first = run.partition
        chain = Replay(name=run.backfill, first=first, ancestor=find_ancestor(config, model, first, ""))
        begin_chain(run, chain)
    if run.partition < chain.first:
        raise InputError(
            f"backfill {chain.name} of {model.key.slug} begins with night {chain.first}, so {run.partition} cannot be "
            f"replayed in it any more: a lineage is built from the oldest night on; give another backfill another name "
            f"(parameter `backfill`)"
        )
    links = plan_runs(config, model, chain, run.partition)
    due = [link.revision.night for link in links[:-1] if link.state == "DUE"]
    if due:
        raise InputError(
            f"out of order: night {run.partition} of backfill {chain.name} builds on the nights before it, and "
            f"{', '.join(due)} must be replayed first, one at a time, oldest first; to begin a lineage elsewhere, give "
            f"it another name (parameter `backfill`)"
        )
    return _pin(config, run, chain, links[-1])


def _pin(config: PipelineConfig, run: RunRef, chain: Replay, link: PlannedRun) -> RunStart:
    registry = open_registry(config.mlflow, run)
    champion = registry.champion(run.key)
    if _opening_path(run).exists():
        before = read_opening(run)
        judged_against = None if before.champion is None else before.champion.version
        is_same_champion = judged_against == (None if champion is None else champion.version)
        if before.inputs == link.inputs and (is_same_champion or link.state == "DUE"):
            return before
    parent = link.parent
    if parent is None and chain.ancestor.version is not None:
        parent = registry.version(run.key, chain.ancestor.version)
    opening = RunStart(
        revision=link.revision,
        inputs=link.inputs,
        ancestor=chain.ancestor,
        parent=parent,
        champion=champion,
        anchor=registry.champion(run.key, ANCHOR_ALIAS),
    )
    write_json(_opening_path(run), opening)
    return opening


def restore_batch(config: PipelineConfig, run: RunRef, opening: RunStart) -> CollectOutputs:
    """The night's images as the data repository has them; the landing zone is not asked.

    Args:
        config: The configuration.
        run: The night of a backfill.
        opening: What it starts from.

    Returns:
        The batch.

    Raises:
        InputError: An object is damaged or gone for good.
        TransientError: The remote cannot be reached.
    """
    revision, into = opening.revision, run.run_dir / "collect"
    path = f"data/{run.key.path}/{run.partition}"
    data_repository(config).fetch(revision.commit, [path], into)
    batch = BatchRef(
        manifest_path=str(into / path / "manifest.json"),
        image_dir=str(into / path),
        digest=revision.digest,
        num_lots=revision.num_lots,
        num_images=revision.num_images,
    )
    return CollectOutputs(status=NightStatus.NEW_IMAGES, batch=batch, waiting=())


def version_on_branch(
    config: PipelineConfig, run: RunRef, opening: RunStart, batch: BatchRef, fence: Fence | None
) -> DatasetRef:
    """Add the night to the backfill's branch of the data repository, ``backfill/<name>``.

    Args:
        config: The configuration.
        run: The night of a backfill.
        opening: What it starts from.
        batch: Its images.
        fence: Of the run that holds the key.

    Returns:
        The night's place on that branch.

    Raises:
        InputError: The batch is not what its manifest says.
        TransientError: The repository is held by another writer, or the key by another run.
    """
    branch = f"backfill/{run.key.slug}/{run.backfill}"
    side: DataRepository = data_repository(config).side_branch(
        branch, run.state_dir / "data-repo", start=opening.ancestor.data_revision
    )
    return side.add_partition(run, batch, fence)


def finish_run(
    run: RunRef, *, evaluation: EvaluationRef, decision: GateDecision, promotion: PromotionRef, package_dir: str
) -> Replayed:
    """Note what a night came to: from now on the next one may build on it.

    Args:
        run: The night of a backfill.
        evaluation: Its candidate's figures.
        decision: The verdict on it.
        promotion: Its registration.
        package_dir: Its package.

    Returns:
        The note.
    """
    opening = read_opening(run)
    assert promotion.version is not None
    replayed = Replayed(
        night=run.partition,
        inputs=opening.inputs,
        revision=opening.revision,
        model=ModelRef(
            name=promotion.name,
            version=promotion.version,
            candidate_key=decision.candidate_key,
            package_dir=package_dir,
        ),
        verdict=decision.verdict.value,
        judged_against=decision.champion_version,
        metrics=evaluation.metrics,
        seconds=round(sum(record.seconds for record in read_night(run).values()), 2),
    )
    _keep(run, replayed)
    return replayed


def skip_run(run: RunRef, link: PlannedRun, reason: str) -> None:
    """Note that a night was left out: the next one builds on the night before it."""
    _keep(run, Replayed(night=run.partition, inputs=link.inputs, revision=link.revision, model=None, gap=reason))
    logger.warning("backfill=%s night=%s left out: %s", run.backfill, run.partition, reason)


def _keep(run: RunRef, replayed: Replayed) -> None:
    write_json(run.run_dir / "replayed.json", replayed)
