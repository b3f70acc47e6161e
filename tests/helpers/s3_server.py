"""A real S3 server for tests: seaweedfs' one binary, on loopback only, in a process group that dies for sure."""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.local_stack.s3_server import S3Service, client_of, free_ports

__all__ = ["S3Server", "s3_server"]

_START_SECONDS = 40.0


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Server:
    """Where the server listens and the throw-away credentials it accepts."""

    endpoint_url: str
    access_key: str
    secret_key: str
    ready_bucket: str = "ready"
    """A bucket that is there from the start; making one takes the server a second."""

    def environment(self) -> dict[str, str]:
        """What a client process needs in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client of this server."""
        return client_of(self.endpoint_url, self.access_key, self.secret_key)

    def make_bucket(self, name: str) -> str:
        """Create an empty bucket; returns ``s3://<name>``."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """At once: nobody wants its data, and a polite end takes it seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a server whose data lie in ``folder`` until the block ends.

    Args:
        folder: An empty folder of the caller's.

    Yields:
        The running server.

    Raises:
        RuntimeError: The server did not come up in time; the message ends with its log.
    """
    master, volume, filer, s3 = free_ports(4)
    service = S3Service(
        folder=folder,
        ports=(master, volume, filer, s3),
        access_key=secrets.token_hex(8),
        secret_key=secrets.token_hex(16),
    )
    service.prepare()
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            service.command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            server = S3Server(
                endpoint_url=service.endpoint_url, access_key=service.access_key, secret_key=service.secret_key
            )
            deadline = time.monotonic() + _START_SECONDS
            while not service.stores(server.ready_bucket):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"S3 server not ready; its log ends:\n{log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield server
        finally:
            _kill(process)
