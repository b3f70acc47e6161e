"""Services of ``stlm up-services``: PostgreSQL, S3, MLflow's server and all of Airflow, without root or containers.

Everything lies in one folder, ``<state>/services``: the servers' data, the passwords that were drawn for them, the
work folder and the data repository. A second start finds it all again, at the same ports: addresses are part of what
the steps remember their work by.
"""

import json
import secrets
import shlex
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import tomlkit

from components.config import PipelineConfig, load_config
from components.core.atomic_files import write_file, write_json
from components.core.contracts import Contract, from_json, to_json
from components.core.errors import InputError, TransientError
from components.local_stack.airflow import start_airflow
from components.local_stack.airflow_env import airflow_environment, airflow_variables
from components.local_stack.postgres import PostgresCluster
from components.local_stack.processes import ProcessGroup, interruptible, port_is_free
from components.local_stack.s3_server import S3Service, free_ports
from components.local_stack.web_interfaces import mlflow_command, print_airflow, wait_until_interrupted
from components.local_stack.workspace import Workspace

__all__ = ["Services", "configuration_on_services", "open_services", "up_services"]

_BUCKET = "stlm"
_START_S = 120.0
_WEB_PORTS = {"airflow": 8080, "mlflow": 5000}
_PORTS = ("airflow", "mlflow", "postgres", "s3_master", "s3_volume", "s3_filer", "s3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Services(Contract):
    """What is drawn at the first start and kept: where the servers listen, and their passwords."""

    ports: dict[str, int]
    postgres_password: str
    s3_access_key: str
    s3_secret_key: str

    def __post_init__(self) -> None:
        if set(self.ports) != set(_PORTS):
            raise ValueError(f"ports must be those of {', '.join(_PORTS)}, got {', '.join(self.ports)}")

    @property
    def mlflow_url(self) -> str:
        """MLflow's server."""
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    def postgres(self, folder: Path) -> PostgresCluster:
        """The database server with its data in ``folder``."""
        return PostgresCluster(folder=folder, port=self.ports["postgres"], password=self.postgres_password)

    def s3(self, folder: Path) -> S3Service:
        """The S3 server with its data in ``folder``."""
        ports = self.ports
        return S3Service(
            folder=folder,
            ports=(ports["s3_master"], ports["s3_volume"], ports["s3_filer"], ports["s3"]),
            access_key=self.s3_access_key,
            secret_key=self.s3_secret_key,
        )


def up_services(workspace: Workspace, *, airflow_port: int, mlflow_port: int) -> int:
    """Start every server and the whole of Airflow; return after Ctrl-C or ``stlm down``.

    Args:
        workspace: Configuration and state. The configuration says which models, when and how; where things are kept is
            replaced by the servers started here.
        airflow_port: Port of Airflow's web interface; 0: as before, else 8080 or, where that is taken, a free one.
        mlflow_port: The same of MLflow's, with 5000.

    Returns:
        0.

    Raises:
        InputError: A port is taken, something is not installed, or programs of this state folder run already.
        TransientError: A server did not come up, or ended.
    """
    home = workspace.state / "services"
    logs = home / "logs"
    with interruptible(), ProcessGroup(workspace.state) as programs:
        services = open_services(home, airflow=airflow_port, mlflow=mlflow_port)
        print(f"Starting; data in {home}, logs in {logs} and {home / 'airflow' / 'logs'}", flush=True)
        ours = _workspace_on_services(workspace, services, home)
        postgres, s3 = services.postgres(home / "postgres"), services.s3(home / "s3")
        postgres.prepare()
        s3.prepare()
        shared = s3.environment() | {"MLFLOW_TRACKING_URI": services.mlflow_url}
        database = postgres.url("airflow")
        variables = shared | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database}
        base = airflow_environment(ours.airflow_home, ours.config_path)
        programs.start(
            "PostgreSQL", postgres.command, base, logs / "postgres.log", folder=postgres.folder, user=postgres.account
        )
        # It would take 16 s to say goodbye to its own parts; what it has answered for is written.
        programs.start("S3 server", s3.command, base, logs / "s3.log", folder=s3.folder, grace_s=2.0)
        _ready("PostgreSQL", postgres.answers, programs, postgres.url("", password=False), logs / "postgres.log")
        for name in ("airflow", "mlflow"):
            postgres.ensure_database(name)
        programs.start(
            "MLflow's server",
            mlflow_command(services.ports["mlflow"], ours.config.mlflow.artifact_root),
            base | shared | {"MLFLOW_BACKEND_STORE_URI": postgres.url("mlflow")},
            logs / "mlflow.log",
        )
        _ready(
            "S3 server", lambda: s3.stores(_BUCKET), programs, f"{s3.endpoint_url}, bucket {_BUCKET}", logs / "s3.log"
        )
        airflow = start_airflow(
            programs,
            ours.airflow_home,
            ours.config_path,
            api_port=services.ports["airflow"],
            scheduled=True,
            with_triggerer=True,
            people=ours.approvers,
            services=variables,
        )
        _ready(
            "MLflow's server", lambda: _answers(services.mlflow_url), programs, services.mlflow_url, logs / "mlflow.log"
        )
        for model in ours.config.models:
            airflow.wait_for_dag(f"nightly_retrain.{model.key.slug}")
        _write_environment(home / "env", ours, services, variables)
        print_airflow(airflow, ours)
        print(f"MLflow   {services.mlflow_url}")
        print(f"S3       {s3.endpoint_url}   landing zone {ours.config.paths.landing}, credentials in {home / 'env'}")
        print(f"A shell of yours gets to all of it by `. {home / 'env'}`; the DAGs are paused until you unpause them.")
        print("Ctrl-C, or `stlm down` elsewhere, ends everything.", flush=True)
        wait_until_interrupted(programs)
    return 0


