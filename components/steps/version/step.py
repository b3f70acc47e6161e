"""Version: the night's batch -> a commit of the data repository, before anybody judges it.

Versioning comes before validation so that a rejected batch can be looked at again.
"""

from dataclasses import dataclass
from pathlib import Path

from components.adapters.data_repository import DataRepository
from components.core.contracts import BatchRef, Contract, DatasetRef, Fence, RunRef
from components.core.step_runner import run_once

__all__ = ["VersionInputs", "version"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionInputs(Contract):
    """The batch, and where it is kept."""

    run: RunRef
    batch: BatchRef
    data_repo: str
    """Folder of the data repository; created on first use."""
    dvc_remote: str
    """A folder or ``s3://bucket/prefix``."""
    s3_endpoint_url: str = ""


def version(inputs: VersionInputs, *, fence: Fence | None = None) -> DatasetRef:
    """Add the night's batch to the data repository, push it to the remote, commit and tag it.

    Args:
        inputs: The batch, and where it is kept.
        fence: Of the run that holds the key.

    Returns:
        The night's place and revision; the same batch again gives the same reference.

    Raises:
        InputError: The batch is not what its manifest says.
        TransientError: The repository is held by another writer, or the remote cannot be reached.
    """
    return run_once("version", inputs, DatasetRef, lambda inputs, _folder: _version(inputs, fence))


def _version(inputs: VersionInputs, fence: Fence | None) -> DatasetRef:
    repository = DataRepository(Path(inputs.data_repo), inputs.dvc_remote, inputs.s3_endpoint_url)
    return repository.add_partition(inputs.run, inputs.batch, fence)
