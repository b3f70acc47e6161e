"""Long-running programs on this machine: started with their own log, ended with everything they started."""

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from components.errors import TransientError

__all__ = ["Program", "end_tree", "free_port", "interruptible", "port_is_free"]


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


class Program:
    """One running program; its output goes to a file, its process tree ends with it."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches us alone; we end the others in order
            )

    @property
    def pid(self) -> int:
        """Process id of the program."""
        return self._process.pid

    def check(self) -> None:
        """Raise ``TransientError`` with the end of its log if the program has ended."""
        code = self._process.poll()
        if code is not None:
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise TransientError(f"{self.name} ended with exit code {code}; its log is {self.log}:\n{tail}")

    def end(self) -> None:
        """Stop the program and everything below it."""
        end_tree(self.pid)
        self._process.wait()


def end_tree(pid: int, *, grace_s: float = 10.0) -> None:
    """Ask a process and all its descendants to end; kill what is left after ``grace_s`` seconds."""
    try:
        root = psutil.Process(pid)
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
    psutil.wait_procs(alive, timeout=grace_s)


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
