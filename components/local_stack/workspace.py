"""Workspace of the commands: the configuration, and where this machine keeps its state."""

import os
from dataclasses import dataclass
from pathlib import Path

from components.config import ModelSettings, PipelineConfig, load_config
from components.core.contracts import RunRef
from components.core.errors import InputError
from components.local_stack.airflow_env import repository_root

__all__ = ["Workspace", "open_workspace"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """A configuration and its state on this machine."""

    config_path: Path
    config: PipelineConfig
    state: Path
    """Airflow's database and logs, the web interfaces' process ids."""

    @property
    def airflow_home(self) -> Path:
        """Airflow's folder."""
        return self.state / "airflow"

    @property
    def data(self) -> Path:
        """The quick start's data."""
        return repository_root() / "data"

    @property
    def has_registry(self) -> bool:
        """Whether there is a registry to ask: asking for an SQLite file that is not there would create it."""
        scheme, _, database = self.config.mlflow.tracking_uri.partition(":///")
        return scheme != "sqlite" or Path(database).exists()

    @property
    def approvers(self) -> tuple[str, ...]:
        """Everybody who lets candidates in, of all keys."""
        return tuple(sorted({name for model in self.config.models for name in model.approvers}))

    def model(self, slug: str) -> ModelSettings:
        """The model of a key, or the only one where ``slug`` is empty; ``InputError`` names the choice."""
        if slug:
            return self.config.model(slug)
        if len(self.config.models) > 1:
            keys = ", ".join(model.key.slug for model in self.config.models)
            raise InputError(f"which model key? give one with --key: {keys}")
        return self.config.models[0]

    def run(self, model: ModelSettings, partition: str) -> RunRef:
        """One night of one key; ``InputError`` for anything but ``YYYY-MM-DD``."""
        try:
            return RunRef(key=model.key, partition=partition, work_dir=self.config.paths.work_dir)
        except ValueError as error:
            raise InputError(f"night {partition!r}: {error}") from error


def open_workspace(config: str, state: str) -> Workspace:
    """Read the configuration.

    Args:
        config: Its path; empty: the environment variable ``STLM_CONFIG``, else the quick start's.
        state: Folder of the state; empty: ``var`` in the repository.

    Returns:
        The workspace.

    Raises:
        InputError: The configuration is missing or wrong.
    """
    root = repository_root()
    path = Path(config or os.environ.get("STLM_CONFIG") or root / "infra" / "quickstart.toml").resolve()
    return Workspace(config_path=path, config=load_config(path), state=Path(state or root / "var").resolve())
