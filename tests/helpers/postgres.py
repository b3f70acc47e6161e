"""A real PostgreSQL server for tests, and MLflow's server on it: on loopback, in process groups that die for sure."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from components.local_stack.postgres import PostgresCluster
from components.local_stack.processes import free_port

__all__ = ["mlflow_server", "postgres_server"]

_START_S = 120.0


def _kill(process: subprocess.Popen[bytes]) -> None:
    """At once: nobody wants its data."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=20)


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server until the block ends.

    Yields:
        The address of its database for SQLAlchemy.

    Raises:
        RuntimeError: The server did not come up; the message ends with its log.
    """
    # Not below pytest's folders, which root's stand-in may not enter.
    folder = Path(tempfile.mkdtemp(prefix="stlm-postgres-"))
    cluster, log = PostgresCluster(folder=folder, port=free_port(), password="of-a-test"), folder / "server.log"
    try:
        cluster.prepare()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*cluster.command, "-c", "fsync=off"], cwd=folder, user=cluster.account,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + _START_S
            while not cluster.answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not come up: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield cluster.url("postgres")
        finally:
            _kill(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def mlflow_server(database: str, folder: Path) -> Iterator[str]:
    """Run MLflow's server on a database until the block ends.

    Args:
        database: Its address for SQLAlchemy.
        folder: Where the server keeps artifacts and its log.

    Yields:
        The server's address.

    Raises:
        RuntimeError: The server did not come up; the message ends with its log.
    """
    port, log = free_port(), folder / "mlflow.log"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = dict(os.environ) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
            while not _answers(f"{url}/health"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"MLflow did not come up: {log.read_text()[-2000:]}")
                time.sleep(0.3)
            yield url
        finally:
            _kill(process)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError, socket.timeout), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False
