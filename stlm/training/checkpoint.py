"""Checkpoints: one file, replaced atomically, bound to what is being trained."""

import logging
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["Checkpointer"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Checkpointer:
    """Saves at most every ``interval_s`` seconds; a checkpoint of other work, or a damaged one, is put aside loudly."""

    path: Path
    identity: str
    """Digest of configuration, data and parent; a checkpoint of another identity is not resumed."""
    interval_s: float
    clock: Callable[[], float] = time.monotonic
    stop_requested: bool = False
    """Set from a signal handler: the loop saves after its step and raises ``InterruptedError``."""
    _last: float = field(default=float("-inf"))

    def load(self) -> dict[str, Any] | None:
        """The last state, or ``None``."""
        self._last = self.clock()
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            logger.warning("checkpoint %s cannot be read and is put aside: %s", self.path, error)
            self.path.replace(self.path.with_suffix(".damaged"))
            return None
        if state.get("identity") != self.identity:
            logger.warning("checkpoint %s belongs to other inputs and is put aside", self.path)
            self.path.replace(self.path.with_suffix(".foreign"))
            return None
        return state

    def due(self) -> bool:
        """Whether the interval is over."""
        return self.stop_requested or self.clock() - self._last >= self.interval_s

    def saved_elsewhere(self) -> None:
        """Another process has just saved for this one as well."""
        self._last = self.clock()

    def save(self, state: dict[str, Any]) -> None:
        """Write the state: temporary sibling, flush to disk, rename."""
        partial = self.path.with_suffix(".part")
        try:
            with partial.open("wb") as file:
                torch.save({**state, "identity": self.identity}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)  # half a state is worth nothing, and the disk may be full
        self._last = self.clock()
