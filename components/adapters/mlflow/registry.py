"""Model registry: versions that are complete before they are visible.

A version's identity is the tag pair ``stlm.candidate_key`` and ``stlm.package_digest``: registering it again finds it.
The tags are written in the same transaction as the version, after its files, so a crash leaves either nothing that
anyone can see or the whole version. Aliases are moved by ``components/promotion`` alone.
"""

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow.artifacts
from filelock import FileLock, Timeout
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from components.adapters.mlflow.aliases import FENCE_TAG, LAST_CHAMPION_TAG, RegisteredModelAliases
from components.adapters.mlflow.client import is_error_code, mlflow_client, mlflow_errors
from components.adapters.mlflow.package_cache import fetch_package
from components.adapters.mlflow.pyfunc_model import PACKAGE_PATH, save_served_model
from components.config import MlflowSettings
from components.core.contracts import CHAMPION_ALIAS, Fence, ModelKey, ModelRef, PackageRef, RunRef
from components.core.errors import InputError, TransientError

__all__ = ["ModelRegistry", "open_registry"]

logger = logging.getLogger(__name__)

_CANDIDATE_TAG = "stlm.candidate_key"
_DIGEST_TAG = "stlm.package_digest"
_ATTACHMENTS = "promotion"
_LOCK_TIMEOUT_S = 300.0


