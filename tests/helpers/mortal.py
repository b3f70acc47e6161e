"""Servers that listen on loopback, killed at a bad moment and brought back exactly as they had been started."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

__all__ = ["Mortal", "mortal"]

_START_S = 120.0


class Mortal:
    """The server at an address, with everything in its process group."""

    def __init__(self, url: str) -> None:
        self._port = urlsplit(url).port or 0
        listening = [
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == self._port and connection.pid
        ]
        leader = psutil.Process(os.getpgid(listening[0]))
        self._pid = leader.pid
        self._command, self._cwd, self._user = leader.cmdline(), leader.cwd(), leader.username()
        self._environment = leader.environ()
        self._revived: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """Kill -9 of the server and all that it started; PostgreSQL's are in groups of their own."""
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self._pid)
            tree = [leader, *leader.children(recursive=True)]
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(tree, timeout=20)
        if self._revived is not None:
            self._revived.wait(timeout=20)

    def revive(self) -> None:
        """Start it again; returns when it listens."""
        root = os.geteuid() == 0
        self._revived = subprocess.Popen(
            self._command, cwd=self._cwd, env=self._environment, user=self._user if root else None,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._pid = self._revived.pid
        deadline = time.monotonic() + _START_S
        while not self._listens():
            assert self._revived.poll() is None, f"{Path(self._command[0]).name} ended at once"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.revive()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True


@contextlib.contextmanager
def mortal(url: str) -> Iterator[Mortal]:
    """Give power over a running server; what was started again is gone after the block.

    Args:
        url: Its address, with the port.

    Yields:
        The server.
    """
    server = Mortal(url)
    try:
        yield server
    finally:
        server.kill()
