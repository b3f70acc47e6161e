"""What ``stlm up-services`` keeps between two starts; the servers together are in ``tests/e2e/test_services.py``."""

import contextlib
import dataclasses
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
import tomlkit

from components.config import load_config
from components.core.contracts import to_json
from components.core.errors import InputError
from components.local_stack.airflow_env import repository_root
from components.local_stack.postgres import PostgresCluster
from components.local_stack.processes import free_port
from components.local_stack.services import configuration_on_services, open_services


def test_ports_and_passwords_are_drawn_once_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    first = open_services(tmp_path)

    assert open_services(tmp_path) == first
    assert len(set(first.ports.values())) == len(first.ports)
    assert (tmp_path / "services.json").stat().st_mode & 0o077 == 0
    assert open_services(tmp_path, mlflow=(port := free_port())).ports == first.ports | {"mlflow": port}
    assert open_services(tmp_path).ports["mlflow"] == port


@pytest.mark.parametrize(("name", "remedy"), [("mlflow", "choose another with --mlflow-port"), ("s3", "change it in")])
def test_a_port_that_somebody_took_meanwhile_is_named_with_what_to_do(tmp_path: Path, name: str, remedy: str) -> None:
    port = open_services(tmp_path).ports[name]
    with socket.create_server(("127.0.0.1", port)), pytest.raises(InputError, match=f"port {port} of {name}.*{remedy}"):
        open_services(tmp_path)


def test_a_damaged_record_is_named_and_not_drawn_anew(tmp_path: Path) -> None:
    open_services(tmp_path)
    (tmp_path / "services.json").write_text("{}")
    with pytest.raises(InputError, match=r"services\.json cannot be read"):
        open_services(tmp_path)


def test_the_configuration_is_the_same_but_for_where_things_are_kept_and_survives_its_file(tmp_path: Path) -> None:
    config = load_config(repository_root() / "infra" / "quickstart.toml")
    services = open_services(tmp_path)

    ours = configuration_on_services(config, services, tmp_path)

    file = tmp_path / "pipeline.toml"
    file.write_text(tomlkit.dumps(to_json(ours)), encoding="utf-8")
    assert load_config(file) == ours
    same = {field.name for field in dataclasses.fields(config)} - {"paths", "mlflow", "promote"}
    assert all(getattr(ours, name) == getattr(config, name) for name in same)
    places = [*to_json(ours.paths).values(), *to_json(ours.mlflow).values(), ours.promote.ledger]
    assert all(place.startswith(("s3://stlm/", "http://127.0.0.1:", str(tmp_path))) for place in places)


@contextlib.contextmanager
def _running(cluster: PostgresCluster) -> Iterator[None]:
    process = subprocess.Popen(
        cluster.command, cwd=cluster.folder, user=cluster.account, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not cluster.answers():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_postgresql_finds_its_data_again_after_a_kill_and_wants_its_password() -> None:
    # Not below pytest's folders, which root's stand-in may not enter.
    folder = Path(tempfile.mkdtemp(prefix="stlm-postgres-"))
    cluster = PostgresCluster(folder=folder, port=free_port(), password="right")
    try:
        for _ in range(2):
            cluster.prepare()
            with _running(cluster):
                cluster.ensure_database("runs")
                engine = sqlalchemy.create_engine(cluster.url("runs"), poolclass=sqlalchemy.NullPool)
                with engine.begin() as connection:
                    connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS t (n int)"))
                    connection.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))
                    rows = connection.execute(sqlalchemy.text("SELECT count(*) FROM t")).scalar()
                with pytest.raises(InputError, match="does not accept the password beside it"):
                    dataclasses.replace(cluster, password="wrong").answers()
        assert rows == 2
        assert "right" not in cluster.url("runs", password=False)
    finally:
        shutil.rmtree(folder)
