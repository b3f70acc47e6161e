"""Everything on real servers, started by one command and driven from outside, as its users would drive it.

Two model keys at once: line 1 by the verdict alone, line 2 with a person's yes.
"""

import contextlib
import datetime as dt
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from mlflow import MlflowClient
from PIL import Image

from components.core.contracts import ModelKey
from components.local_stack.airflow_api import AirflowApi, is_healthy
from components.local_stack.processes import free_port
from tests.helpers.tiny_nights import KEY as LINE_1
from tests.helpers.tiny_nights import TinyWorld, make_tiny_world, texture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.filterwarnings("default")]

LINE_2 = ModelKey(product="tiles", line="line2", camera="cam1")
PARTS = ("scheduler", "dag_processor", "triggerer")
_START_S, _RUN_S = 300.0, 600.0
_SECOND_MODEL = """
[[models]]
product = "tiles"
line = "line2"
camera = "cam1"
golden = "golden"
recipe = "tiny"
approvers = ["ada"]
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What ``stlm up-services`` started, and what it told its users."""

    home: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    def api(self, user: str = "admin") -> AirflowApi:
        passwords = json.loads((self.home / "airflow" / "passwords.json").read_text())
        return AirflowApi(self.airflow, user=user, password=passwords[user])

    @property
    def airflow(self) -> str:
        return self.environment["AIRFLOW__API__BASE_URL"]

    @property
    def s3(self) -> Any:
        env = self.environment
        return boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_DEFAULT_REGION"],
        )

    def run(self, *command: str) -> str:
        """A program in the shell of a user who has read the environment."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stlm(self, *command: str) -> str:
        return self.run(sys.executable, "-m", "components.cli", *command)

    def champion(self, key: ModelKey) -> int:
        client = MlflowClient(self.environment["MLFLOW_TRACKING_URI"])
        return int(client.get_model_version_by_alias(key.registered_model, "champion").version)


def _console(world: TinyWorld, *command: str) -> list[str]:
    place = ["--config", str(world.config_path), "--state", str(world.root / "state")]
    return [sys.executable, "-m", "components.cli", *place, *command]


@contextlib.contextmanager
def _site(world: TinyWorld, *options: str) -> Iterator[Site]:
    """The servers from start to ``stlm down``; nothing of them is left."""
    home, log = world.root / "state" / "services", world.root / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _console(world, "up-services", *options), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _until(lambda: process.poll() is not None or "`stlm down` elsewhere" in log.read_text(), _START_S)
        assert process.poll() is None, log.read_text()
        shell = ["bash", "-c", f". '{home / 'env'}' && exec env -0"]
        told = subprocess.run(shell, capture_output=True, text=True, check=True).stdout
        yield Site(
            home=home, process=process, environment=dict(pair.split("=", 1) for pair in told.split("\0") if pair)
        )
        subprocess.run(_console(world, "down"), check=True, timeout=180)
        assert process.wait(timeout=10) == 0, log.read_text()
        assert _left_of(home) == []
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=180)


def _left_of(home: Path) -> list[str]:
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(home) in line]


def _until(check: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.5)
    raise AssertionError("waited for too long")


def _deliver(site: Site, key: ModelKey, night: str, *, first_tile: int) -> None:
    """A lot of 16 good tiles, the same on every day, and the manifest last, as the README says."""
    lot, images = f"{night.replace('-', '')}-a", []
    for i in range(16):
        content = io.BytesIO()
        Image.fromarray(texture(first_tile + i)).save(content, "PNG")
        data = content.getvalue()
        site.s3.put_object(Bucket="stlm", Key=f"landing/{key.path}/{lot}/{i:03d}.png", Body=data)
        images.append({"name": f"{i:03d}.png", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    manifest = {"key": key.slug, "lot": lot, "date": night, "images": images}
    place = f"landing/{key.path}/{lot}/manifest.json"
    site.s3.put_object(Bucket="stlm", Key=place, Body=json.dumps(manifest).encode())


def _dag(key: ModelKey) -> str:
    return f"nightly_retrain.{key.slug}"


def _runs(site: Site, dag_id: str, run_type: str = "") -> list[dict[str, Any]]:
    query = f"?run_type={run_type}" if run_type else ""
    return list(site.api()._call("GET", f"/api/v2/dags/{dag_id}/dagRuns{query}")["dag_runs"])


def _ended(site: Site, dag_id: str, run_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        run = site.api().run(dag_id, run_id)
        return run if run and run["state"] in ("success", "failed") else None

    run: dict[str, Any] = _until(look, _RUN_S)
    if run["state"] == "failed":
        pytest.fail(_failures(site, dag_id, run_id))
    return run


def _failures(site: Site, dag_id: str, run_id: str) -> str:
    """Every task's state, and the end of the log of those that failed."""
    states = {task["task_id"]: task["state"] for task in site.api().task_instances(dag_id, run_id)}
    logs = site.home / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"
    failed = [
        path for task, state in states.items() if state == "failed" for path in logs.glob(f"task_id={task}/*.log")
    ]
    return "\n".join([str(states), *(f"{path}:\n{path.read_text(errors='replace')[-3000:]}" for path in failed)])