def open_services(home: Path, *, airflow: int = 0, mlflow: int = 0) -> Services:
    """Ports and passwords of the first start; drawn now where this is it.

    Args:
        home: Folder of the services.
        airflow: Airflow's port from now on; 0 for no wish.
        mlflow: MLflow's port from now on; 0 for no wish.

    Returns:
        Them, with every port free.

    Raises:
        InputError: A port is taken, or what was kept cannot be read.
    """
    record, wishes = home / "services.json", {"airflow": airflow, "mlflow": mlflow}
    wishes = {name: port for name, port in wishes.items() if port}
    try:
        known = from_json(Services, json.loads(record.read_text(encoding="utf-8")), where="services.json")
    except FileNotFoundError:
        services = Services(
            ports=_draw_ports(wishes),
            postgres_password=secrets.token_hex(24),
            s3_access_key=secrets.token_hex(8),
            s3_secret_key=secrets.token_hex(24),
        )
    except ValueError as error:
        raise InputError(f"{record} cannot be read ({error}); bring it back from a backup") from error
    else:
        services = replace(known, ports=known.ports | wishes)
    for name, port in services.ports.items():
        if not port_is_free(port):
            option = {"airflow": "--port", "mlflow": "--mlflow-port"}.get(name)
            remedy = f"choose another with {option}" if option else f"end who listens there, or change it in {record}"
            raise InputError(f"port {port} of {name} is taken: {remedy}")
    write_json(record, to_json(services))
    return services


def _draw_ports(wishes: Mapping[str, int]) -> dict[str, int]:
    usual = {name: port for name, port in _WEB_PORTS.items() if port_is_free(port)}
    return dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True)) | usual | dict(wishes)


def configuration_on_services(config: PipelineConfig, services: Services, home: Path) -> PipelineConfig:
    """The configuration with everything that is kept on the servers, or below ``home``.

    Args:
        config: Whose models, schedule and settings stay.
        services: Where the servers are.
        home: Folder of the services.

    Returns:
        The configuration.
    """
    endpoint = services.s3(home / "s3").endpoint_url
    return replace(
        config,
        paths=replace(
            config.paths,
            work_dir=str(home / "work"),
            landing=f"s3://{_BUCKET}/landing",
            data_repo=str(home / "data-repo"),
            dvc_remote=f"s3://{_BUCKET}/dvc",
            s3_endpoint_url=endpoint,
        ),
        mlflow=replace(config.mlflow, tracking_uri=services.mlflow_url, artifact_root=f"s3://{_BUCKET}/mlflow"),
        promote=replace(config.promote, ledger=f"s3://{_BUCKET}/ledger", ledger_endpoint_url=endpoint),
    )


def _workspace_on_services(workspace: Workspace, services: Services, home: Path) -> Workspace:
    """The same models on the servers, with the configuration written down for every other process."""
    path = home / "pipeline.toml"
    config = configuration_on_services(workspace.config, services, home)
    header = f"# Written by `stlm up-services` from {workspace.config_path}: change that one, and start again.\n\n"
    write_file(path, (header + tomlkit.dumps(to_json(config))).encode(), public=False)
    return replace(workspace, config_path=path, config=load_config(path), state=home)


def _write_environment(path: Path, ours: Workspace, services: Services, variables: Mapping[str, str]) -> None:
    """What a shell needs to reach all of it, for ``stlm``, ``airflow``, ``aws`` and programs of one's own."""
    own = airflow_variables(
        ours.airflow_home,
        ours.config_path,
        api_port=services.ports["airflow"],
        scheduled=True,
        people=ours.approvers,
        services=variables,
    )
    lines = (f"export {name}={shlex.quote(value)}\n" for name, value in sorted(own.items()))
    write_file(path, "".join(lines).encode(), public=False)


def _ready(name: str, ready: Callable[[], bool], programs: ProcessGroup, where: str, log: Path) -> None:
    started = time.monotonic()
    while not ready():
        programs.check()
        if time.monotonic() - started > _START_S:
            raise TransientError(f"{name} did not come up within {_START_S:.0f} s at {where}; its log is {log}")
        time.sleep(0.2)
    print(f"  {name} is up at {where}", flush=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
