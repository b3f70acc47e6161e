"""The model registry: versions that are complete before they are visible, and an alias that moves once.

A version's identity is the tag pair ``stlm.candidate_key`` and ``stlm.package_digest``: registering it again finds it.
The tags are written in the same transaction as the version, after its files, so a crash leaves either nothing that
anyone can see or the whole version. Only :meth:`ModelRegistry.promote` moves aliases.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST

from components.adapters._mlflow import has_code, mlflow_client, reaching
from components.adapters._package_cache import fetch_package
from components.adapters._served_model import PACKAGE_PATH, save_served_model
from components.config import MlflowSettings
from components.contracts import ModelKey, ModelRef, PackageRef, PromotionRef, RunRef
from components.errors import InputError, TransientError

__all__ = ["FROZEN_TAG", "PREVIOUS_ALIAS", "ModelRegistry", "open_registry"]

logger = logging.getLogger(__name__)

FROZEN_TAG = "stlm.frozen"
"""Tag of a registered model: while it is there, with the reason as its value, no alias moves."""
PREVIOUS_ALIAS = "previous"
_CANDIDATE_TAG = "stlm.candidate_key"
_DIGEST_TAG = "stlm.package_digest"
_PROMOTED_TAG = "stlm.promoted_at_partition"
_LAST_CHAMPION_TAG = "stlm.last_champion"
_Outcome = Literal["PROMOTED", "ALREADY_PROMOTED", "REFUSED", "STALE_DECISION", "FROZEN"]
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

    def champion(self, key: ModelKey, alias: str = "champion") -> ModelRef | None:
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
        with reaching(self._uri):
            model = self._model(key)
            if model is None:
                return None
            number = _aliased(model, alias)
            if number is None:
                last = model.tags.get(_LAST_CHAMPION_TAG)
                if last is not None and alias == "champion":
                    # Deleting a version silently deletes its aliases; taking that for "no champion yet" would let
                    # the next candidate in with floors alone.
                    raise InputError(
                        f"{model.name} has no alias {alias!r} although version {last} carried it; "
                        f"point the alias at a version again"
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
        name = key.registered_model
        with reaching(self._uri):
            try:
                version = self._client.get_model_version(name, str(number))
            except MlflowException as error:
                if has_code(error, RESOURCE_DOES_NOT_EXIST):
                    raise InputError(f"{name} has no version {number}") from error
                raise
            missing = [tag for tag in (_CANDIDATE_TAG, _DIGEST_TAG) if tag not in version.tags]
            if missing:
                raise InputError(f"{name} version {number} was not registered by promote: no tag {', '.join(missing)}")
            package_dir = self._fetch(version)
        return ModelRef(
            name=name, version=number, candidate_key=version.tags[_CANDIDATE_TAG], package_dir=str(package_dir)
        )

    def register(self, key: ModelKey, package: PackageRef, *, run_id: str, tags: Mapping[str, str]) -> ModelRef:
        """The version of this package; made, and its files uploaded to the run, unless it is there already.

        Args:
            key: Whose model it is.
            package: A sealed package.
            run_id: MLflow run that keeps the files.
            tags: Written with a new version; identity tags are added.

        Returns:
            The version with its package, downloaded again and verified.

        Raises:
            InputError: The registry does not give back what was registered.
            TransientError: MLflow cannot be reached, or another process holds the lock for long.
        """
        with reaching(self._uri), self._exclusive(key):
            version = self._find(key, package)
            if version is None:
                source = self._upload(package, run_id)
                self._create_model(key)
                version = self._create_version(key, package, source=source, run_id=run_id, tags=tags)
                logger.info("registered model=%s version=%s", version.name, version.version)
        return self.version(key, int(version.version))

    def promote(
        self, key: ModelKey, *, version: int, expected_champion: int | None, partition: str, alias: str = "champion"
    ) -> PromotionRef:
        """Move ``alias`` to ``version``, once, if the champion is still the one that the verdict was against.

        Args:
            key: Whose model it is.
            version: The judged version.
            expected_champion: Champion that the verdict was computed against.
            partition: Night of the promotion, recorded with the version.
            alias: The alias to move; the version it leaves gets ``previous``.

        Returns:
            What happened: ``PROMOTED``, ``ALREADY_PROMOTED`` (nothing moved), ``STALE_DECISION`` or ``FROZEN``.

        Raises:
            InputError: The version does not exist.
            TransientError: MLflow cannot be reached, another process holds the lock for long, or the alias was
                moved by somebody who does not take the lock.
        """
        with reaching(self._uri), self._exclusive(key):
            model = self._model(key)
            if model is None:
                raise InputError(f"{key.registered_model} is not registered")
            champion = _aliased(model, alias)
            tags = self._client.get_model_version(model.name, str(version)).tags

            def result(outcome: _Outcome, detail: str) -> PromotionRef:
                return self._outcome(key, outcome, version=version, alias=alias, detail=detail)

            if champion == version:
                self._record(key, version, partition=tags.get(_PROMOTED_TAG, partition))
                return result("ALREADY_PROMOTED", f"version {version} is the champion already")
            if _PROMOTED_TAG in tags:
                return result("ALREADY_PROMOTED", f"version {version} was promoted on {tags[_PROMOTED_TAG]}")
            if FROZEN_TAG in model.tags:
                return result("FROZEN", f"promotion is frozen: {model.tags[FROZEN_TAG]}")
            if champion != expected_champion:
                return result(
                    "STALE_DECISION",
                    f"the verdict was against {_spoken(expected_champion)}, the champion is {_spoken(champion)}",
                )
            self._move(key, version, champion=champion, alias=alias)
            self._record(key, version, partition=partition)
            logger.info("promoted model=%s version=%d previous=%s", model.name, version, champion)
            return result("PROMOTED", f"version {version} took over from {_spoken(champion)}")

    def refused(self, key: ModelKey, *, alias: str, detail: str, version: int | None = None) -> PromotionRef:
        """What the registry looks like after a promotion that was not to be.

        Args:
            key: Whose model it is.
            alias: The alias that stays where it is.
            detail: Why, in a sentence.
            version: The candidate's version, where it was registered all the same.

        Returns:
            The outcome ``REFUSED``.

        Raises:
            TransientError: MLflow cannot be reached.
        """
        with reaching(self._uri):
            return self._outcome(key, "REFUSED", version=version, alias=alias, detail=detail)

    def freeze(self, key: ModelKey, reason: str) -> None:
        """Stop promotions of this key until :meth:`unfreeze`.

        Args:
            key: Whose model it is.
            reason: Why, for whoever wonders.

        Raises:
            TransientError: MLflow cannot be reached.
        """
        with reaching(self._uri), self._exclusive(key):
            self._create_model(key)
            self._client.set_registered_model_tag(key.registered_model, FROZEN_TAG, reason)

    def unfreeze(self, key: ModelKey) -> None:
        """Allow promotions of this key again.

        Args:
            key: Whose model it is.

        Raises:
            TransientError: MLflow cannot be reached.
        """
        with reaching(self._uri), self._exclusive(key):
            model = self._model(key)
            if model is not None and FROZEN_TAG in model.tags:
                self._client.delete_registered_model_tag(model.name, FROZEN_TAG)

    @contextlib.contextmanager
    def _exclusive(self, key: ModelKey) -> Iterator[None]:
        """One writer per model key. MLflow has no compare-and-set, so looking and moving need a lock around them."""
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        path = self._cache_dir / f".{key.registered_model}.lock"
        try:
            with FileLock(path, timeout=_LOCK_TIMEOUT_S):
                yield
        except Timeout as error:
            raise TransientError(f"{path} is held by another promotion for over {_LOCK_TIMEOUT_S:.0f} s") from error

    def _model(self, key: ModelKey) -> RegisteredModel | None:
        try:
            return self._client.get_registered_model(key.registered_model)
        except MlflowException as error:
            if has_code(error, RESOURCE_DOES_NOT_EXIST):
                return None
            raise

    def _find(self, key: ModelKey, package: PackageRef) -> ModelVersion | None:
        found = self._client.search_model_versions(
            f"name = '{key.registered_model}' and tags.`{_CANDIDATE_TAG}` = '{package.candidate_key}'"
            f" and tags.`{_DIGEST_TAG}` = '{package.digest}'"
        )
        return min(found, key=lambda version: int(version.version), default=None)

    def _create_model(self, key: ModelKey) -> None:
        try:
            self._client.create_registered_model(
                key.registered_model, tags={"stlm.key": key.slug}, description=f"Anomaly detector of {key.path}"
            )
        except MlflowException as error:
            if not has_code(error, RESOURCE_ALREADY_EXISTS):
                raise

    def _upload(self, package: PackageRef, run_id: str) -> str:
        """Put the package, as an MLflow model, among the run's artifacts; files of a crashed try are overwritten."""
        place = f"model/{package.digest[:16]}"
        with tempfile.TemporaryDirectory(prefix="stlm-model-") as folder:
            model = save_served_model(Path(package.package_dir), Path(folder))
            self._client.log_artifacts(run_id, str(model), place)
        return f"{str(self._client.get_run(run_id).info.artifact_uri).rstrip('/')}/{place}"

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

    def _outcome(
        self, key: ModelKey, outcome: _Outcome, *, version: int | None, alias: str, detail: str
    ) -> PromotionRef:
        model = self._model(key)
        return PromotionRef(
            outcome=outcome,
            name=key.registered_model,
            version=version,
            champion_version=None if model is None else _aliased(model, alias),
            previous_version=None if model is None else _aliased(model, PREVIOUS_ALIAS),
            detail=detail,
        )

    def _move(self, key: ModelKey, version: int, *, champion: int | None, alias: str) -> None:
        name = key.registered_model
        if champion is not None:
            self._client.set_registered_model_alias(name, PREVIOUS_ALIAS, str(champion))
        self._client.set_registered_model_alias(name, alias, str(version))
        model = self._model(key)
        now = _aliased(model, alias) if model is not None else None
        if now != version:
            raise TransientError(f"{name}: alias {alias!r} was set to version {version} but stands at {_spoken(now)}")

    def _record(self, key: ModelKey, version: int, *, partition: str) -> None:
        """Written after the alias: a crash in between is repaired by the next try, which finds the alias moved."""
        name = key.registered_model
        self._client.set_model_version_tag(name, str(version), _PROMOTED_TAG, partition)
        self._client.set_registered_model_tag(name, _LAST_CHAMPION_TAG, str(version))


def open_registry(mlflow: MlflowSettings, run: RunRef) -> ModelRegistry:
    """The registry, with the cache of packages below ``work_dir`` that all steps share.

    Args:
        mlflow: Where it is.
        run: Any night; all share one cache.

    Returns:
        The registry.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    return ModelRegistry(mlflow.tracking_uri, Path(run.work_dir) / "models")


def _aliased(model: RegisteredModel, alias: str) -> int | None:
    version = model.aliases.get(alias)
    return None if version is None else int(version)


def _spoken(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"
