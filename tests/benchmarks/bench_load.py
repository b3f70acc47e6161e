"""Many model keys, many nights, a long history: what a night costs then.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_load.py``. ``STLM_BENCH_SCALE=0.1`` makes it all smaller.
"""

import datetime as dt
import functools
import gc
import hashlib
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import psutil
import pytest

from components.adapters.data_repository import DataRepository
from components.backfill.replay import replay
from components.config import ValidateSettings
from components.core.atomic_files import write_json
from components.core.contracts import RunRef
from components.core.errors import TransientError
from components.image_index import accepted_index, golden_index, history_index, write_index
from components.local_stack.airflow import LocalAirflow, start_airflow
from components.local_stack.airflow_env import repository_root
from components.local_stack.processes import ProcessGroup, free_port
from components.steps.collect.step import CollectInputs, collect
from components.steps.evaluate.leakage import find_leakage
from components.steps.validate.duplicates import find_duplicates
from stlm.training.replay import NormalImage, choose_replay, split_held_out
from tests.benchmarks.bench_version import cheap_nights
from tests.helpers.landing import feed_from_folder
from tests.helpers.model_package import new_mlflow
from tests.helpers.old_nights import archive, backfill_inputs
from tests.helpers.tiny_nights import KEY, TinyWorld, make_tiny_world

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

_T = TypeVar("_T")
SCALE = float(os.environ.get("STLM_BENCH_SCALE", "1"))
NUM_KEYS = max(2, round(100 * SCALE))
NUM_NIGHTS = max(6, round(50 * SCALE))
HISTORIES = (max(500, round(1_000 * SCALE)), max(1_000, round(100_000 * SCALE)))
IMAGES_A_NIGHT = 500
NIGHT = "2026-11-01"
_PARSE = """
import json, sys, time
import airflow.sdk, airflow.providers.standard.operators.empty
from airflow.dag_processing.dagbag import DagBag
started, worked = time.perf_counter(), time.process_time()
bag = DagBag(sys.argv[1], bundle_path=None)
seconds, worked = time.perf_counter() - started, time.process_time() - worked
files = {stat.file: stat.duration.total_seconds() for stat in bag.dagbag_stats}
print(json.dumps([seconds, files, len(bag.dags), bag.import_errors, worked]))
"""


def _print(title: str, *lines: str) -> None:
    print("\n".join(("", title, *lines)))


def _many_keys(root: Path) -> TinyWorld:
    """One configuration with many keys that share a golden set."""
    new_mlflow(root / "mlflow")
    world = make_tiny_world(root)
    others = "".join(
        f'\n[[models]]\nproduct = "part{number:03d}"\nline = "line1"\ncamera = "cam1"\ngolden = "golden"\n'
        f'recipe = "tiny"\n'
        for number in range(1, NUM_KEYS)
    )
    world.config_path.write_text(world.config_path.read_text(encoding="utf-8") + others, encoding="utf-8")
    return world


def _dag_ids() -> list[str]:
    return [
        f"nightly_retrain.{KEY.slug}",
        *(f"nightly_retrain.part{number:03d}.line1.cam1" for number in range(1, NUM_KEYS)),
    ]


def test_many_keys_are_parsed_quickly(tmp_path: Path) -> None:
    world = _many_keys(tmp_path)
    environment = os.environ | {"STLM_CONFIG": str(world.config_path)}
    command = [sys.executable, "-c", _PARSE, str(repository_root() / "dags")]
    runs = []
    for _ in range(3):
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        runs.append(json.loads(result.stdout.splitlines()[-1]))
    assert not runs[0][3], runs[0][3]
    whole = statistics.median(run[0] for run in runs)
    by_file = {Path(name).name: statistics.median(run[1][name] for run in runs) for name in runs[0][1]}
    nightly = by_file["nightly_retrain.py"]
    _print(
        f"DAG files with {NUM_KEYS} model keys: {runs[0][2]} DAGs (median of 3 processes, Airflow imported before)",
        "| file | s |", "|---|---|",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in sorted(by_file.items(), key=lambda item: -item[1])),
        f"| all files | {whole:.2f} |",
        f"| CPU of all files | {statistics.median(run[4] for run in runs):.2f} |",
    )  # fmt: skip
    assert nightly < 2


def _patiently(call: Callable[[], _T]) -> _T:
    """Ask again where SQLite was locked or a busy server slow."""
    for _ in range(10):
        try:
            return call()
        except TransientError as error:
            print(f"asked again: {str(error)[:200]}")
            time.sleep(2)
    return call()


def _ask_for(airflow: LocalAirflow, dag_id: str) -> None:
    airflow.api.pause(dag_id, False)
    if airflow.api.run(dag_id, f"bench__{NIGHT}") is None:
        airflow.api.trigger(dag_id, f"bench__{NIGHT}", NIGHT)


