"""MLflow run of a night: one per model key and partition, opened by whoever comes first.

Every function may be called again with the same arguments: metrics carry timestamps derived from the night instead of
the clock, so that a repeated value is the same row, and artifacts are overwritten in place.
"""

import datetime as dt
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from components.adapters.mlflow.client import is_error_code, mlflow_client, mlflow_errors
from components.config import MlflowSettings
from components.core.contracts import RunRef

__all__ = [
    "artifact_uri",
    "close_run",
    "delete_artifacts",
    "find_run",
    "list_artifacts",
    "log_artifacts",
    "log_curves",
    "log_metrics",
    "open_run",
    "set_tags",
]

_BATCH = 1000
"""MLflow's own limit of metrics in one request."""


def open_run(mlflow: MlflowSettings, run: RunRef) -> str:
    """The id of the night's MLflow run; created, with its experiment, by the first caller.

    The experiment is named like the registered model and keeps its artifacts below ``mlflow.artifact_root``.

    Args:
        mlflow: Where the tracking server is.
        run: The night.

    Returns:
        MLflow's run id, the same for every caller of the same night.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    client = mlflow_client(mlflow.tracking_uri)
    lock = Path(run.work_dir) / "locks" / f"mlflow-{run.key.slug}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    # MLflow has no unique tags: two steps that open the same night at once would make two runs.
    with mlflow_errors(mlflow.tracking_uri), FileLock(lock):
        experiment = _experiment(client, _experiment_name(run), mlflow.artifact_root)
        known = _search(client, experiment, run)
        if known is not None:
            return known
        created = client.create_run(
            experiment.experiment_id,
            run_name=f"{run.partition} {run.backfill}".rstrip(),
            tags=_tags(run),
        )
        return str(created.info.run_id)


def find_run(mlflow: MlflowSettings, run: RunRef) -> str | None:
    """The id of the night's MLflow run, if it has one; raises ``TransientError`` if MLflow cannot be reached."""
    client = mlflow_client(mlflow.tracking_uri)
    with mlflow_errors(mlflow.tracking_uri):
        experiment = client.get_experiment_by_name(_experiment_name(run))
        return None if experiment is None else _search(client, experiment, run)


def _experiment_name(run: RunRef) -> str:
    # Replayed nights have an experiment of their own, or they would be found as the nights themselves.
    return f"{run.key.registered_model}.backfill" if run.backfill else run.key.registered_model


def _tags(run: RunRef) -> dict[str, str]:
    tags = {"stlm.key": run.key.slug, "stlm.partition": run.partition}
    return tags | ({"stlm.backfill": run.backfill} if run.backfill else {})


