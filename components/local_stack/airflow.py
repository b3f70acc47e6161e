"""Airflow on this machine: database, processes and pools brought up on loopback."""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from components.core.atomic_files import write_json
from components.core.errors import TransientError
from components.local_stack.airflow_api import AirflowApi, is_healthy
from components.local_stack.airflow_env import airflow_environment, repository_root
from components.local_stack.processes import ProcessGroup

__all__ = ["LocalAirflow", "password", "start_airflow"]

_START_S = 180.0


class LocalAirflow:
    """A running Airflow: where it listens, and a session with it."""

    def __init__(self, url: str, api: AirflowApi, programs: ProcessGroup, home: Path) -> None:
        self.url = url
        self.api = api
        self.home = home
        self.check = programs.check

    def wait_for_dag(self, dag_id: str, *, timeout_s: float = 120.0) -> None:
        """Return once the DAG has been read; raise what is wrong with its file otherwise."""
        deadline = time.monotonic() + timeout_s
        while not self.api.has_dag(dag_id):
            self.check()
            if errors := self.api.import_errors():
                raise TransientError(f"a DAG file cannot be read:\n{errors[0]}")
            if time.monotonic() > deadline:
                raise TransientError(f"{dag_id} did not appear within {timeout_s:.0f} s")
            time.sleep(0.5)


def start_airflow(
    programs: ProcessGroup,
    home: Path,
    config: Path,
    *,
    api_port: int,
    scheduled: bool,
    with_triggerer: bool,
    people: Sequence[str] = (),
    services: Mapping[str, str] | None = None,
) -> LocalAirflow:
    """Bring Airflow up on loopback, with its pools.

    Args:
        programs: Owns the processes and ends them.
        home: Airflow's folder.
        config: The pipeline's configuration file.
        api_port: Port of the API server and web interface.
        scheduled: Whether nights start by the clock.
        with_triggerer: Whether deferred tasks can wake up.
        people: Who has an account beside ``admin``.
        services: Variables that say where other servers are, see :func:`airflow_environment`.

    Returns:
        The running Airflow.

    Raises:
        TransientError: A process ended, or Airflow was not healthy in time.
    """
    env = airflow_environment(home, config, api_port=api_port, scheduled=scheduled, people=people, services=services)
    _draw_passwords(home, people)
    _migrate(home, env)
    commands = {
        "api-server": ["--host", "127.0.0.1", "--port", str(api_port)],
        "scheduler": ["--skip-serve-logs"],
        "dag-processor": [],
    }
    if with_triggerer:
        commands["triggerer"] = ["--skip-serve-logs"]
    for name, options in commands.items():
        command = [sys.executable, "-m", "airflow", name, *options]
        programs.start(f"airflow {name}", command, env, home / "logs" / f"{name}.log")
    url = f"http://127.0.0.1:{api_port}"
    _wait_until_healthy(url, programs, home, with_triggerer=with_triggerer)
    api = AirflowApi(url, user="admin", password=password(home))
    pools = json.loads((repository_root() / "infra" / "airflow" / "pools.json").read_text(encoding="utf-8"))
    for name, pool in pools.items():
        api.ensure_pool(name, pool["slots"], pool["description"])
    return LocalAirflow(url, api, programs, home)


def password(home: Path, user: str = "admin") -> str:
    """The generated password of a user."""
    return str(json.loads((home / "passwords.json").read_text(encoding="utf-8"))[user])


def _draw_passwords(home: Path, people: Sequence[str]) -> None:
    """Give everybody without a password one: Airflow would write those that it makes into its log."""
    file = home / "passwords.json"
    known = json.loads(file.read_text(encoding="utf-8") or "{}") if file.exists() else {}
    missing = {name: secrets.token_urlsafe(12) for name in ("admin", *people) if name not in known}
    if missing:
        write_json(file, known | missing)


def _migrate(home: Path, env: dict[str, str]) -> None:
    """Bring the database to this Airflow's schema; once per version, because it takes seconds."""
    stamp = home / f".schema-{metadata.version('apache-airflow')}"
    if stamp.exists():
        return
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise TransientError(f"airflow db migrate failed:\n{result.stderr[-2000:]}")
    stamp.touch()


def _wait_until_healthy(url: str, programs: ProcessGroup, home: Path, *, with_triggerer: bool) -> None:
    parts = ("scheduler", "dag_processor", *(("triggerer",) if with_triggerer else ()))
    deadline = time.monotonic() + _START_S
    while not is_healthy(url, parts):
        programs.check()
        if time.monotonic() > deadline:
            raise TransientError(f"Airflow was not healthy within {_START_S:.0f} s; its logs are in {home / 'logs'}")
        time.sleep(0.5)
