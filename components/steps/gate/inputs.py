"""Inputs of the gate."""

from dataclasses import dataclass, field

from components.config import ExportSettings, GateSettings
from components.core.contracts import EvaluationRef, PackageRef, RunRef

__all__ = ["GateInputs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateInputs:
    """What is judged, and by which limits."""

    run: RunRef
    evaluation: EvaluationRef
    package: PackageRef
    golden: str
    """The golden set, to see that it is still the one that was measured on."""
    settings: GateSettings
    export: ExportSettings = field(default_factory=ExportSettings)
    """The limits that the exported file had to keep."""
