"""Progress of a run: one line when a step changes, and the newest word from the step that is at work."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.core.run_records import STEPS
from components.local_stack.airflow import LocalAirflow

__all__ = ["elapsed", "watch"]

_POLL_S = 0.5
_QUIET_S = 20.0
"""How often a line about work in progress is printed where there is no terminal to rewrite it on."""
_OURS = ("components.", "stlm.")
_TAIL_BYTES = 20_000


def elapsed(seconds: float) -> str:
    """``95.2`` -> ``1:35``."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def watch(airflow: LocalAirflow, dag_id: str, run_id: str) -> str:
    """Print a run's progress until it ends.

    Args:
        airflow: Where it runs.
        dag_id: Its DAG.
        run_id: Its id.

    Returns:
        The run's last state: ``"success"`` or ``"failed"``.

    Raises:
        TransientError: Airflow ended or stopped answering.
    """
    line = _StatusLine()
    told: dict[str, tuple[str, int]] = {}
    while True:
        airflow.check()
        run = airflow.api.run(dag_id, run_id) or {}
        tasks = {task["task_id"]: task for task in airflow.api.task_instances(dag_id, run_id)}
        for step in (*STEPS, *(task_id for task_id in tasks if task_id not in STEPS and task_id != "finish")):
            task = tasks.get(step) or {}
            state = (str(task.get("state")), int(task.get("try_number") or 0))
            if told.get(step) == state:
                continue
            told[step] = state
            if text := _change(task):
                line.print(f"  {step:<10} {text}")
        if run.get("state") in {"success", "failed"}:
            line.clear()
            return str(run["state"])
        for step, task in tasks.items():
            if task.get("state") == "running":
                log = _log_path(airflow.home, dag_id, run_id, step, int(task["try_number"]))
                line.update(f"  {step:<10} {_newest_word(log) or 'at work'}")
        time.sleep(_POLL_S)


def _change(task: dict[str, Any]) -> str:
    """What a new state is worth saying; nothing for waiting and for starting, which the status line shows."""
    state = task.get("state")
    if state == "success":
        return f"done       {task.get('duration') or 0:6.1f} s"
    if state == "up_for_retry":
        return f"FAILED, will be tried again (try {task.get('try_number')})"
    if state == "failed":
        return "FAILED"
    if state == "awaiting_input":
        return "waits for a person's answer: Required Actions in Airflow's web interface"
    return {"skipped": "skipped", "upstream_failed": "not reached"}.get(str(state), "")


def _log_path(home: Path, dag_id: str, run_id: str, step: str, number: int) -> Path:
    return home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={step}" / f"attempt={number}.log"


def _newest_word(log: Path) -> str:
    """The last line that one of our own modules logged, if any."""
    for record in _backwards(log):
        if str(record.get("logger", "")).startswith(_OURS):
            return str(record.get("event", ""))
    return ""


def _backwards(log: Path) -> Iterator[dict[str, Any]]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


class _StatusLine:
    """A line at the bottom that is rewritten on a terminal, and printed now and then elsewhere."""

    def __init__(self) -> None:
        self._started = self._printed = time.monotonic()
        self._live = sys.stdout.isatty()

    def _stamp(self, text: str) -> str:
        return f"[{elapsed(time.monotonic() - self._started):>5}]{text}"

    def clear(self) -> None:
        if self._live:
            print("\r\033[K", end="", flush=True)

    def print(self, text: str) -> None:
        self.clear()
        self._printed = time.monotonic()
        print(self._stamp(text), flush=True)

    def update(self, text: str) -> None:
        if self._live:
            print(f"\r\033[K{self._stamp(text)[:118]}", end="", flush=True)
        elif time.monotonic() - self._printed >= _QUIET_S:
            self.print(text)
