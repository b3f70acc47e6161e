"""Aliases and tags of one registered model, read at once and written one by one.

MLflow keeps the last writer's word and no history: who may write, and what, is decided in ``components/promotion``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST

from components.adapters.mlflow.client import is_error_code, mlflow_errors
from components.core.contracts import ModelKey
from components.core.errors import InputError

__all__ = [
    "BACKFILL_ALIAS",
    "CHALLENGER_ALIAS",
    "FENCE_TAG",
    "FROZEN_TAG",
    "HEAD_TAG",
    "LAST_CHAMPION_TAG",
    "PREVIOUS_ALIAS",
    "PROMOTED_TAG",
    "RegisteredModelAliases",
    "RegistrySnapshot",
]

BACKFILL_ALIAS = "backfill-"
"""Followed by a backfill's name: the last night that it has replayed."""
PREVIOUS_ALIAS = "previous"
"""Where a roll-back would go."""
CHALLENGER_ALIAS = "challenger"
FENCE_TAG = "stlm.fence"
"""Tag of a registered model: the highest fence of a run that registered a version."""
FROZEN_TAG = "stlm.frozen"
"""Tag of a registered model, set by hand in MLflow: while it is there, with the reason as its value, nothing moves."""
HEAD_TAG = "stlm.ledger_head"
"""Tag of a registered model: the last entry of its ledger."""
LAST_CHAMPION_TAG = "stlm.last_champion"
PROMOTED_TAG = "stlm.promoted_at_partition"
"""Tag of a version: the night that promoted it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistrySnapshot:
    """What a registered model carries."""

    aliases: Mapping[str, int]
    tags: Mapping[str, str]


class RegisteredModelAliases:
    """Aliases and tags of a key's model. Every method raises ``TransientError`` where MLflow cannot be reached.

    Args:
        client: MLflow's client.
        uri: MLflow's address, for messages.
        key: Whose model it is.
    """

    def __init__(self, client: MlflowClient, uri: str, key: ModelKey) -> None:
        self._client = client
        self._uri = uri
        self._key = key

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self._key.registered_model

    def read(self) -> RegistrySnapshot | None:
        """All aliases and tags; ``None`` where the model is not registered."""
        with mlflow_errors(self._uri):
            try:
                model = self._client.get_registered_model(self.name)
            except MlflowException as error:
                if is_error_code(error, RESOURCE_DOES_NOT_EXIST):
                    return None
                raise
        aliases = {alias: int(version) for alias, version in model.aliases.items()}
        return RegistrySnapshot(aliases=aliases, tags=dict(model.tags))

    def create(self) -> None:
        """Register the model, without a version, unless it is there."""
        with mlflow_errors(self._uri):
            try:
                self._client.create_registered_model(
                    self.name, tags={"stlm.key": self._key.slug}, description=f"Anomaly detector of {self._key.path}"
                )
            except MlflowException as error:
                if not is_error_code(error, RESOURCE_ALREADY_EXISTS):
                    raise

    def set_alias(self, alias: str, version: int | None) -> None:
        """Set an alias; ``None`` takes it away. A version that does not exist is an ``InputError``."""
        with mlflow_errors(self._uri):
            if version is None:
                self._client.delete_registered_model_alias(self.name, alias)
                return
            try:
                self._client.set_registered_model_alias(self.name, alias, str(version))
            except MlflowException as error:
                if is_error_code(error, RESOURCE_DOES_NOT_EXIST) or is_error_code(error, INVALID_PARAMETER_VALUE):
                    raise InputError(f"alias {alias!r} of {self.name}: {error.message}") from error
                raise

    def tag(self, name: str, value: str | None) -> None:
        """Set a tag of the model; ``None`` takes it away."""
        with mlflow_errors(self._uri):
            if value is None:
                self._client.delete_registered_model_tag(self.name, name)
            else:
                self._client.set_registered_model_tag(self.name, name, value)

    def tag_version(self, version: int, name: str, value: str) -> None:
        """Set a tag of a version."""
        with mlflow_errors(self._uri):
            self._client.set_model_version_tag(self.name, str(version), name, value)

    def version_tags(self, version: int) -> dict[str, str] | None:
        """Tags of a version; ``None`` where there is no such version."""
        with mlflow_errors(self._uri):
            try:
                return dict(self._client.get_model_version(self.name, str(version)).tags)
            except MlflowException as error:
                if is_error_code(error, RESOURCE_DOES_NOT_EXIST):
                    return None
                raise

    def delete_version(self, version: int) -> None:
        """Delete a version, which takes its aliases with it: whether it may go is for the caller to know."""
        with mlflow_errors(self._uri):
            self._client.delete_model_version(self.name, str(version))
