"""Process group: long-running programs with their own logs, ended with everything they started."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import psutil
from filelock import FileLock, Timeout

from components.core.atomic_files import write_json
from components.core.errors import InputError, TransientError

__all__ = ["ProcessGroup", "free_port", "interruptible", "port_is_free", "stop_running"]

_GRACE_S = 10.0


def free_port() -> int:
    """A loopback TCP port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on the loopback ``port``."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class ProcessGroup:
    """The programs of one state folder: one owner at a time, nothing left behind by the one before.

    Use it as a context manager; leaving it ends every program and everything below it.
    """

    def __init__(self, state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self._record = state / "running.json"
        self._lock = FileLock(state / "running.lock", timeout=0)
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        self._grace_s: dict[str, float] = {}

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout:
            owner = _read(self._record).get("owner", [0])[0]
            raise InputError(
                f"Airflow of {self._record.parent} is running already, under process {owner}: "
                "wait for it, or stop it with `stlm down`"
            ) from None
        for pid, created in _read(self._record).get("programs", []):
            _end_tree(_alive(pid, created))  # its owner was killed before it could do so
        self._save()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            for name, (process, _) in reversed(self._running.items()):
                _end_tree(_alive(process.pid), self._grace_s[name])
                process.wait()
        finally:
            self._record.unlink(missing_ok=True)
            self._lock.release()

    def start(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        *,
        folder: Path | None = None,
        user: str | None = None,
        grace_s: float = _GRACE_S,
    ) -> None:
        """Start a program whose output is added to ``log``: in ``folder``, and as ``user``, where they are given.

        Asked to end, it has ``grace_s`` to do so.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches us alone; we end the others in order
                cwd=folder,
                user=user,
            )
        self._running[name] = (process, log)
        self._grace_s[name] = grace_s
        self._save()

    def check(self) -> None:
        """Raise ``TransientError`` with the end of its log if a program has ended."""
        for name, (process, log) in self._running.items():
            code = process.poll()
            if code is not None:
                tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
                raise TransientError(f"{name} ended with exit code {code}; its log is {log}:\n{tail}")

    def _save(self) -> None:
        pids = [process.pid for process, _ in self._running.values()]
        programs = [[pid, psutil.Process(pid).create_time()] for pid in pids if psutil.pid_exists(pid)]
        write_json(self._record, {"owner": [os.getpid(), psutil.Process().create_time()], "programs": programs})


def stop_running(state: Path) -> bool:
    """Ask whoever runs programs in this state folder to end them; false if nothing runs.

    Where that process was killed, its programs are ended from here.
    """
    record = _read(state / "running.json")
    owner = record.get("owner")
    process = _alive(*owner) if owner else None
    if process is not None:
        process.terminate()
        try:
            with FileLock(state / "running.lock", timeout=12 * _GRACE_S):
                return True
        except Timeout:
            raise TransientError(f"process {process.pid} has not ended its programs yet: try again") from None
    left = [program for pid, created in record.get("programs", []) if (program := _alive(pid, created))]
    for program in reversed(left):
        _end_tree(program)
    return bool(left)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM end the block as Ctrl-C does, so that its ``finally`` clauses run."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _read(record: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return value


def _alive(pid: float, created: float | None = None) -> psutil.Process | None:
    """The process, unless it has ended; ``created`` tells it from a later one with the same id."""
    try:
        process = psutil.Process(int(pid))
        same = created is None or process.create_time() == created
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _end_tree(root: psutil.Process | None, grace_s: float = _GRACE_S) -> None:
    """Ask a process and all its descendants to end; kill what is left after the grace time."""
    if root is None:
        return
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(tree, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_GRACE_S)