class ModelRegistry:
    """MLflow's registry for model keys, with a local cache of packages.

    Args:
        tracking_uri: MLflow's tracking server and registry.
        cache_dir: Packages are kept at ``<cache_dir>/<registered model>/<version>``; every worker sees it.

    Raises:
        TransientError: MLflow cannot be reached.
    """

    def __init__(self, tracking_uri: str, cache_dir: Path) -> None:
        self._uri = tracking_uri
        self._cache_dir = Path(cache_dir)
        self._client = mlflow_client(tracking_uri)

    def aliases(self, key: ModelKey) -> RegisteredModelAliases:
        """Aliases and tags of a key's model.

        Args:
            key: Whose model it is.

        Returns:
            The board; nothing is read yet.
        """
        return RegisteredModelAliases(self._client, self._uri, key)

    def champion(self, key: ModelKey, alias: str = CHAMPION_ALIAS) -> ModelRef | None:
        """The version that serves now.

        Args:
            key: Whose model it is.
            alias: The alias that says so.

        Returns:
            The version, its package downloaded and verified; ``None`` if there never was one.

        Raises:
            InputError: The alias is gone although a version had it, or the version's package is not what was
                registered.
            TransientError: MLflow cannot be reached.
        """
        with mlflow_errors(self._uri):
            model = self.aliases(key).read()
            if model is None:
                return None
            number = model.aliases.get(alias)
            if number is None:
                last = model.tags.get(LAST_CHAMPION_TAG)
                if last is not None and alias == CHAMPION_ALIAS:
                    # Deleting a version silently deletes its aliases; taking that for "no champion yet" would let
                    # the next candidate in with floors alone.
                    raise InputError(
                        f"{key.registered_model} has no alias {alias!r} although version {last} carried it; "
                        f"put it right with `stlm rollback` or `stlm ledger reconcile`"
                    )
                return None
        return self.version(key, number)

    def version(self, key: ModelKey, number: int) -> ModelRef:
        """One version of a key's model.

        Args:
            key: Whose model it is.
            number: MLflow's version.

        Returns:
            The version, its package downloaded once and verified against its manifest and the registry's digest.

        Raises:
            InputError: There is no such version, or its package is not what was registered.
            TransientError: MLflow cannot be reached.
        """
        version = self._version(key, number)
        with mlflow_errors(self._uri):
            package_dir = self._fetch(version)
        return ModelRef(
            name=key.registered_model,
            version=number,
            candidate_key=version.tags[_CANDIDATE_TAG],
            package_dir=str(package_dir),
        )

    def _version(self, key: ModelKey, number: int) -> ModelVersion:
        name = key.registered_model
        with mlflow_errors(self._uri):
            try:
                version = self._client.get_model_version(name, str(number))
            except MlflowException as error:
                if is_error_code(error, RESOURCE_DOES_NOT_EXIST):
                    raise InputError(f"{name} has no version {number}") from error
                raise
        missing = [tag for tag in (_CANDIDATE_TAG, _DIGEST_TAG) if tag not in version.tags]
        if missing:
            raise InputError(f"{name} version {number} was not registered by promote: no tag {', '.join(missing)}")
        return version

    def versions_of(self, key: ModelKey, candidate_key: str) -> list[int]:
        """Versions of a candidate, oldest first.

        Args:
            key: Whose model it is.
            candidate_key: The candidate's key, or how it begins.

        Returns:
            Their numbers.

        Raises:
            TransientError: MLflow cannot be reached.
        """
        with mlflow_errors(self._uri):
            found = self._client.search_model_versions(f"name = '{key.registered_model}'")
        versions = (int(v.version) for v in found if str(v.tags.get(_CANDIDATE_TAG, "")).startswith(candidate_key))
        return sorted(versions)

    def attachment(self, key: ModelKey, number: int, name: str) -> bytes | None:
        """A file that was registered with a version, verified against the sha256 in the version's tags.

        Args:
            key: Whose model it is.
            number: MLflow's version.
            name: The file's name.

        Returns:
            Its content; ``None`` where the version was registered without.

        Raises:
            InputError: There is no such version, or the file is gone or altered.
            TransientError: MLflow cannot be reached.
        """
        version = self._version(key, number)
        expected = version.tags.get(_attachment_tag(name))
        if expected is None:
            return None
        place = f"{_ATTACHMENTS}/{version.tags[_DIGEST_TAG][:16]}/{name}"
        with mlflow_errors(self._uri), tempfile.TemporaryDirectory(prefix="stlm-attached-") as folder:
            try:
                path = mlflow.artifacts.download_artifacts(
                    run_id=version.run_id, artifact_path=place, dst_path=folder, tracking_uri=self._uri
                )
                content = Path(path).read_bytes()
            except (MlflowException, OSError) as error:
                raise InputError(f"{key.registered_model} version {number}: {place} cannot be read: {error}") from error
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != expected:
            raise InputError(
                f"{key.registered_model} version {number}: {place} is altered (sha256 {sha256}, expected {expected})"
            )
        return content

    def attach(self, key: ModelKey, number: int, attachments: Mapping[str, bytes]) -> None:
        """Replace files that were registered with a version.

        Args:
            key: Whose model it is.
            number: MLflow's version.
            attachments: Files by name.

        Raises:
            InputError: There is no such version.
            TransientError: MLflow cannot be reached.
        """
        version = self._version(key, number)
        with mlflow_errors(self._uri):
            sums = self._attach(version.tags[_DIGEST_TAG], str(version.run_id), attachments)
            for tag, sha256 in sums.items():
                self._client.set_model_version_tag(version.name, version.version, tag, sha256)

    def download_model(self, key: ModelKey, number: int, into: Path) -> Path:
        """Fetch a version's whole MLflow model: the package, the code that travels with it, and what it requires.

        Args:
            key: Whose model it is.
            number: MLflow's version.
            into: A folder.

        Returns:
            The model's folder; what is in it is not verified.

        Raises:
            InputError: There is no such version, or its model cannot be read.
            TransientError: MLflow cannot be reached.
        """
        version = self._version(key, number)
        with mlflow_errors(self._uri):
            uri = self._client.get_model_version_download_uri(version.name, version.version).rstrip("/")
            try:
                return Path(
                    mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into), tracking_uri=self._uri)
                )
            except (MlflowException, OSError) as error:
                raise InputError(f"{uri} cannot be read: {error}") from error

    def register(
        self,
        key: ModelKey,
        package: PackageRef,
        *,
        run_id: str,
        tags: Mapping[str, str],
        attachments: Mapping[str, bytes] | None = None,
        fence: Fence | None = None,
        model_dir: Path | None = None,
    ) -> ModelRef:
        """The version of this package; made, and its files uploaded to the run, unless it is there already.

        Args:
            key: Whose model it is.
            package: A sealed package.
            run_id: MLflow run that keeps the files.
            tags: Written with a new version; identity tags are added.
            attachments: Files kept beside a new version's model, by name; their sha256 become tags.
            fence: Of the writer; the registry refuses a lower one than it has seen.
            model_dir: The package as an MLflow model, where it has been made already.

        Returns:
            The version with its package, downloaded again and verified.

        Raises:
            InputError: The registry does not give back what was registered.
            TransientError: MLflow cannot be reached, or another process holds the lock for long.
        """
        with mlflow_errors(self._uri), self._exclusive(key):
            version = self._find(key, package)
            if version is None:
                source = self._upload(package, run_id, model_dir)
                sums = self._attach(package.digest, run_id, attachments or {})
                self.aliases(key).create()
                if fence is not None:
                    self._admit(key, fence)
                version = self._create_version(key, package, source=source, run_id=run_id, tags={**tags, **sums})
                logger.info("registered model=%s version=%s", version.name, version.version)
        return self.version(key, int(version.version))

    @contextlib.contextmanager
    def _exclusive(self, key: ModelKey) -> Iterator[None]:
        """One writer per model key. MLflow has no compare-and-set, so looking and moving need a lock around them."""
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        path = self._cache_dir / f".{key.registered_model}.lock"
        try:
            with FileLock(path, timeout=_LOCK_TIMEOUT_S):
                yield
        except Timeout as error:
            raise TransientError(f"{path} is held by another registration for over {_LOCK_TIMEOUT_S:.0f} s") from error

    def _admit(self, key: ModelKey, fence: Fence) -> None:
        """Refuse a writer that lost the key; remember the number of one that has it."""
        posted = self.aliases(key).read()
        seen = int(posted.tags.get(FENCE_TAG, "0")) if posted is not None else 0
        fence.check_token(seen, f"{key.registered_model} in {self._uri}")
        self.aliases(key).tag(FENCE_TAG, str(fence.number))

    def versions(self, key: ModelKey) -> dict[int, dict[str, str]]:
        """Tags of every version of a key's model, without its files.

        Args:
            key: Whose model it is.

        Returns:
            Version -> tags; empty where nothing is registered.

        Raises:
            TransientError: MLflow cannot be reached.
        """
        with mlflow_errors(self._uri):
            token, found = None, []
            while True:
                page = self._client.search_model_versions(f"name = '{key.registered_model}'", page_token=token)
                found += list(page)
                token = page.token
                if not token:
                    return {int(version.version): dict(version.tags) for version in found}

    def _find(self, key: ModelKey, package: PackageRef) -> ModelVersion | None:
        found = self._client.search_model_versions(
            f"name = '{key.registered_model}' and tags.`{_CANDIDATE_TAG}` = '{package.candidate_key}'"
            f" and tags.`{_DIGEST_TAG}` = '{package.digest}'"
        )
        return min(found, key=lambda version: int(version.version), default=None)

    def _upload(self, package: PackageRef, run_id: str, model_dir: Path | None = None) -> str:
        """Put the package, as an MLflow model, among the run's artifacts; files of a crashed try are overwritten."""
        place = f"model/{package.digest[:16]}"
        with tempfile.TemporaryDirectory(prefix="stlm-model-") as folder:
            model = model_dir or save_served_model(Path(package.package_dir), Path(folder))
            self._client.log_artifacts(run_id, str(model), place)
        return f"{str(self._client.get_run(run_id).info.artifact_uri).rstrip('/')}/{place}"

    def _attach(self, digest: str, run_id: str, attachments: Mapping[str, bytes]) -> dict[str, str]:
        """Put files among the run's artifacts; tag -> sha256."""
        if not attachments:
            return {}
        with tempfile.TemporaryDirectory(prefix="stlm-attached-") as folder:
            for name, content in attachments.items():
                (Path(folder) / name).write_bytes(content)
            self._client.log_artifacts(run_id, folder, f"{_ATTACHMENTS}/{digest[:16]}")
        return {_attachment_tag(name): hashlib.sha256(content).hexdigest() for name, content in attachments.items()}

    def _create_version(
        self, key: ModelKey, package: PackageRef, *, source: str, run_id: str, tags: Mapping[str, str]
    ) -> ModelVersion:
        identity = {_CANDIDATE_TAG: package.candidate_key, _DIGEST_TAG: package.digest}
        return self._client.create_model_version(
            key.registered_model, source, run_id=run_id, tags={**tags, **identity}, await_creation_for=60
        )

    def _fetch(self, version: ModelVersion) -> Path:
        folder = self._cache_dir / str(version.name) / str(version.version)
        uri = self._client.get_model_version_download_uri(version.name, version.version).rstrip("/")
        fetch_package(f"{uri}/{PACKAGE_PATH}", digest=version.tags[_DIGEST_TAG], folder=folder, tracking_uri=self._uri)
        return folder


def _attachment_tag(name: str) -> str:
    return f"stlm.{name.partition('.')[0]}_sha256"


def open_registry(settings: MlflowSettings, run: RunRef) -> ModelRegistry:
    """The registry, with the cache of packages below ``work_dir`` that all steps share.

    Args:
        settings: Where it is.
        run: Any night; all share one cache.

    Returns:
        The registry.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    return ModelRegistry(settings.tracking_uri, Path(run.work_dir) / "models")
