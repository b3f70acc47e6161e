"""Current champion, for a message that must go out even where MLflow does not answer."""

import logging
from pathlib import Path

from components.adapters.mlflow.registry import ModelRegistry
from components.config import MlflowSettings
from components.core.contracts import CHAMPION_ALIAS, ModelKey
from components.core.errors import InputError, TransientError

__all__ = ["serving_version"]

logger = logging.getLogger(__name__)


def serving_version(key: ModelKey, mlflow: MlflowSettings, work_dir: str) -> int | None:
    """The champion's version; ``None`` where there is none or MLflow does not answer."""
    try:
        posted = ModelRegistry(mlflow.tracking_uri, Path(work_dir) / "models").aliases(key).read()
    except (InputError, TransientError) as error:
        logger.warning("champion of %s unknown: %s", key.slug, error)
        return None
    return None if posted is None else posted.aliases.get(CHAMPION_ALIAS)
