"""Replay plan: which nights, in which order, and each built on the one before.

A replay has a name and a folder, ``<work_dir>/backfill/<key>/<name>/``. ``chain.json`` says where it starts: the
ancestor and the first night. A night that went through leaves ``replayed.json`` in its run folder, written last. It is
done as long as what went into it is the same: its images, its parent and the settings of validation, training and
export. So changed images make that night and all nights after it due again, and nothing else does.
"""

import datetime as dt
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from components.adapters.data_repository import DataRepository, NightRevision
from components.adapters.mlflow.registry import open_registry
from components.config import ModelSettings, PipelineConfig
from components.core.atomic_files import write_json
from components.core.contracts import Contract, ModelRef, RunRef, digest_of, from_json
from components.core.errors import InputError
from components.promotion.alias_transaction import open_alias_manager
from components.promotion.champion_state import replay_ledger

__all__ = [
    "FROM_SCRATCH",
    "BaseVersion",
    "PlannedRun",
    "Replay",
    "Replayed",
    "begin_chain",
    "check_night",
    "data_repository",
    "find_ancestor",
    "has_registry",
    "plan_runs",
    "read_chain",
    "read_replayed",
    "run_of",
]

FROM_SCRATCH = "none"
"""Names no ancestor: the first night starts from the teacher alone."""

