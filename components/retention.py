"""Retention: old checkpoints, candidates and pages make room; what the ledger names, and what runs, stays.

Of a night that is old enough and ended:

- its copies of images go in any case: they are in the data repository;
- if the ledger names none of its candidates, all that its steps wrote goes as well (checkpoints, candidate, package,
  evaluation, page), in the night's folder and among the artifacts of its MLflow run.

Its records, which lots it took, its place in the data repository and its index of accepted images stay for good.
Registered versions that never were champion, previous, anchor or challenger go with their night; downloaded packages of
versions without an alias go, too, for MLflow has them. Backfills are left alone. Nothing is deleted before what would
make use of it: a sweep that was killed is finished by the next one, and a step that is run again does its work anew.
"""

import datetime as dt
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from components.adapters.mlflow.tracking import delete_artifacts, find_run, list_artifacts
from components.adapters.run_lock import open_run_lock
from components.config import MlflowSettings, PromoteSettings, ScheduleSettings
from components.core.contracts import Contract, ModelKey, RunRef
from components.core.run_records import is_locked, nights, read_night
from components.promotion.alias_transaction import AliasManager, open_alias_manager
from components.promotion.champion_state import replay_ledger
from components.promotion.version_retention import delete_version, named_candidates, retention_reason

__all__ = ["DeletionItem", "Retention", "RetentionInputs", "delete_expired", "plan_retention"]

logger = logging.getLogger(__name__)

_COPIES = ("collect/images", "shadow/images", "fine_tune/*/images", "fine_tune/*/corruptions")
_STEPS = ("report", "promote", "gate", "export", "evaluate", "fine_tune", "shadow", "validate")
"""Whose folders go, those first that build on the others."""
_DIGEST_CHARS = 16
"""Of a package's digest, as in the names of its artifacts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionInputs(Contract):
    """Whose old files, and how old."""

    key: ModelKey
    work_dir: str
    mlflow: MlflowSettings
    promote: PromoteSettings
    schedule: ScheduleSettings
    older_than_days: int
    today: str
    """``YYYY-MM-DD``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeletionItem(Contract):
    """One thing that may go."""

    kind: Literal["version", "night", "images", "artifacts", "download"]
    what: str
    """For people."""
    num_bytes: int = 0
    paths: tuple[str, ...] = ()
    """Files and folders, in the order in which they go."""
    version: int = 0
    run_id: str = ""
    artifacts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention(Contract):
    """What may go, and which old nights stay, with the reason."""

    doomed: tuple[DeletionItem, ...]
    kept: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """How much room it makes."""
        return sum(item.num_bytes for item in self.doomed)


def plan_retention(inputs: RetentionInputs) -> Retention:
    """Say what may go; nothing is changed.

    Args:
        inputs: Whose files, and how old.

    Returns:
        What :func:`sweep` would delete now.

    Raises:
        LedgerBrokenError: The ledger was tampered with: what it names is not known.
        TransientError: MLflow or the ledger cannot be reached.
    """
    manager = open_alias_manager(inputs.key, work_dir=inputs.work_dir, mlflow=inputs.mlflow, settings=inputs.promote)
    return _plan(inputs, manager)


def delete_expired(inputs: RetentionInputs) -> Retention:
    """Delete what may go, while no night of the key can run.

    Args:
        inputs: Whose files, and how old.

    Returns:
        What was deleted.

    Raises:
        LeaseHeldError: A night or a backfill has the key; nothing was deleted.
        LedgerBrokenError: The ledger was tampered with; nothing was deleted.
        TransientError: MLflow or the ledger cannot be reached; the next sweep goes on from here.
    """
    manager = open_alias_manager(inputs.key, work_dir=inputs.work_dir, mlflow=inputs.mlflow, settings=inputs.promote)
    run_lock = open_run_lock(
        inputs.key, work_dir=inputs.work_dir, promote=inputs.promote, schedule=inputs.schedule
    ).with_timeout(0)
    with run_lock.held(f"retention {inputs.today}", release=True) as fence:
        found = _plan(inputs, manager)
        for item in found.doomed:
            fence.renew()
            _delete(inputs, manager, item)
            logger.info("retention key=%s %s bytes=%d", inputs.key.slug, item.what, item.num_bytes)
    return found


