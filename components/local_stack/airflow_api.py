"""Client of Airflow's REST API: the little of it that the command line needs."""

import json
import urllib.error
import urllib.request
from typing import Any

from components.core.errors import InputError, TransientError

__all__ = ["AirflowApi", "is_healthy"]

_TIMEOUT_S = 30.0


def is_healthy(url: str, parts: tuple[str, ...]) -> bool:
    """Whether the API server at ``url`` answers and says that ``parts`` (such as ``"scheduler"``) are alive."""
    try:
        with urllib.request.urlopen(f"{url}/api/v2/monitor/health", timeout=5) as answer:
            health = json.load(answer)
    except (OSError, ValueError):
        return False
    return all((health.get(part) or {}).get("status") == "healthy" for part in ("metadatabase", *parts))


class AirflowApi:
    """A session with one API server."""

    def __init__(self, url: str, *, user: str, password: str) -> None:
        self._url = url
        self._token = ""
        answer = self._call("POST", "/auth/token", {"username": user, "password": password})
        self._token = str(answer["access_token"])

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Create the pool, or give it these slots."""
        body = {
            "name": name,
            "slots": slots,
            "description": description,
            "include_deferred": False,
        }
        known = {pool["name"] for pool in self._call("GET", "/api/v2/pools?limit=100")["pools"]}
        if name in known:
            self._call("PATCH", f"/api/v2/pools/{name}", body | {"pool": body.pop("name")})
        else:
            self._call("POST", "/api/v2/pools", body)

    def import_errors(self) -> list[str]:
        """Why DAG files could not be read, if any."""
        return [str(error["stack_trace"]) for error in self._call("GET", "/api/v2/importErrors")["import_errors"]]

    def has_dag(self, dag_id: str) -> bool:
        """Whether the DAG has been read; a list of all would come in pages."""
        try:
            self._call("GET", f"/api/v2/dags/{dag_id}")
        except _NotFoundError:
            return False
        return True

    def pause(self, dag_id: str, paused: bool) -> None:
        """Press the DAG's pause button."""
        self._call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": paused})

    def run(self, dag_id: str, run_id: str) -> dict[str, Any] | None:
        """The run, or None if there is none of that id."""
        try:
            return self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")
        except _NotFoundError:
            return None

    def trigger(self, dag_id: str, run_id: str, partition: str) -> None:
        """Ask for the night ``partition`` under ``run_id``."""
        body = {"dag_run_id": run_id, "logical_date": None, "partition_key": partition}
        self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)

    def clear(self, dag_id: str, run_id: str, *, only_failed: bool) -> None:
        """Run the failed steps of a run, or all of them, again, and what follows them."""
        body = {"dry_run": False, "only_failed": only_failed}
        self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/clear", body)

    def clear_running(self, dag_id: str, run_id: str) -> None:
        """Run the steps again that the database believes to be at work."""
        body = {"dry_run": False, "dag_run_id": run_id, "only_running": True, "only_failed": False}
        self._call("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", body)

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances."""
        return list(self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"])

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # always our own loopback server
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Bearer {self._token}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                result: dict[str, Any] = json.load(answer)
                return result
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            if error.code == 404:
                raise _NotFoundError(detail) from error
            kind = InputError if error.code < 500 else TransientError
            raise kind(f"Airflow answered {error.code} to {method} {path}: {detail}") from error
        except OSError as error:
            raise TransientError(f"Airflow at {self._url} does not answer: {error}") from error


class _NotFoundError(InputError):
    """The server knows no such thing."""
