"""Golden set rules of the gate: is it still the same one, and was nothing learnt from it?"""

from collections.abc import Iterator

from components.config import GateSettings
from components.core.contracts import Reason, Verdict
from components.steps.gate.evidence import Evidence, GoldenRecords

__all__ = ["provenance"]


def provenance(evidence: Evidence, settings: GateSettings) -> Iterator[Reason]:
    """The golden set is the one measured on and the one the others were judged on; none of its images was learnt."""
    problems = _golden_problems(evidence.golden, evidence, settings)
    accepted = evidence.golden.measured in settings.accepted_golden
    fine = f"The golden set is {evidence.golden.measured[:16]}, unchanged since the evaluation" + (
        " and accepted by the configuration." if accepted else " and since the other models were judged."
    )
    yield Reason(
        rule="golden set",
        verdict=Verdict.ERROR if problems else Verdict.PROMOTE,
        detail=" ".join(problems) if problems else fine,
    )
    yield _leakage(evidence)


def _golden_problems(golden: GoldenRecords, evidence: Evidence, settings: GateSettings) -> list[str]:
    problems = []
    if golden.problem:
        problems.append(f"The golden set cannot be read: {golden.problem}.")
    elif golden.now != golden.measured:
        problems.append(
            f"The golden set changed after the evaluation: {golden.now[:16]} now, {golden.measured[:16]} measured."
        )
    if golden.measured in settings.accepted_golden:
        return problems
    others = (
        ("champion", evidence.champion, golden.champion),
        ("anchor", evidence.anchor, golden.anchor),
    )
    for name, model, record in others:
        if model is not None and record != golden.measured:
            judged = f"was judged on {record[:16]}" if record else "does not say on which golden set it was judged"
            problems.append(
                f"The {name} {judged}, this evaluation used {golden.measured[:16]}; if the golden set was changed on "
                f"purpose, add {golden.measured} to gate.accepted_golden."
            )
    return problems


def _leakage(evidence: Evidence) -> Reason:
    leakage = evidence.leakage
    num = leakage.num_same + leakage.num_near
    detail = (
        f"{leakage.num_same} of {leakage.num_golden} golden images are, and {leakage.num_near} look like (at most "
        f"{leakage.max_bits} of 256 bits apart), one of {leakage.num_images} images that were learnt from or accepted."
    )
    if num:
        detail += f" Take them out of the golden set: {'; '.join(leakage.examples[:5])}."
    return Reason(
        rule="leakage",
        # What a model learnt from says nothing about it: the figures are void, not bad.
        verdict=Verdict.ERROR if num or not leakage.num_images else Verdict.PROMOTE,
        detail=detail if leakage.num_images else "It is not known what was learnt from.",
        value=float(num),
        limit=0.0,
    )