def _search(client: MlflowClient, experiment: Experiment, run: RunRef) -> str | None:
    known = client.search_runs(
        [experiment.experiment_id],
        " and ".join(f"tags.`{name}` = '{value}'" for name, value in _tags(run).items()),
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return str(known[0].info.run_id) if known else None


def _experiment(client: MlflowClient, name: str, artifact_root: str) -> Experiment:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            client.create_experiment(name, artifact_location=f"{artifact_root.rstrip('/')}/{name}")
        except MlflowException as error:
            if not is_error_code(error, RESOURCE_ALREADY_EXISTS):
                raise
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise RuntimeError(f"MLflow lost the experiment {name!r} right after creating it")
    return experiment


def _timestamp_ms(client: MlflowClient, run_id: str) -> int:
    """Midnight UTC of the night: the same for every attempt, which makes a repeated metric the same row."""
    partition = client.get_run(run_id).data.tags["stlm.partition"]
    return int(dt.datetime.fromisoformat(partition).replace(tzinfo=dt.UTC).timestamp() * 1000)


def _log(mlflow: MlflowSettings, run_id: str, values: Iterable[tuple[str, float, int]]) -> None:
    client = mlflow_client(mlflow.tracking_uri)
    with mlflow_errors(mlflow.tracking_uri):
        midnight_ms = _timestamp_ms(client, run_id)
        metrics = (Metric(name, float(value), midnight_ms + step, step) for name, value, step in values)
        while batch := list(itertools.islice(metrics, _BATCH)):
            client.log_batch(run_id, metrics=batch)


def log_metrics(mlflow: MlflowSettings, run_id: str, metrics: Mapping[str, float | None], *, step: int = 0) -> None:
    """Log figures in one request; ``None`` (undefined) is left out.

    Args:
        mlflow: Where the tracking server is.
        run_id: From :func:`open_run`.
        metrics: Name -> value; names may hold letters, digits, ``_-./ `` only.
        step: MLflow's x axis.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    _log(mlflow, run_id, ((name, value, step) for name, value in metrics.items() if value is not None))


def log_curves(mlflow: MlflowSettings, run_id: str, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Log training curves as ``<stage>/<name>`` in as few requests as possible.

    Args:
        mlflow: Where the tracking server is.
        run_id: From :func:`open_run`.
        curves: Stage -> rows with an integer ``step`` and any number of values, as in ``CandidateRef.curves_path``.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    _log(
        mlflow,
        run_id,
        (
            (f"{stage}/{name}", value, int(row["step"]))
            for stage, rows in curves.items()
            for row in rows
            for name, value in row.items()
            if name != "step"
        ),
    )


def set_tags(mlflow: MlflowSettings, run_id: str, tags: Mapping[str, str]) -> None:
    """Set or overwrite tags of the run in one request.

    Args:
        mlflow: Where the tracking server is.
        run_id: From :func:`open_run`.
        tags: Name -> value.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    client = mlflow_client(mlflow.tracking_uri)
    with mlflow_errors(mlflow.tracking_uri):
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def log_artifacts(mlflow: MlflowSettings, run_id: str, path: Path, artifact_path: str = "") -> str:
    """Store a file, or the contents of a folder, with the run; an earlier copy is overwritten.

    Args:
        mlflow: Where the tracking server is.
        run_id: From :func:`open_run`.
        path: File or folder.
        artifact_path: Folder within the run's artifacts; empty for their root.

    Returns:
        The URI of the stored file or of ``artifact_path``.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    client = mlflow_client(mlflow.tracking_uri)
    with mlflow_errors(mlflow.tracking_uri):
        if path.is_dir():
            client.log_artifacts(run_id, str(path), artifact_path or None)
            return artifact_uri(mlflow, run_id, artifact_path)
        client.log_artifact(run_id, str(path), artifact_path or None)
        return artifact_uri(mlflow, run_id, f"{artifact_path}/{path.name}".lstrip("/"))


def artifact_uri(mlflow: MlflowSettings, run_id: str, artifact_path: str = "") -> str:
    """Where the run keeps an artifact.

    Args:
        mlflow: Where the tracking server is.
        run_id: From :func:`open_run`.
        artifact_path: File or folder within the run's artifacts; empty for their root.

    Returns:
        Its URI.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    client = mlflow_client(mlflow.tracking_uri)
    with mlflow_errors(mlflow.tracking_uri):
        root = str(client.get_run(run_id).info.artifact_uri).rstrip("/")
    return f"{root}/{artifact_path}".rstrip("/")


def list_artifacts(mlflow: MlflowSettings, run_id: str, top: str, *, depth: int) -> dict[str, int]:
    """Artifacts of a run below a folder.

    Args:
        mlflow: Where the tracking server is.
        run_id: From :func:`open_run`.
        top: The folder within the run's artifacts.
        depth: 1: the folder itself; 2: what lies in it.

    Returns:
        Path -> bytes of all that is in it; empty where there is no such folder.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    client = mlflow_client(mlflow.tracking_uri)
    sizes: dict[str, int] = {}
    with mlflow_errors(mlflow.tracking_uri):
        folders = [top]
        while folders:
            for file in client.list_artifacts(run_id, folders.pop()):
                if file.is_dir:
                    folders.append(file.path)
                    continue
                place = "/".join(file.path.split("/")[:depth])
                sizes[place] = sizes.get(place, 0) + int(file.file_size or 0)
    return sizes


def delete_artifacts(mlflow: MlflowSettings, run_id: str, paths: Sequence[str]) -> None:
    """Delete artifacts of a run; those that are gone already are no error.

    Args:
        mlflow: Where the tracking server is.
        run_id: From :func:`open_run`.
        paths: Files or folders within the run's artifacts.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    client = mlflow_client(mlflow.tracking_uri)
    with mlflow_errors(mlflow.tracking_uri):
        where = str(client.get_run(run_id).info.artifact_uri)
        repository: Any = get_artifact_repository(where, mlflow.tracking_uri)  # its methods have no types
        for path in paths:
            repository.delete_artifacts(path)


def close_run(mlflow: MlflowSettings, run_id: str, *, failed: bool = False) -> None:
    """Mark the run finished or failed; a later step of the same night may still log to it.

    Args:
        mlflow: Where the tracking server is.
        run_id: From :func:`open_run`.
        failed: How the night ended.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    client = mlflow_client(mlflow.tracking_uri)
    with mlflow_errors(mlflow.tracking_uri):
        client.set_terminated(run_id, status="FAILED" if failed else "FINISHED")
