"""Airflow on this machine: database, processes and pools brought up on loopback, and taken down again."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from components.airflow_env import airflow_environment, repository_root
from components.console._processes import Program
from components.console._rest import AirflowApi, is_healthy
from components.errors import TransientError

__all__ = ["LocalAirflow", "local_airflow", "password"]

_START_S = 180.0


class LocalAirflow:
    """A running Airflow: where it listens, and a session with it."""

    def __init__(self, url: str, api: AirflowApi, programs: list[Program], home: Path) -> None:
        self.url = url
        self.api = api
        self.home = home
        self._programs = programs

    def check(self) -> None:
        """Raise ``TransientError`` if one of the processes has ended."""
        for program in self._programs:
            program.check()

    def wait_for_dag(self, dag_id: str, *, timeout_s: float = 120.0) -> None:
        """Return once the DAG has been read; raise what is wrong with its file otherwise."""
        deadline = time.monotonic() + timeout_s
        while dag_id not in self.api.dag_ids():
            self.check()
            if errors := self.api.import_errors():
                raise TransientError(f"a DAG file cannot be read:\n{errors[0]}")
            if time.monotonic() > deadline:
                raise TransientError(f"{dag_id} did not appear within {timeout_s:.0f} s; known: {self.api.dag_ids()}")
            time.sleep(0.5)


@contextlib.contextmanager
def local_airflow(
    home: Path, config: Path, *, api_port: int, scheduled: bool, with_triggerer: bool
) -> Iterator[LocalAirflow]:
    """Bring Airflow up on loopback for the time of the block.

    Args:
        home: Airflow's folder.
        config: The pipeline's configuration file.
        api_port: Port of the API server and web interface.
        scheduled: Whether nights start by the clock.
        with_triggerer: Whether deferred tasks can wake up.

    Yields:
        The running Airflow, its pools made.

    Raises:
        TransientError: A process ended, or Airflow was not healthy in time.
    """
    env = airflow_environment(home, config, api_port=api_port, scheduled=scheduled)
    _migrate(home, env)
    commands = {
        "api-server": ["--host", "127.0.0.1", "--port", str(api_port)],
        "scheduler": ["--skip-serve-logs"],
        "dag-processor": [],
    }
    if with_triggerer:
        commands["triggerer"] = ["--skip-serve-logs"]
    programs: list[Program] = []
    try:
        for name, options in commands.items():
            command = [sys.executable, "-m", "airflow", name, *options]
            programs.append(Program(f"airflow {name}", command, env, home / "logs" / f"{name}.log"))
        url = f"http://127.0.0.1:{api_port}"
        _wait_until_healthy(url, programs, with_triggerer=with_triggerer)
        api = AirflowApi(url, user="admin", password=password(home))
        _ensure_pools(api)
        yield LocalAirflow(url, api, programs, home)
    finally:
        for program in reversed(programs):
            program.end()


def password(home: Path) -> str:
    """The generated password of the user ``admin``."""
    return str(json.loads((home / "passwords.json").read_text(encoding="utf-8"))["admin"])


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


def _wait_until_healthy(url: str, programs: list[Program], *, with_triggerer: bool) -> None:
    parts = ("scheduler", "dag_processor", *(("triggerer",) if with_triggerer else ()))
    deadline = time.monotonic() + _START_S
    while not is_healthy(url, parts):
        for program in programs:
            program.check()
        if time.monotonic() > deadline:
            logs = ", ".join(str(program.log) for program in programs)
            raise TransientError(f"Airflow was not healthy within {_START_S:.0f} s; its logs: {logs}")
        time.sleep(0.5)


def _ensure_pools(api: AirflowApi) -> None:
    pools = json.loads((repository_root() / "infra" / "airflow" / "pools.json").read_text(encoding="utf-8"))
    for name, pool in pools.items():
        api.ensure_pool(name, pool["slots"], pool["description"])
