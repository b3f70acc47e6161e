"""Recognisable credentials in the environment of whole nights on a real S3 server: nothing that is kept has them."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.models.dagrun import DagRun

from components.adapters.storage import open_storage
from components.config import load_config
from components.core.run_records import read_night
from tests.helpers.model_package import new_mlflow
from tests.helpers.s3_server import S3Server, s3_server
from tests.helpers.tiny_nights import NIGHTS, TinyWorld, make_tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

SECRETS = {
    name: f"fake-{name.lower().replace('_', '-')}-0123456789"
    for name in (
        "AIRFLOW__API_AUTH__JWT_SECRET",
        "AIRFLOW__API__SECRET_KEY",
        "AWS_SESSION_TOKEN_OF_SOMEBODY",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "PGPASSWORD",
        "STLM_WEBHOOK_SECRET",
    )
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(tmp_path / "s3") as server:
        for name, value in (SECRETS | server.environment()).items():
            monkeypatch.setenv(name, value)
        yield server


def _on_s3(root: Path, server: S3Server) -> TinyWorld:
    """The tiny world with landing zone, data and ledger in a bucket."""
    new_mlflow(root / "mlflow")
    world = make_tiny_world(root)
    place = f"s3://{server.ready_bucket}"
    text = world.config_path.read_text(encoding="utf-8")
    for name in ("landing", "dvc-remote"):
        text = text.replace(f'"{name}"', f'"{place}/{name}"')
    text = text.replace("[mlflow]", f's3_endpoint_url = "{server.endpoint_url}"\n\n[mlflow]')
    world.config_path.write_text(f'{text}\n[promote]\nledger = "{place}/ledger"\n', encoding="utf-8")
    return TinyWorld(root=root, config_path=world.config_path, config=load_config(world.config_path))


def _feed(world: TinyWorld, night: str) -> None:
    """As ``TinyWorld.feed``, into the bucket."""
    from tests.helpers.landing import feed_from_folder
    from tests.helpers.tiny_nights import KEY

    local = make_tiny_world(world.root / f"producer-{night}")
    local.feed(night)
    images = sorted((local.root / "produced" / night).iterdir())
    paths = world.config.paths
    feed_from_folder(images, paths.landing, KEY, f"lot-{night}", night, s3_endpoint_url=paths.s3_endpoint_url)


def _run(world: TinyWorld, night: str) -> str:
    from dags.nightly_retrain import nightly_retrain

    dag_run: DagRun = nightly_retrain(world.config, world.config.models[0]).test(run_conf={"partition": night})
    return str(dag_run.state)


@pytest.mark.chaos(
    "credentials in the environment of a night that goes well and of one that fails",
    outcome="in no log, XCom, record, report, package, database, repository or bucket",
)
def test_no_credential_is_written_anywhere(
    airflow_database: None,
    tmp_path: Path,
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("DEBUG", logger="components")
    world = _on_s3(tmp_path / "world", server)
    monkeypatch.setenv("STLM_CONFIG", str(world.config_path))
    _feed(world, NIGHTS[0])
    _feed(world, NIGHTS[1])

    assert _run(world, NIGHTS[0]) == "success"
    with monkeypatch.context() as patch:
        # The server says why it refuses, and libraries like to say what they sent.
        wrong = SECRETS["MLFLOW_TRACKING_TOKEN"].upper()
        patch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
        assert _run(world, NIGHTS[1]) == "failed"
    assert read_night(world.run(NIGHTS[0]))["promote"].outcome == "SUCCEEDED"

    output = capfd.readouterr()
    secrets = [*SECRETS.values(), server.secret_key, wrong]
    texts = {"standard output": output.out, "standard error": output.err, "log": caplog.text}
    contents = {name: text.encode() for name, text in texts.items()}
    # Inputs, outputs, records, pages and packages; MLflow's database and artifacts; the data repository's git and DVC;
    # and Airflow's home, with the database that holds every XCom, and its logs.
    for folder in (world.root, Path(os.environ["AIRFLOW_HOME"])):
        contents |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    bucket = open_storage(f"s3://{server.ready_bucket}", endpoint_url=server.endpoint_url)
    contents |= {file.name: bucket.read(file.name) for file in bucket.files()}
    assert len(contents) > 100
    found = [(name, secret) for name, content in contents.items() for secret in secrets if secret.encode() in content]
    assert found == []
    assert socket.gethostname().encode() in b"".join(contents.values())  # the scan finds what is there
