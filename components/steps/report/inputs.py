"""Inputs of the report, and why a part of a night may be missing."""

from dataclasses import dataclass, field
from typing import Any

from components.config import MlflowSettings, ReportSettings
from components.core.contracts import (
    CandidateRef,
    DatasetRef,
    EvaluationRef,
    GateDecision,
    NightStatus,
    PackageRef,
    PromotionRef,
    RunRef,
    ShadowRef,
    ValidationRef,
)

__all__ = ["ReportInputs", "failure_of", "nothing_new", "why_missing"]

_ORDER = (
    "collect",
    "version",
    "validate",
    "fine_tune",
    "evaluate",
    "export",
    "gate",
    "promote",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInputs:
    """Whatever the night produced; ``None`` for every step that did not get its turn."""

    run: RunRef
    collect: dict[str, Any] | None = None
    """``CollectOutputs`` as JSON: ``status``, ``batch``, ``waiting``."""
    dataset: DatasetRef | None = None
    validation: ValidationRef | None = None
    candidate: CandidateRef | None = None
    evaluation: EvaluationRef | None = None
    package: PackageRef | None = None
    decision: GateDecision | None = None
    promotion: PromotionRef | None = None
    shadow: ShadowRef | None = None
    """What the night showed of the challenger, where the key has shadow nights."""
    failures: tuple[str, ...] = ()
    """One ``<step>: <message>`` per step that failed."""
    golden: str
    mlflow: MlflowSettings
    settings: ReportSettings = field(default_factory=ReportSettings)


def nothing_new(inputs: ReportInputs) -> bool:
    """True when collecting found no complete new lot."""
    return (inputs.collect or {}).get("status") == NightStatus.NOTHING_NEW.value


def failure_of(inputs: ReportInputs, step: str) -> str | None:
    """The message of ``step``'s failure, or ``None``."""
    for failure in inputs.failures:
        name, _, message = failure.partition(":")
        if name.strip() == step:
            return message.strip() or "no message"
    return None


def why_missing(inputs: ReportInputs, step: str) -> str:
    """One sentence on why there is no output of ``step``."""
    if nothing_new(inputs):
        return "No complete new lot had arrived, so the night ended after collecting."
    message = failure_of(inputs, step)
    if message is not None:
        return f"The step {step} failed: {message}"
    for earlier in _ORDER[: _ORDER.index(step)]:
        if failure_of(inputs, earlier) is not None:
            return f"The night stopped at the step {earlier}; its message is above."
    if inputs.validation is not None and inputs.validation.num_accepted == 0:
        return "Validation accepted no image, so the night ended there."
    if inputs.failures:
        return "The night failed; the message is above."
    return f"The step {step} left no result and no message; see its log."
