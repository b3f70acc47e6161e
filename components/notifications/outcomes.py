"""Run outcomes: how nights ended, by their records alone, and how many in a row ended badly."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.config import AlertSettings
from components.core.atomic_files import write_json
from components.core.contracts import Contract, RunRef, from_json
from components.core.run_records import StepRecord, failures, is_locked, nights, read_night

__all__ = [
    "NOT_BEGUN",
    "DeadlineMiss",
    "RunOutcome",
    "failure_streak",
    "is_failure",
    "record_deadline_miss",
    "run_outcome",
]

NOT_BEGUN = "NOT BEGUN"
NOTHING_NEW = "NOTHING NEW"
_BAD = frozenset({"FAILED", "INCOMPLETE", "NOTHING ACCEPTED", "LOCKED", "UNFINISHED", NOT_BEGUN})


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome(Contract):
    """A night in a word, as on its page, and in a sentence."""

    outcome: str
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadlineMiss(Contract):
    """What the watch found of a night at the deadline."""

    partition: str
    begun: bool
    why: str


def run_outcome(records: Mapping[str, StepRecord], failed: tuple[str, ...] = ()) -> RunOutcome:
    """How a night ended.

    Args:
        records: Its records.
        failed: ``step: why`` of the steps that are known to have failed, also where they left no record.

    Returns:
        The page's own words where there is a page.
    """
    known = dict(records)
    if is_locked(known):
        return RunOutcome(outcome="LOCKED", sentence=f"The night did not begin: {known['collect'].detail}.")
    # What was killed, and the page itself, stand in no record of success.
    failed = failed or failures(known)
    page = known.get("report")
    summary = {} if page is None or page.outputs is None else page.outputs["summary"]
    if failed and summary.get("badge") != "FAILED":
        return RunOutcome(outcome="FAILED", sentence=failed[0])
    if not summary:
        return RunOutcome(outcome="UNFINISHED", sentence="The night left no page.")
    return RunOutcome(outcome=str(summary["badge"]), sentence=str(summary["sentence"]))


def is_failure(outcome: str, settings: AlertSettings) -> bool:
    """Whether a night with this outcome failed or was skipped."""
    return outcome in _BAD or (outcome == NOTHING_NEW and settings.count_nothing_new)


def _late_dir(run: RunRef) -> Path:
    return run.state_dir / "late" / run.key.slug


def record_deadline_miss(run: RunRef, found: DeadlineMiss) -> DeadlineMiss:
    """Remember that training was not done at the deadline: a night that never begins leaves no other trace.

    Args:
        run: The night.
        found: What was found now.

    Returns:
        What was found first: a second look says the same.
    """
    path = _late_dir(run) / f"{run.partition}.json"
    if path.exists():
        return _read_lateness(path)
    write_json(path, found)
    return found


def _read_lateness(path: Path) -> DeadlineMiss:
    return from_json(DeadlineMiss, json.loads(path.read_text(encoding="utf-8")), where=str(path))


def failure_streak(run: RunRef, outcome: str, settings: AlertSettings) -> tuple[str, ...]:
    """The unbroken row of failed or skipped nights up to this one.

    Args:
        run: The night.
        outcome: How it ended.
        settings: What counts.

    Returns:
        ``night: outcome``, oldest first; empty where this night went well.
    """
    if not is_failure(outcome, settings):
        return ()
    begun = {other.partition: other for other in nights(run.work_dir, run.key)}
    late = {path.stem for path in _late_dir(run).glob("*.json")}
    row = [f"{run.partition}: {outcome}"]
    for partition in sorted({*begun, *late}, reverse=True):
        if partition >= run.partition:
            continue
        records = read_night(begun[partition]) if partition in begun else {}
        before = run_outcome(records).outcome if records else NOT_BEGUN
        if not is_failure(before, settings):
            break
        row.append(f"{partition}: {before}")
    return tuple(reversed(row))