def _states(airflow: LocalAirflow) -> Counter[str]:
    """How many nights are in which state."""
    states: Counter[str] = Counter()
    offset = 0
    while True:
        query = f"/api/v2/dags/~/dagRuns?limit=100&offset={offset}"
        page = airflow.api._call("GET", query)["dag_runs"]
        states.update(str(run["state"]) for run in page)
        offset += len(page)
        if len(page) < 100:
            return states


def test_the_scheduler_keeps_up_with_as_many_nights_at_once(tmp_path: Path) -> None:
    world = _many_keys(tmp_path)
    port = free_port()
    with ProcessGroup(tmp_path / "state") as programs:
        started = time.monotonic()
        airflow = start_airflow(
            programs, tmp_path / "airflow", world.config_path, api_port=port, scheduled=False, with_triggerer=False
        )
        for dag_id in _dag_ids():
            _patiently(functools.partial(airflow.wait_for_dag, dag_id))
        parsed_s = time.monotonic() - started
        due = time.monotonic()
        for dag_id in _dag_ids():
            _patiently(functools.partial(_ask_for, airflow, dag_id))
        asked_s = time.monotonic() - due
        finished: list[tuple[float, int]] = []
        while True:
            states = _patiently(lambda: _states(airflow))
            ended = states["success"] + states["failed"]
            finished.append((time.monotonic() - due, ended))
            if ended == NUM_KEYS:
                break
            airflow.check()
            assert finished[-1][0] < 1500, states
            time.sleep(2)
    last_s = finished[-1][0]
    half_s = next(seconds for seconds, ended in finished if ended >= NUM_KEYS / 2)
    _print(
        f"{NUM_KEYS} nights due at once, nothing new in any ({os.cpu_count()} CPUs, SQLite, 4 tasks at a time)",
        "| | |", "|---|---|",
        f"| Airflow up and all keys read | {parsed_s:.0f} s |",
        f"| asking for the nights | {asked_s:.0f} s |",
        f"| half of them done after | {half_s:.0f} s |",
        f"| all of them done after | {last_s:.0f} s |",
        f"| nights a minute | {60 * NUM_KEYS / last_s:.1f} |",
        f"| failed | {states['failed']} |",
    )  # fmt: skip
    assert states["failed"] == 0
    runs = Path(world.config.paths.work_dir) / "runs"
    assert len(list(runs.glob(f"*/{NIGHT}/records/report.json"))) == NUM_KEYS


