"""Web interfaces of Airflow and MLflow on loopback, until Ctrl-C."""

import sys
import time
from pathlib import Path

from components.core.errors import InputError
from components.local_stack.airflow import LocalAirflow, password, start_airflow
from components.local_stack.airflow_env import airflow_environment
from components.local_stack.processes import ProcessGroup, interruptible, port_is_free, stop_running
from components.local_stack.workspace import Workspace

__all__ = ["down", "mlflow_command", "print_airflow", "up", "wait_until_interrupted"]


def up(workspace: Workspace, *, airflow_port: int, mlflow_port: int) -> int:
    """Start Airflow with its scheduler, and MLflow's server where the configuration names a database.

    Args:
        workspace: Configuration and state.
        airflow_port: Port of Airflow's web interface.
        mlflow_port: Port of MLflow's.

    Returns:
        0, after Ctrl-C or ``stlm down``.

    Raises:
        InputError: A port is taken, or Airflow of this state folder is running already.
        TransientError: A server did not come up, or ended.
    """
    tracking = workspace.config.mlflow.tracking_uri
    own_mlflow = not tracking.startswith("http")
    for port, name in ((airflow_port, "--port"), (mlflow_port, "--mlflow-port")):
        if not port_is_free(port) and (own_mlflow or name == "--port"):
            raise InputError(f"port {port} is taken; choose another with {name}")
    home = workspace.airflow_home
    with interruptible(), ProcessGroup(workspace.state) as programs:
        print(f"Starting; logs in {home / 'logs'}", flush=True)
        if own_mlflow:
            _start_mlflow(workspace, programs, mlflow_port)
        airflow = start_airflow(
            programs,
            home,
            workspace.config_path,
            api_port=airflow_port,
            scheduled=True,
            with_triggerer=True,
            people=workspace.approvers,
        )
        print_airflow(airflow, workspace)
        print(f"MLflow   {f'http://127.0.0.1:{mlflow_port}' if own_mlflow else tracking}")
        print("Ctrl-C, or `stlm down` elsewhere, ends both.", flush=True)
        wait_until_interrupted(programs)
    return 0


def print_airflow(airflow: LocalAirflow, workspace: Workspace) -> None:
    """Where it is, and everybody's password."""
    print(f"Airflow  {airflow.url}   user admin, password {password(airflow.home)}")
    for name in workspace.approvers:
        print(f"         {airflow.url}   approver {name}, password {password(airflow.home, name)}")


def wait_until_interrupted(programs: ProcessGroup) -> None:
    """Return at Ctrl-C or ``stlm down``; raise ``TransientError`` when a program ends by itself."""
    try:
        while True:
            programs.check()
            time.sleep(1)
    except KeyboardInterrupt:
        print("\nStopping", flush=True)


def _start_mlflow(workspace: Workspace, programs: ProcessGroup, port: int) -> None:
    mlflow = workspace.config.mlflow
    scheme, _, database = mlflow.tracking_uri.partition(":///")
    if scheme == "sqlite":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    env = airflow_environment(workspace.airflow_home, workspace.config_path)
    env["MLFLOW_BACKEND_STORE_URI"] = mlflow.tracking_uri
    command = mlflow_command(port, mlflow.artifact_root)
    programs.start("mlflow server", command, env, workspace.airflow_home / "logs" / "mlflow.log")


def mlflow_command(port: int, artifact_root: str) -> list[str]:
    """MLflow's server; the address of its database, which may hold a password, is not for the command line."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*command, "--default-artifact-root", artifact_root]


def down(workspace: Workspace) -> int:
    """Stop what runs from this state folder; harmless where nothing does."""
    stopped = stop_running(workspace.state)
    print("Stopped." if stopped else "Nothing of this workspace is running.")
    return 0