def _approve(site: Site, user: str, run_id: str) -> None:
    """Say yes as often as one is asked, and wait for the end of the night."""
    dag_id = _dag(LINE_2)
    place = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/approve"

    def answered() -> bool:
        if site.api()._call("GET", place)["state"] == "awaiting_input":
            time.sleep(3)  # to read what is asked: Airflow fails a task that is answered before it has sat down
            site.api(user)._call(
                "PATCH", f"{place}/-1/hitlDetails", {"chosen_options": ["Approve"], "params_input": {}}
            )
        return (site.api().run(dag_id, run_id) or {})["state"] in ("success", "failed")

    _until(answered, _RUN_S)


def _judgements(site: Site, picture: Path) -> list[float]:
    """What the champions of both keys say, each from MLflow alone, in a process of its own."""
    script = (
        "import mlflow, sys; from pathlib import Path\n"
        "for name in sys.argv[2:]:\n"
        "    model = mlflow.pyfunc.load_model(f'models:/{name}@champion')\n"
        "    print('score', model.predict([{'image': Path(sys.argv[1]).read_bytes()}])['score'][0])\n"
    )
    names = (LINE_1.registered_model, LINE_2.registered_model)
    said = site.run(sys.executable, "-c", script, str(picture), *names)
    return [float(line.removeprefix("score ")) for line in said.splitlines() if line.startswith("score ")]


