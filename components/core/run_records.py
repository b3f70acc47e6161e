"""Run records: what became of each step of a night, in small files for reports and for people.

``<run_dir>/records/<step>.json`` always tells of the latest try. A step that starts again removes its own record and
those of the steps after it, so that no record outlives what it was built on.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from components.core.atomic_files import write_json
from components.core.contracts import Contract, Fence, ModelKey, RunRef, from_json

__all__ = [
    "STEPS",
    "StepRecord",
    "begin_step",
    "failures",
    "is_finished",
    "is_locked",
    "nights",
    "read_night",
    "write_record",
]

STEPS = (
    "collect",
    "version",
    "validate",
    "fine_tune",
    "evaluate",
    "export",
    "gate",
    "promote",
    "report",
)
"""The steps of a night, in order."""
_WITH_OPTIONAL = (*STEPS[:3], "shadow", *STEPS[3:])
"""All that may be there: keys with shadow nights score their challenger once the night's images are validated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord(Contract):
    """How the latest try of one step ended."""

    step: str
    outcome: Literal["SUCCEEDED", "FAILED", "SKIPPED"]
    seconds: float
    detail: str = ""
    """Why it failed or was skipped."""
    outputs: dict[str, Any] | None = None
    """The step's outputs as JSON, if it succeeded."""
    fence: int = 0
    """Of the run that held the key; 0 where none was needed."""


def _path(run: RunRef, step: str) -> Path:
    return run.run_dir / "records" / f"{step}.json"


def begin_step(run: RunRef, step: str) -> None:
    """Forget what the last try of this step, and of those after it, came to."""
    for later in _WITH_OPTIONAL[_WITH_OPTIONAL.index(step) :] if step in STEPS else (step,):
        _path(run, later).unlink(missing_ok=True)


def write_record(run: RunRef, record: StepRecord, fence: Fence | None = None) -> None:
    """Keep the record, atomically.

    Args:
        run: The night.
        record: How a step went.
        fence: Of the writer; the records refuse a lower one than they have seen.

    Raises:
        TransientError: The writer does not hold the key any more.
    """
    if fence is not None:
        fence.check_token(
            max((known.fence for known in read_night(run).values()), default=0), str(run.run_dir / "records")
        )
        record = replace(record, fence=fence.number)
    write_json(_path(run, record.step), record)


def read_night(run: RunRef) -> dict[str, StepRecord]:
    """The records of a night by step, in order; steps that were not reached are missing."""
    paths = ((step, _path(run, step)) for step in _WITH_OPTIONAL)
    return {
        step: from_json(StepRecord, json.loads(path.read_text(encoding="utf-8")), where=str(path))
        for step, path in paths
        if path.exists()
    }


def failures(records: dict[str, StepRecord]) -> tuple[str, ...]:
    """``step: why`` for every step that failed, in order."""
    return tuple(f"{record.step}: {record.detail}" for record in records.values() if record.outcome == "FAILED")


def is_finished(records: dict[str, StepRecord]) -> bool:
    """Whether the night went through to its report without a failure."""
    return "report" in records and not failures(records) and not is_locked(records)


def is_locked(records: dict[str, StepRecord]) -> bool:
    """Whether the night did not begin because another run held the key."""
    return "collect" in records and records["collect"].outcome == "SKIPPED"


def nights(work_dir: str, key: ModelKey) -> list[RunRef]:
    """The nights of a key that have begun, oldest first."""
    folder = Path(work_dir) / "runs" / key.slug
    partitions = sorted(path.parent.name for path in folder.glob("*/records"))
    return [RunRef(key=key, partition=partition, work_dir=work_dir) for partition in partitions]
