"""Our figures on the wire: a UDP socket listens as a StatsD server does."""

import datetime as dt
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils

from components.adapters.ledger import Ledger, LedgerEntries
from components.adapters.storage import open_storage
from components.core.contracts import RunRef
from components.core.run_records import StepRecord, write_record
from dags._metrics import night_ended, step_ended
from tests.helpers.model_package import new_mlflow
from tests.helpers.tiny_nights import KEY, make_tiny_world

RUN = RunRef(key=KEY, partition="2026-03-01", work_dir="work")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(1)
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(listening.getsockname()[1]))
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)
        yield listening
        if (backend := sys.modules[stats.gauge.__module__]._backend) is not None:
            backend.statsd.close()
    monkeypatch.undo()
    stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)


def received(server: socket.socket) -> dict[str, str]:
    """Name -> value and kind of everything that has come in."""
    server.setblocking(False)
    lines = []
    try:
        while True:
            lines += server.recv(65536).decode().splitlines()
    except BlockingIOError:
        return dict(line.split(":", 1) for line in lines)


def test_every_step_tells_what_it_found_with_and_without_the_key_in_the_name(server: socket.socket) -> None:
    step_ended(RUN, "collect", "SUCCEEDED", 1.5, {"batch": {"num_images": 20}})
    step_ended(RUN, "validate", "SUCCEEDED", 2, {"num_accepted": 12, "num_quarantined": 5, "num_rejected": 3})
    step_ended(RUN, "fine_tune", "SUCCEEDED", 9, {"training_seconds": 8.25, "num_steps": 100})
    step_ended(RUN, "gate", "SUCCEEDED", 1, {"verdict": "REJECT"})
    step_ended(RUN, "promote", "FAILED", 1, None)
    said = received(server)
    expected = {
        "images.taken": "20|g",
        "images.accepted": "12|g",
        "images.quarantined_share": "0.25|g",
        "training.seconds": "8.25|g",
        "verdicts.reject": "1|c",
        "steps.promote.failed": "1|c",
        "steps.collect.seconds": "1.5|g",
    }
    for name, value in expected.items():
        assert said[f"airflow.stlm.{name}"] == value
        assert said[f"airflow.stlm.{KEY.slug}.{name}"] == value


def test_a_replayed_night_is_not_counted(server: socket.socket) -> None:
    replay = RunRef(key=KEY, partition="2026-03-01", work_dir="work", backfill="airflow")
    step_ended(replay, "gate", "SUCCEEDED", 1, {"verdict": "PROMOTE"})
    assert received(server) == {}


def test_the_age_of_the_champion_and_the_row_of_bad_nights_are_told(tmp_path: Path, server: socket.socket) -> None:
    new_mlflow(tmp_path / "mlflow")
    world = make_tiny_world(tmp_path)
    begun = dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)
    ledger = Ledger(open_storage(f"{world.config.paths.work_dir}/ledger"), KEY.registered_model)
    body = {"champion": 1, "action": "promote", "previous": None, "anchor": 1}
    ledger.append(LedgerEntries(), kind="commit", at=begun, fence=1, writer="tests", body=body)
    locked = StepRecord(step="collect", outcome="SKIPPED", seconds=0, detail="locked by another")
    write_record(world.run("2026-03-02"), locked)

    later = begun + dt.timedelta(days=2)
    night_ended(world.config, world.config.models[0], world.run("2026-03-03"), "FAILED", later)

    said = received(server)
    assert said["airflow.stlm.champion.age_seconds"] == "172800|g"
    assert said[f"airflow.stlm.{KEY.slug}.nights.bad_in_a_row"] == "2|g"


def test_nothing_is_looked_up_where_nobody_listens(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    night_ended(world.config, world.config.models[0], world.run("2026-03-03"), "FAILED", dt.datetime.now(dt.UTC))
    assert not (tmp_path / "mlflow").exists()