def _mentions(folder: Path, words: set[str]) -> list[str]:
    """Files that hold one of the words."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [f"{path}: {word}" for word in words if word.encode() in content]
    return found


def _secrets(site: Site) -> set[str]:
    kept = json.loads((site.home / "services.json").read_text())
    passwords = json.loads((site.home / "airflow" / "passwords.json").read_text())
    return {kept["postgres_password"], kept["s3_secret_key"], *passwords.values()}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, other than pytest's: where root runs the test, PostgreSQL is nobody's."""
    folder = Path(tempfile.mkdtemp(prefix="stlm-services-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_two_keys_on_real_servers_share_nothing_and_survive_a_restart(open_folder: Path) -> None:
    world = make_tiny_world(open_folder)
    # What so small a model is worth plays no role here.
    settings = world.config_path.read_text().replace("[gate]\n", "[gate]\nmax_false_alarm_rate = 1.0\n")
    world.config_path.write_text(settings + _SECOND_MODEL)
    picture = world.root / "golden" / "test" / "scratch" / "000.png"
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    with _site(world, "--port", str(free_port()), "--mlflow-port", str(free_port())) as site:
        assert is_healthy(site.airflow, PARTS)
        # What is due: the last time that it was two o'clock.
        due = dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
        night, before = (str((due - dt.timedelta(days=days)).date()) for days in (0, 1))
        _deliver(site, LINE_1, night, first_tile=2000)
        _deliver(site, LINE_2, night, first_tile=1000)

        # The clock starts both keys at once.
        for key in (LINE_1, LINE_2):
            site.api().pause(_dag(key), False)
        scheduled = [_until(lambda key=key: _runs(site, _dag(key)), 120)[0] for key in (LINE_1, LINE_2)]
        assert [(run["run_type"], run["partition_key"]) for run in scheduled] == [("scheduled", night)] * 2
        _approve(site, "ada", scheduled[1]["dag_run_id"])
        for key, run in zip((LINE_1, LINE_2), scheduled, strict=True):
            _ended(site, _dag(key), run["dag_run_id"])
        assert (site.champion(LINE_1), site.champion(LINE_2)) == (1, 1)

        # A night by hand.
        _deliver(site, LINE_1, before, first_tile=3000)
        site.api().trigger(_dag(LINE_1), "by-hand", before)
        _ended(site, _dag(LINE_1), "by-hand")
        assert (site.champion(LINE_1), site.champion(LINE_2)) == (2, 1)

        # A backfill of both nights, which leaves the champion alone.
        backfill = {
            "dag_id": _dag(LINE_1), "from_date": f"{before}T00:00:00Z", "to_date": f"{due + dt.timedelta(hours=2)}",
            "max_active_runs": 1, "reprocess_behavior": "completed", "run_backwards": False, "dag_run_conf": {},
        }  # fmt: skip
        site.api()._call("POST", "/api/v2/backfills", backfill)
        replays = _until(lambda: (runs := _runs(site, _dag(LINE_1), "backfill")) and len(runs) == 2 and runs, 60)
        for run in sorted(replays, key=lambda run: str(run["partition_key"])):
            _ended(site, _dag(LINE_1), run["dag_run_id"])
        assert sorted(run["partition_key"] for run in replays) == [before, night]
        client = MlflowClient(site.environment["MLFLOW_TRACKING_URI"])
        aliases = {key: client.get_registered_model(key.registered_model).aliases for key in (LINE_1, LINE_2)}
        assert {alias: int(version) for alias, version in aliases[LINE_1].items() if alias != "anchor"} == {
            "champion": 2, "previous": 1, "backfill-airflow": 4,
        }  # fmt: skip
        assert {alias: int(version) for alias, version in aliases[LINE_2].items()} == {"champion": 1, "anchor": 1}

        # Back to the champion before.
        line_1_then, line_2 = _judgements(site, picture)
        site.api().pause("rollback_model", False)
        conf = {"key": LINE_1.slug, "reason": "false alarms", "by": "ada"}
        order = {"dag_run_id": "back", "logical_date": None, "conf": conf}
        site.api()._call("POST", "/api/v2/dags/rollback_model/dagRuns", order)
        _ended(site, "rollback_model", "back")
        assert (site.champion(LINE_1), site.champion(LINE_2)) == (1, 1)
        line_1, line_2_after = _judgements(site, picture)
        assert line_1 != line_1_then
        assert line_2_after == line_2

        # Each key has its own of everything.
        for key, other in ((LINE_1, LINE_2), (LINE_2, LINE_1)):
            assert _mentions(site.home / "work" / "runs" / key.slug, {other.slug, other.path}) == []
            assert "each as it was written" in site.stlm("ledger", "verify", "--key", key.slug)
        repository = ["git", "-C", str(site.home / "data-repo")]
        tags = site.run(*repository, "tag").split()
        assert {f"{LINE_1.slug}/{night}", f"{LINE_1.slug}/{before}", f"{LINE_2.slug}/{night}"} <= set(tags)
        assert not [tag for tag in tags if LINE_2.slug in tag and before in tag]
        assert "No problems found." in site.stlm("doctor")
        told = site.stlm("status")
        # Nobody reads a password in a log, a record or a page.
        for folder in ("logs", "airflow/logs", "work", "data-repo"):
            assert _mentions(site.home / folder, _secrets(site)) == []

    with _site(world) as again:
        assert again.environment == site.environment
        assert again.stlm("status") == told
        assert _judgements(again, picture) == [line_1, line_2]
        assert {run["state"] for run in _runs(again, _dag(LINE_1))} == {"success"}
