"""Packages of registered versions, downloaded once and never believed unverified."""

import logging
import shutil
import tempfile
from pathlib import Path

import mlflow.artifacts
from filelock import FileLock

from components.core.errors import InputError
from stlm.errors import WeightsError
from stlm.serving.package import verify_package

__all__ = ["fetch_package"]

logger = logging.getLogger(__name__)


def fetch_package(uri: str, *, digest: str, folder: Path, tracking_uri: str) -> None:
    """Have the package at ``uri`` in ``folder``: whole, verified, and by one download for all processes.

    Args:
        uri: Where MLflow keeps it.
        digest: The package's digest, as registered.
        folder: Its place in the cache; a copy there that is not this package is replaced.
        tracking_uri: MLflow server that resolves ``uri``.

    Raises:
        InputError: What MLflow keeps is not what was registered; the message names the file.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if _is_there(folder, digest):
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
            downloaded = Path(
                mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=temporary, tracking_uri=tracking_uri)
            )
            try:
                got = verify_package(downloaded)
            except WeightsError as error:
                raise InputError(f"{uri} is not what was registered: {error}") from error
            if got != digest:
                raise InputError(f"{uri} is not what was registered: its digest is {got}, expected {digest}")
            shutil.rmtree(folder, ignore_errors=True)
            downloaded.rename(folder)


def _is_there(folder: Path, digest: str) -> bool:
    if not folder.exists():
        return False
    try:
        if verify_package(folder) == digest:
            return True
        logger.warning("%s holds another package than the registry, downloading again", folder)
    except WeightsError as error:
        logger.warning("%s, downloading again", error)
    return False