def test_memory_does_not_grow_over_nights_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.disable(logging.INFO)
    new_mlflow(tmp_path / "mlflow")
    world = make_tiny_world(tmp_path)
    first = dt.date(2026, 1, 1)
    nights = [(first + dt.timedelta(days=day)).isoformat() for day in range(NUM_NIGHTS)]
    for night in nights:
        archive(world, night)
    process, rss, seconds = psutil.Process(), [], []
    for night in nights:
        started = time.perf_counter()
        replay(backfill_inputs(world, nights[0], night, ancestor="none"))
        seconds.append(time.perf_counter() - started)
        gc.collect()
        rss.append(process.memory_info().rss / 2**20)
    warm = len(rss) // 5
    slope = float(np.polyfit(np.arange(len(rss) - warm), rss[warm:], 1)[0])
    _print(
        f"{NUM_NIGHTS} nights replayed in one process (recipe tiny, 16 images each)",
        "| after night | RSS, MiB | s a night |", "|---|---|---|",
        *(
            f"| {index + 1} | {rss[index]:.0f} | {statistics.median(seconds[max(0, index - 4) : index + 1]):.1f} |"
            for index in sorted({0, warm, len(rss) // 2, len(rss) - 1})
        ),
        f"| slope after night {warm} | {slope:+.2f} MiB a night | |",
    )  # fmt: skip
    assert slope < 2


@dataclass(frozen=True)
class _Cost:
    wall_s: float
    cpu_s: float
    """Of this process and those it started: what others do on the machine does not count."""

    def __str__(self) -> str:
        return f"{self.wall_s:.2f} ({self.cpu_s:.2f})"


def _timed(action: Callable[[], Any], times: int = 3) -> _Cost:
    walls, cpus = [], []
    for _ in range(times):
        started, worked = time.perf_counter(), sum(os.times()[:4])
        action()
        walls.append(time.perf_counter() - started)
        cpus.append(sum(os.times()[:4]) - worked)
    return _Cost(wall_s=statistics.median(walls), cpu_s=statistics.median(cpus))


def _random_images(count: int, seed: int) -> pd.DataFrame:
    """An index of images that nobody took."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "image": [f"a/{seed}-{number}.png" for number in range(count)],
            "sha256": [random.bytes(32).hex() for _ in range(count)],
            "hash": [random.bytes(32).hex() for _ in range(count)],
        }
    )


def _history_of_records(world: TinyWorld, num_images: int) -> RunRef:
    """What earlier nights leave below the work folder: which lots they took, and what of them was accepted."""
    nights = -(-num_images // IMAGES_A_NIGHT)
    for night in range(nights):
        run = world.run((dt.date(2025, 1, 1) + dt.timedelta(days=night)).isoformat())
        table = _random_images(min(IMAGES_A_NIGHT, num_images), night)
        write_index(run, table)
        images = [{"name": f"{sha256[:8]}.png", "bytes": 9, "sha256": sha256, "part": ""} for sha256 in table["sha256"]]
        lot = {"lot": f"{night}-a", "date": run.partition, "late": False, "images": images}
        pin = {"key": KEY.slug, "partition": run.partition, "lots": [lot], "waiting": []}
        write_json(run.run_dir / "collect" / "taken.json", pin)
        write_json(run.run_dir / "version" / "f" / "outputs.json", {})
    return world.run("2026-12-01")


def _costs(root: Path, history: int) -> dict[str, _Cost]:
    """What everything in a night costs that looks back at all of history."""
    world = make_tiny_world(root)
    run = _history_of_records(world, history)
    produced = root / "produced"
    produced.mkdir()
    for number in range(IMAGES_A_NIGHT):
        content = hashlib.sha256(f"new {number}".encode()).digest() * 128
        (produced / f"{number:03d}.png").write_bytes(content)
    feed_from_folder(sorted(produced.iterdir()), world.config.paths.landing, KEY, "20261201-a", run.partition)

    def collecting() -> None:
        shutil.rmtree(run.run_dir / "collect", ignore_errors=True)
        collect(CollectInputs(run=run, landing=world.config.paths.landing))

    repository = DataRepository(root / "repo", str(root / "remote"))
    nights = cheap_nights(root / "batches", images_a_night=min(5_000, history), image_bytes=64)
    for _ in range(max(1, history // 5_000)):
        repository.add_partition(*next(nights))
    small = cheap_nights(root / "new", images_a_night=IMAGES_A_NIGHT)
    batches = [next(small) for _ in range(3)]
    for index, (old, batch) in enumerate(batches):
        batches[index] = (RunRef(key=old.key, partition=f"2030-01-0{index + 1}", work_dir=old.work_dir), batch)
    pending = iter(batches)

    def versioning() -> None:
        repository.add_partition(*next(pending))

    settings = ValidateSettings()
    golden = golden_index(run, str(root / "golden"), max_pixels=settings.max_pixels)
    images = _random_images(IMAGES_A_NIGHT, 10**6)
    memory = [NormalImage(path=f"p{i}", sha256=f"{i:064x}", night=f"n{i % 200}") for i in range(100)]
    new = [NormalImage(path=f"q{i}", sha256=f"{i:064x}", night="n") for i in range(1_000, 1_500)]

    def choosing() -> None:
        training, _ = split_held_out(new, share=0.15, seed=0)
        choose_replay((*memory, *training), limit=100, seed=0)

    return {
        "collect": _timed(collecting),
        "version": _timed(versioning),
        "validate: doubles of history and golden set": _timed(
            lambda: find_duplicates(images, history_index(run), golden, max_bits=settings.near_duplicate_bits)
        ),
        "fine_tune: choice of what is learnt again": _timed(choosing),
        "evaluate: golden images in history": _timed(
            lambda: (accepted_index(run), find_leakage(run, str(root / "golden"), [], settings))
        ),
    }


def test_a_night_on_a_very_long_history_costs_little_more(tmp_path: Path) -> None:
    logging.disable(logging.INFO)
    short, long = (_costs(tmp_path / str(history), history) for history in HISTORIES)
    rows = {part: (short[part], long[part]) for part in short} | {
        "together": tuple(
            _Cost(wall_s=sum(c.wall_s for c in costs.values()), cpu_s=sum(c.cpu_s for c in costs.values()))
            for costs in (short, long)
        )
    }
    _print(
        f"A night of {IMAGES_A_NIGHT} images: seconds, in brackets of CPU, where it looks back (median of 3)",
        f"| | history {HISTORIES[0]:,} | history {HISTORIES[1]:,} | more by, s |", "|---|---|---|---|",
        *(f"| {part} | {few} | {many} | {many.wall_s - few.wall_s:.2f} |" for part, (few, many) in rows.items()),
    )  # fmt: skip
    growth = HISTORIES[1] / HISTORIES[0]
    slow = {part: str(costs) for part, costs in rows.items() if costs[1].cpu_s > growth * max(0.1, costs[0].cpu_s)}
    assert not slow, f"more than in proportion to history: {slow}"
