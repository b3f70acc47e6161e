"""Verdict of the gate: all rules on the evidence, and what follows for the anchor."""

from collections.abc import Sequence

from components.config import GateSettings
from components.core.contracts import Reason, Verdict
from components.steps.gate.absolute_limits import enough_images, false_alarms, floors
from components.steps.gate.evidence import Evidence
from components.steps.gate.golden_set import provenance
from components.steps.gate.non_inferiority import Comparer, compare_with
from components.steps.gate.regressions import behaviour
from stlm.errors import MetricUndefinedError

__all__ = ["judge", "worst_verdict"]

_GRAVITY = (Verdict.PROMOTE, Verdict.INCONCLUSIVE, Verdict.REJECT, Verdict.ERROR)


def worst_verdict(reasons: Sequence[Reason]) -> Verdict:
    """The verdict of all of them together."""
    return max((reason.verdict for reason in reasons), key=_GRAVITY.index)


def judge(evidence: Evidence, settings: GateSettings, *, night: str, candidate_key: str) -> tuple[list[Reason], bool]:
    """Every rule that needs no package.

    Args:
        evidence: What was measured.
        settings: The limits.
        night: The night that the candidate was trained on.
        candidate_key: Seeds the resamples.

    Returns:
        One reason per rule, and whether the candidate, once promoted, is the new anchor.
    """
    comparer = Comparer(evidence, settings, candidate_key)
    reasons = [
        *provenance(evidence, settings),
        *enough_images(evidence, settings),
        *floors(evidence, settings),
        *_baseline_notes(evidence),
        *compare_with(comparer, evidence, settings, "champion"),
        *compare_with(comparer, evidence, settings, "anchor"),
        *behaviour(comparer, evidence, settings, night=night, candidate_key=candidate_key),
        false_alarms(evidence, settings),
    ]
    return reasons, _best_so_far(comparer, evidence, settings)


def _baseline_notes(evidence: Evidence) -> list[Reason]:
    """Whom the candidate is compared with, where that is not both."""
    if evidence.champion is None:
        judges = "the floors alone" if evidence.anchor is None else "the floors and the anchor alone"
        text = f"There is no champion: the candidate is judged by {judges} (bootstrap)."
        return [Reason(rule="bootstrap", verdict=Verdict.PROMOTE, detail=text, warning=True)]
    if evidence.anchor is None:
        text = "There is no anchor: the candidate is compared with the champion alone and, if promoted, becomes it."
        return [Reason(rule="anchor", verdict=Verdict.PROMOTE, detail=text, warning=True)]
    return []


def _best_so_far(comparer: Comparer, evidence: Evidence, settings: GateSettings) -> bool:
    """Only a candidate that is surely better moves the anchor: one that merely looks better would let noise ratchet."""
    if evidence.anchor is None:
        return True
    try:
        return comparer.gain(evidence.anchor, settings.superior_metric).bounds.low > 0
    except MetricUndefinedError:
        return False
