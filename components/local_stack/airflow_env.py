"""Environment of Airflow on one machine: one place for every setting.

The tests, the command ``stlm`` and ``make`` all start Airflow with it; a cluster sets the same names in its own way.
Only the standard library is imported here.
"""

import contextlib
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from components.core.telemetry import TELEMETRY_OFF

__all__ = ["airflow_environment", "airflow_variables", "repository_root"]

_PRELOADED = (
    "airflow.executors.local_executor",
    "torch",
    "torchvision",
    "timm",
    "pandas",
    "great_expectations",
    "mlflow.pyfunc",
    "dvc.repo",
    "onnxruntime",
    "matplotlib",
)


def repository_root() -> Path:
    """The folder that holds ``dags/``, ``components/`` and ``infra/``."""
    return Path(__file__).resolve().parents[2]


def airflow_environment(
    home: Path,
    config: Path,
    *,
    api_port: int = 8080,
    scheduled: bool = True,
    people: Iterable[str] = (),
    services: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Environment of every Airflow process: the caller's own, and :func:`airflow_variables` on top of it.

    Args:
        home: Airflow's folder: its database, logs, passwords and secrets; made if missing.
        config: The pipeline's configuration file.
        api_port: Loopback port of the API server, which also serves the tasks.
        scheduled: False to start no night by the clock, only those that are asked for.
        people: Who has an account beside ``admin``, to answer questions; the passwords are generated.
        services: Variables that say where other servers are and how to log in, such as the address of a PostgreSQL
            database in ``AIRFLOW__DATABASE__SQL_ALCHEMY_CONN``; they win.

    Returns:
        The variables by name, the caller's included.
    """
    own = airflow_variables(home, config, api_port=api_port, scheduled=scheduled, people=people, services=services)
    return dict(os.environ) | own


def airflow_variables(
    home: Path,
    config: Path,
    *,
    api_port: int,
    scheduled: bool,
    people: Iterable[str],
    services: Mapping[str, str] | None,
) -> dict[str, str]:
    """What :func:`airflow_environment` adds to the caller's own variables; the arguments are the same.

    Args:
        home: Airflow's folder; made if missing.
        config: The pipeline's configuration file.
        api_port: Loopback port of the API server.
        scheduled: False to start no night by the clock.
        people: Who has an account beside ``admin``.
        services: Variables that win.

    Returns:
        The variables by name.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    root = repository_root()
    api = f"http://127.0.0.1:{api_port}"
    settings = {
        "CORE__DAGS_FOLDER": root / "dags",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__PLUGINS_FOLDER": home / "plugins",
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 4,
        "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(["admin:admin", *(f"{n}:op" for n in people if n != "admin")]),
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": home / "passwords.json",
        "CORE__EXECUTION_API_SERVER_URL": f"{api}/execution/",
        # A name server that does not answer must not delay every task.
        "CORE__HOSTNAME_CALLABLE": "socket.gethostname",
        "CORE__FERNET_KEY": "",
        "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": 5,
        # Tasks are forked from a server that holds the heavy libraries: importing them costs 30 s a night otherwise.
        "SCHEDULER__MP_START_METHOD": "forkserver",
        "CORE__MP_FORKSERVER_PRELOAD": ",".join(_PRELOADED),
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "API__HOST": "127.0.0.1",
        "API__PORT": api_port,
        "API__BASE_URL": api,
        "API__WORKERS": 1,
        "API__SECRET_KEY": _secret(home / "api_secret"),
        "API_AUTH__JWT_SECRET": _secret(home / "jwt_secret"),
        "SCHEDULER__USE_JOB_SCHEDULE": scheduled,
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.25,
        "SCHEDULER__JOB_HEARTBEAT_SEC": 2,
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 60,
        # What a killed scheduler left behind is taken up by the next one within a minute.
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 60,
        "DAG_PROCESSOR__PARSING_PROCESSES": 1,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 60,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 60,
        "LOGGING__BASE_LOG_FOLDER": home / "logs",
        # Great Expectations logs 250 lines about itself when it is imported.
        "LOGGING__NAMESPACE_LEVELS": "great_expectations=WARNING alembic=WARNING",
        "LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": home / "logs" / "dag_processor",
    }
    variables = {f"AIRFLOW__{name}": str(value) for name, value in settings.items()}
    variables |= {
        "AIRFLOW_HOME": str(home),
        "STLM_CONFIG": str(config.resolve()),
        # Safetensors and JSON only: a pickle in the registry is refused.
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_TERMINAL_PROMPT": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1),
    }
    return TELEMETRY_OFF | variables | dict(services or {})


def _secret(path: Path) -> str:
    """A random secret kept in ``path`` for this machine, readable by its owner alone; the first writer wins."""
    if not path.exists():
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with os.fdopen(
            os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            "w",
            encoding="utf-8",
        ) as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
        partial.unlink()
    return path.read_text(encoding="utf-8")
