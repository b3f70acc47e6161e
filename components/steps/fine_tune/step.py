"""Fine-tune: the night's candidate is trained, from nothing on a first night, from the champion afterwards.

The step's folder holds, beside ``outputs.json``: ``images/`` (this night's normals and the replay), ``corruptions/``
(pre-made pseudo-anomalies), ``checkpoint.pt``, ``package/`` (weights, recipe, lineage, replay), ``held_out.json``
(normals kept from training, for calibration), ``training.json`` (those learnt from) and ``curves.json``.
"""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from components.adapters.data_repository import DataRepository
from components.config import FineTuneSettings
from components.core.atomic_files import write_json
from components.core.contracts import CandidateRef, Contract, DatasetRef, RunRef, ValidationRef, digest_of, from_json
from components.core.errors import InputError
from components.core.step_runner import run_once
from components.steps.fine_tune.trainer import TrainingJob, train
from stlm.errors import StlmError, WeightsError
from stlm.models.registry import (
    AnomalyModel,
    save_model,
)
from stlm.recipes import recipe
from stlm.source_digest import source_digest
from stlm.training.fit import FitResult
from stlm.training.replay import NormalImage, choose_replay, split_held_out

__all__ = [
    "FineTuneInputs",
    "fine_tune",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuneInputs(Contract):
    """What a night trains on and from."""

    run: RunRef
    dataset: DatasetRef
    validation: ValidationRef
    dvc_remote: str
    s3_endpoint_url: str = ""
    recipe: str
    settings: FineTuneSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayBuffer(Contract):
    """``replay.json``: the bounded choice of earlier normals that travels with the model."""

    training: tuple[NormalImage, ...] = ()
    held_out: tuple[NormalImage, ...] = ()


def fine_tune(inputs: FineTuneInputs) -> CandidateRef:
    """Train a candidate on the night's accepted normals and a bounded replay of earlier ones.

    Args:
        inputs: See :class:`FineTuneInputs`.

    Returns:
        The candidate; a second call with equal inputs returns it without training.

    Raises:
        InputError: No accepted image, an unknown recipe, a teacher that cannot be loaded, a loss that is not finite,
            a device without memory for half a batch.
        TransientError: The data repository is locked or its remote unreachable.
    """
    try:
        return run_once("fine_tune", inputs, CandidateRef, _fine_tune)
    except StlmError as error:
        raise InputError(str(error)) from error


def _fine_tune(inputs: FineTuneInputs, folder: Path) -> CandidateRef:
    started = time.monotonic()
    settings = inputs.settings
    champion = inputs.validation.champion
    parent_dir = Path(champion.package_dir) if champion is not None else None
    accepted, doubtful = _normals(inputs)
    memory = _read_memory(parent_dir)
    training, held_out = split_held_out(accepted, share=settings.held_out_share, seed=settings.seed)
    # Screening cuts the upper tail of the good images off with the defects: a threshold for all good images has to be
    # calibrated on some of that tail, too.
    _, tail = split_held_out(doubtful, share=settings.held_out_share, seed=settings.seed, minimum=0)
    replay = choose_replay(memory.training, limit=settings.replay_images, seed=settings.seed)
    # Calibration needs old lots as well as new ones, in the same bounded proportion as training.
    held_out_memory = choose_replay(
        (*memory.held_out, *held_out, *tail), limit=max(len(held_out), settings.replay_images), seed=settings.seed
    )
    images = folder / "images"
    _fetch(inputs, (*training, *replay, *held_out_memory), images)
    identity = digest_of(
        {
            "recipe": recipe(inputs.recipe).to_json(),
            "parent": champion.candidate_key if champion is not None else None,
            "training": [i.sha256 for i in training],
            "replay": [i.sha256 for i in replay],
            "seed": settings.seed,
            "code": source_digest(),
        }
    )
    model, result = train(
        TrainingJob(
            folder=str(folder),
            checkpoints=str(Path(inputs.run.work_dir) / "checkpoints"),
            recipe=inputs.recipe,
            parent_dir=None if parent_dir is None else str(parent_dir),
            identity=identity,
            new=tuple(training),
            replay=tuple(replay),
            held_out=tuple(held_out_memory),
            settings=settings,
        )
    )
    seconds = time.monotonic() - started
    new_memory = ReplayBuffer(
        training=choose_replay((*replay, *training), limit=settings.replay_images, seed=settings.seed),
        held_out=held_out_memory,
    )
    candidate = _write_candidate(inputs, folder, model, result, new_memory, seconds, len(training), len(replay))
    write_json(
        folder / "held_out.json",
        [{**asdict(i), "path": str(images / i.path)} for i in held_out_memory],
    )
    write_json(
        folder / "training.json",
        [{"path": str(images / i.path), "sha256": i.sha256, "night": i.night} for i in (*training, *replay)],
    )
    shutil.rmtree(folder / "corruptions", ignore_errors=True)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    logger.info("fine_tune steps=%d seconds=%.1f key=%s", result.num_steps, seconds, candidate.candidate_key[:12])
    return candidate


def _normals(inputs: FineTuneInputs) -> tuple[list[NormalImage], list[NormalImage]]:
    """The night's accepted images, and those that screening alone has kept out without a clear defect."""
    table = pd.read_parquet(inputs.validation.table_path).rename(columns={"name": "name_"})
    screened = (table["champion_excess"] > 0) | (table["outlier_excess"] > 0)
    only_screened = screened & ~table["rejected"] & ~table["reasons"].str.contains(";", regex=False)
    doubtful = only_screened & ~table["accepted"] & ~table["screen_clear"].fillna(value=True).astype(bool)

    def images(rows: pd.DataFrame, *, doubtful: bool) -> list[NormalImage]:
        return [
            NormalImage(
                path=f"{inputs.dataset.path}/{row.lot}/{row.name_}",
                sha256=str(row.sha256),
                night=inputs.run.partition,
                part=str(row.part),
                doubtful=doubtful,
            )
            for row in rows.itertuples()
        ]

    accepted = images(table[table["accepted"]], doubtful=False)
    if len(accepted) < 2:
        raise InputError(f"night {inputs.run.partition}: expected at least 2 accepted images, got {len(accepted)}")
    return accepted, images(table[doubtful], doubtful=True)


def _read_memory(parent_dir: Path | None) -> ReplayBuffer:
    if parent_dir is None:
        return ReplayBuffer()
    path = parent_dir / "replay.json"
    try:
        return from_json(ReplayBuffer, json.loads(path.read_text(encoding="utf-8")), where=str(path))
    except (OSError, ValueError) as error:
        raise WeightsError(f"champion's {path} cannot be read ({error})") from error


def _fetch(inputs: FineTuneInputs, wanted: Sequence[NormalImage], into: Path) -> None:
    missing = sorted({image.path for image in wanted if not (into / image.path).exists()})
    if missing:
        repository = DataRepository(Path(inputs.dataset.repo), inputs.dvc_remote, inputs.s3_endpoint_url)
        repository.fetch(inputs.dataset.revision, missing, into)


def _write_candidate(
    inputs: FineTuneInputs,
    folder: Path,
    model: AnomalyModel,
    result: FitResult,
    memory: ReplayBuffer,
    seconds: float,
    num_new: int,
    num_replay: int,
) -> CandidateRef:
    champion = inputs.validation.champion
    package = folder / "package"
    weights_sha256 = save_model(model, package)
    lineage = {
        "key": inputs.run.key,
        "partition": inputs.run.partition,
        "parent_version": champion.version if champion is not None else None,
        "parent_candidate_key": champion.candidate_key if champion is not None else None,
        "data_revision": inputs.dataset.revision,
        "dvc_md5": inputs.dataset.dvc_md5,
        "batch_digest": inputs.dataset.digest,
        "validation_digest": inputs.validation.digest,
        "recipe": inputs.recipe,
        "config_digest": digest_of(model.config.to_json()),
        "code_digest": source_digest(),
        "seed": inputs.settings.seed,
        "weights_sha256": weights_sha256,
        "complete": result.complete,
    }
    write_json(package / "lineage.json", lineage)
    write_json(package / "replay.json", memory)
    write_json(folder / "curves.json", result.curves)
    return CandidateRef(
        package_dir=str(package),
        candidate_key=digest_of(lineage),
        weights_sha256=weights_sha256,
        parent_version=champion.version if champion is not None else None,
        num_steps=result.num_steps,
        num_new_images=num_new,
        num_replay_images=num_replay,
        training_seconds=round(seconds, 3),
        curves_path=str(folder / "curves.json"),
    )