def _delete(inputs: RetentionInputs, manager: AliasManager, item: DeletionItem) -> None:
    if item.kind == "version":
        delete_version(manager, item.version, by="retention")
    if item.artifacts:
        delete_artifacts(inputs.mlflow, item.run_id, item.artifacts)
    for path in map(Path, item.paths):
        if path.is_dir():
            # Without its outputs a step is not done: whoever runs it again does not find half of its files.
            (path / "outputs.json").unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _plan(inputs: RetentionInputs, manager: AliasManager) -> Retention:
    chain, posted = manager.snapshot()
    state, tags_of = replay_ledger(chain.entries), manager.registry.versions(inputs.key)
    staying = {
        number: why for number, tags in tags_of.items() if (why := retention_reason(number, tags, state, posted))
    }
    named = named_candidates(chain.entries, (tags_of[number] for number in staying))
    limit = dt.date.fromisoformat(inputs.today) - dt.timedelta(days=inputs.older_than_days)
    doomed: list[DeletionItem] = []
    going: set[int] = set()
    for number, tags in sorted(tags_of.items()):
        old = tags.get("stlm.partition", inputs.today) < limit.isoformat()
        if old and number not in staying and "stlm.backfill" not in tags:
            going.add(number)
            doomed.append(DeletionItem(kind="version", what=f"version {number}, which never served", version=number))
    served = {tags["stlm.package_digest"][:_DIGEST_CHARS] for number, tags in tags_of.items()
              if number not in going and "stlm.package_digest" in tags}  # fmt: skip
    kept: list[str] = []
    num_named = 0
    for run in nights(inputs.work_dir, inputs.key):
        if run.partition >= limit.isoformat() or _touched(run) >= limit:
            continue
        records = read_night(run)
        if "report" not in records and not is_locked(records):
            kept.append(f"night {run.partition}: it did not end")
            continue
        is_named = not named.isdisjoint(_candidates(run))
        num_named += is_named
        doomed += _of_night(inputs, run, is_named=is_named, served=served)
    if num_named:
        kept.append(f"{num_named} nights whose candidates the ledger names; only copies of their images go")
    doomed += _downloads(inputs, set(posted.aliases.values()), limit)
    return Retention(doomed=tuple(doomed), kept=tuple(kept))


def _touched(run: RunRef) -> dt.date:
    """When a step of the night last ended: an old night that was run again yesterday is not old."""
    times = [path.stat().st_mtime for path in (run.run_dir / "records").iterdir()]
    return dt.datetime.fromtimestamp(max(times, default=0.0), dt.UTC).date()


def _candidates(run: RunRef) -> set[str]:
    """Keys of all candidates the night made; a night that was run again with other inputs has several."""
    outputs = (json.loads(path.read_text(encoding="utf-8")) for path in run.run_dir.glob("fine_tune/*/outputs.json"))
    return {str(output["candidate_key"]) for output in outputs}


def _of_night(inputs: RetentionInputs, run: RunRef, *, is_named: bool, served: set[str]) -> Iterator[DeletionItem]:
    folder = run.run_dir
    paths = [path for pattern in _COPIES for path in sorted(folder.glob(pattern))]
    if is_named:
        # Normally gone since training ended; a later try may have left one.
        paths += sorted(folder.glob("fine_tune/*/checkpoint.pt"))
    else:
        paths += [path for step in _STEPS for path in sorted((folder / step).glob("*"))]
    if paths:
        yield DeletionItem(
            kind="images" if is_named else "night",
            what=f"night {run.partition}: {'copies of images' if is_named else 'checkpoints, candidate and page'}",
            num_bytes=_size_of(paths),
            paths=tuple(map(str, paths)),
        )
    run_id = None if is_named else find_run(inputs.mlflow, run)
    if run_id is None:
        return
    found = {
        place: size
        for top in ("report", "model", "promotion")
        for place, size in list_artifacts(inputs.mlflow, run_id, top, depth=1 if top == "report" else 2).items()
        if top == "report" or place.rpartition("/")[2] not in served
    }
    if found:
        yield DeletionItem(
            kind="artifacts",
            what=f"night {run.partition}: page and candidate in MLflow",
            num_bytes=sum(found.values()),
            run_id=run_id,
            artifacts=tuple(sorted(found)),
        )


def _downloads(inputs: RetentionInputs, carrying: set[int], limit: dt.date) -> Iterator[DeletionItem]:
    cache = Path(inputs.work_dir) / "models" / inputs.key.registered_model
    for folder in sorted(cache.glob("[0-9]*")):
        used = dt.datetime.fromtimestamp(folder.stat().st_mtime, dt.UTC).date()
        if int(folder.name) not in carrying and used < limit:
            yield DeletionItem(
                kind="download",
                what=f"downloaded package of version {folder.name}",
                num_bytes=_size_of([folder]),
                paths=(str(folder),),
            )


def _size_of(paths: list[Path]) -> int:
    """Bytes of files, each counted once also where one of the folders lies in another."""
    files = {file for path in paths for file in ((path,) if not path.is_dir() else path.rglob("*"))}
    return sum(file.lstat().st_size for file in files if file.is_symlink() or not file.is_dir())
