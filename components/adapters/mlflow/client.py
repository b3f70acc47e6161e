"""MLflow client of tracking and registry: it fails fast, and tells bad input from bad luck."""

import contextlib
import socket
import urllib.parse
from collections.abc import Iterator

import requests
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import databricks_pb2 as codes

from components.core.errors import TransientError

__all__ = ["is_error_code", "mlflow_client", "mlflow_errors"]

_CONNECT_TIMEOUT_S = 5.0
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
_RETRYABLE = {
    codes.ErrorCode.Name(code)
    for code in (codes.INTERNAL_ERROR, codes.TEMPORARILY_UNAVAILABLE, codes.REQUEST_LIMIT_EXCEEDED)
}


def _without_password(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    if parts.password is None:
        return uri
    return uri.replace(f":{parts.password}@", ":***@")


def _probe(uri: str) -> None:
    """MLflow itself retries an unreachable server for minutes; a refused connection shows at once."""
    parts = urllib.parse.urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if not parts.hostname or scheme == "sqlite":
        return
    port = parts.port or _DEFAULT_PORTS.get(scheme)
    if port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise TransientError(f"MLflow at {_without_password(uri)} cannot be reached: {error}") from error


@contextlib.contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn "MLflow is not there right now" into ``TransientError`` naming ``uri``; let refusals pass.

    Args:
        uri: For the message; a password in it is left out.

    Yields:
        Nothing.

    Raises:
        TransientError: No connection, a locked database, or an internal error of the server.
    """
    try:
        yield
    except (requests.ConnectionError, requests.Timeout, sqlalchemy.exc.OperationalError) as error:
        raise TransientError(f"MLflow at {_without_password(uri)} cannot be reached: {error}") from error
    except RestException as error:
        if error.error_code in _RETRYABLE:
            raise TransientError(f"MLflow at {_without_password(uri)} failed: {error}") from error
        raise
    except MlflowException as error:
        if error.error_code in _RETRYABLE:
            raise TransientError(f"MLflow at {_without_password(uri)} failed: {error}") from error
        raise


def mlflow_client(uri: str) -> MlflowClient:
    """A client for tracking and registry at ``uri``, without touching MLflow's process-wide settings.

    Args:
        uri: MLflow's tracking server or database.

    Returns:
        The client.

    Raises:
        TransientError: The server does not answer.
    """
    _probe(uri)
    with mlflow_errors(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def is_error_code(error: MlflowException, code: int) -> bool:
    """Whether MLflow refused with this code of ``mlflow.protos.databricks_pb2``."""
    return bool(error.error_code == codes.ErrorCode.Name(code))