LinkState = Literal["DONE", "GAP", "DUE"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseVersion(Contract):
    """The registered version on which the first night builds; all empty: none."""

    version: int | None = None
    night: str = ""
    data_revision: str = ""
    """Commit of the data repository at which the side branch begins; empty: before the first night."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay(Contract):
    """``chain.json``."""

    name: str
    first: str
    """The first night."""
    ancestor: BaseVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed(Contract):
    """``replayed.json``: what a night came to."""

    night: str
    inputs: str
    """Digest of what went into it."""
    revision: NightRevision
    model: ModelRef | None
    """Its registered candidate; ``None`` for a gap."""
    verdict: str = ""
    judged_against: int | None = None
    """The champion that the verdict was against."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    gap: str = ""
    """Why the night was left out; empty where it was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """A night's place in the chain."""

    revision: NightRevision
    state: LinkState
    parent: ModelRef | None
    """What it builds on; only known while all nights before it are done."""
    inputs: str
    """Digest of what would go into it now; empty while a night before it is due."""
    replayed: Replayed | None
    """What it came to, perhaps with other inputs."""


def data_repository(config: PipelineConfig) -> DataRepository:
    """The data repository of the nights themselves."""
    paths = config.paths
    return DataRepository(Path(paths.data_repo), paths.dvc_remote, paths.s3_endpoint_url)


def run_of(config: PipelineConfig, model: ModelSettings, name: str, night: str) -> RunRef:
    """A night of a replay; ``InputError`` where name or night is none."""
    try:
        return RunRef(key=model.key, partition=night, work_dir=config.paths.work_dir, backfill=name)
    except ValueError as error:
        raise InputError(str(error)) from error


def has_registry(config: PipelineConfig) -> bool:
    """Whether there is a registry to ask: asking for an SQLite file that is not there would create it."""
    scheme, _, database = config.mlflow.tracking_uri.partition(":///")
    return scheme != "sqlite" or Path(database).exists()


def find_ancestor(config: PipelineConfig, model: ModelSettings, first: str, wanted: str) -> BaseVersion:
    """The version that the first night builds on; nothing is changed.

    Args:
        config: The configuration.
        model: The key's entry in it.
        first: The first night.
        wanted: A night that registered a version, or :data:`FROM_SCRATCH`; empty: the one whose version was champion
            last before ``first``, leaving out what was taken back, else none.

    Returns:
        The ancestor.

    Raises:
        InputError: No version comes from that night, or it is not before ``first``.
        TransientError: The registry or the ledger cannot be reached.
    """
    if wanted == FROM_SCRATCH or not has_registry(config):
        if wanted not in ("", FROM_SCRATCH):
            raise InputError(f"ancestor {wanted}: there is no registry yet, so no night has registered a version")
        return BaseVersion()
    run = RunRef(key=model.key, partition=first, work_dir=config.paths.work_dir)
    known = open_registry(config.mlflow, run).versions(model.key)
    nights = {
        number: tags["stlm.partition"]
        for number, tags in known.items()
        if "stlm.partition" in tags and "stlm.backfill" not in tags
    }
    if wanted:
        if wanted >= first:
            raise InputError(f"ancestor {wanted} must be before the first night, {first}")
        found = [number for number, night in nights.items() if night == wanted]
        if not found:
            have = ", ".join(sorted(set(nights.values()))) or "none"
            raise InputError(f"no version of {model.key.registered_model} comes from night {wanted}; these do: {have}")
    else:
        manager = open_alias_manager(model.key, work_dir=run.work_dir, mlflow=config.mlflow, settings=config.promote)
        line = replay_ledger(manager.ledger.read().entries).line
        found = [number for number in line if number in nights and nights[number] < first][-1:]
    if not found:
        return BaseVersion()
    number = max(found)
    return BaseVersion(version=number, night=nights[number], data_revision=known[number].get("stlm.data_revision", ""))


def read_chain(run: RunRef) -> Replay | None:
    """``chain.json`` of a replay, if it has begun."""
    path = run.state_dir / "chain.json"
    if not path.exists():
        return None
    return from_json(Replay, json.loads(path.read_text(encoding="utf-8")), where=str(path))


def begin_chain(run: RunRef, chain: Replay) -> None:
    """Make the replay's folder: what the ancestor's nights accepted counts as known, then ``chain.json``, last."""
    known = Path(run.work_dir) / "index" / run.key.slug
    for index in sorted(known.glob("*.parquet")):
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", index.stem) and index.stem <= chain.ancestor.night:
            target = run.state_dir / "index" / run.key.slug / index.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(index, target)
    write_json(run.state_dir / "chain.json", chain)


def read_replayed(run: RunRef) -> Replayed | None:
    """What a night came to, if it went through."""
    path = run.run_dir / "replayed.json"
    if not path.exists():
        return None
    return from_json(Replayed, json.loads(path.read_text(encoding="utf-8")), where=str(path))


def plan_runs(config: PipelineConfig, model: ModelSettings, chain: Replay, last: str) -> list[PlannedRun]:
    """The nights of a chain in order, each with what is to be done; nothing is changed.

    Args:
        config: The configuration.
        model: The key's entry in it.
        chain: The chain.
        last: The last night.

    Returns:
        Every night of the data repository from the chain's first to ``last``.

    Raises:
        InputError: The data repository cannot be read.
    """
    links: list[PlannedRun] = []
    parent: ModelRef | None = None
    parent_key = f"version {chain.ancestor.version}"
    is_known = True
    for night, revision in data_repository(config).nights(model.key).items():
        if not chain.first <= night <= last:
            continue
        replayed = read_replayed(run_of(config, model, chain.name, night))
        inputs = _inputs_digest(config, model, revision, parent_key) if is_known else ""
        state: LinkState = "DUE"
        if is_known and replayed is not None and replayed.inputs == inputs:
            state = "GAP" if replayed.gap else "DONE"
        links.append(PlannedRun(revision=revision, state=state, parent=parent, inputs=inputs, replayed=replayed))
        is_known = state != "DUE"
        if state == "DONE" and replayed is not None and replayed.model is not None:
            parent, parent_key = replayed.model, replayed.model.candidate_key
    return links


def _inputs_digest(config: PipelineConfig, model: ModelSettings, revision: NightRevision, parent_key: str) -> str:
    return digest_of(
        {
            "batch": revision.digest,
            "parent": parent_key,
            "recipe": model.recipe,
            "validate": config.validate,
            "zero_shot": config.zero_shot,
            "fine_tune": config.fine_tune,
            "export": config.export,
        }
    )


def check_night(text: str, what: str) -> str:
    """``text`` if it is a date; ``InputError`` naming ``what`` otherwise."""
    try:
        if dt.date.fromisoformat(text).isoformat() == text:
            return text
    except ValueError:
        pass
    raise InputError(f"{what} must be a night, YYYY-MM-DD, got {text!r}")
