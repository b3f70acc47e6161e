"""Gate: decide whether the candidate may replace the champion.

Rules, one reason each; the overall verdict is the gravest of them (ERROR > REJECT > INCONCLUSIVE > PROMOTE):

- *binding*: evaluation, package and threshold belong to the same candidate, and the evaluation's files are unaltered.
- *golden set*: it is the one that was measured on, and the one on which champion and anchor were judged, else ERROR.
- *leakage*: no golden image, nor one that looks like it, was learnt from, else ERROR.
- *enough images*: per class and for pixel metrics, else INCONCLUSIVE; *golden set size* warns under 150 + 150.
- *floor <metric>*: the candidate's figure is not below its floor.
- *champion <metric>*, *anchor <metric>*: the paired bootstrap over images (or lots), stratified by stratum and defect
  class, redrawn here with a seed from the candidate's key. PROMOTE when the one-sided lower bound of (candidate -
  other) is above minus the margin, REJECT when the upper bound is below it, INCONCLUSIVE in between: then the golden
  set cannot tell. In mode superiority the lower bound against the champion must be above 0 in one metric.
- *champion worst stratum*, *anchor worst stratum*: no defect class or stratum is surely worse by more than the margin
  (bounds shared out among them).
- *false alarms at recall*, *forgetting*, *old score shift*, *decision flips*: nothing surely changes against the
  champion by more than its limit, on golden images and on held-out normals of this and of earlier nights.
- *false alarms*: the rate on good golden images at the candidate's own threshold is not surely above its limit.
- *export parity*, *latency*, *package size*: the exported file decides as the model does, in time.

Small samples cannot prove that they are not inferior, so the rules that say "surely" only ever stop a candidate that
does harm. The anchor is the best version that was ever approved: a candidate that passes takes its place only if it is
surely better. Without a champion (the first model of a key) the comparisons fall away, and the decision says
so. A metric that has a floor or a margin and is undefined is an ERROR, never a pass. Refusing is a success of this
step; ``decision.json`` is the record.
"""

import logging
from pathlib import Path

from components.core.atomic_files import write_json
from components.core.contracts import GateDecision, Reason, Verdict
from components.core.step_runner import run_once
from components.steps.gate.evidence import EvidenceMismatchError, read_evidence
from components.steps.gate.inputs import GateInputs
from components.steps.gate.package_limits import package_rules
from components.steps.gate.verdict import judge, worst_verdict

__all__ = [
    "GateInputs",
    "gate",
]

logger = logging.getLogger(__name__)


def gate(inputs: GateInputs) -> GateDecision:
    """Judge the candidate by floors, against champion and anchor, and by what would be served."""
    return run_once("gate", inputs, GateDecision, _gate)


def _gate(inputs: GateInputs, folder: Path) -> GateDecision:
    candidate_key, champion_version = inputs.package.candidate_key, inputs.evaluation.champion_version
    is_best = False
    try:
        evidence = read_evidence(inputs)
    except EvidenceMismatchError as error:
        reasons = [Reason(rule="binding", verdict=Verdict.ERROR, detail=str(error))]
    else:
        bound = "Evaluation, package and threshold belong to this candidate."
        found, is_best = judge(evidence, inputs.settings, night=inputs.run.partition, candidate_key=candidate_key)
        reasons = [Reason(rule="binding", verdict=Verdict.PROMOTE, detail=bound), *found]
    reasons += package_rules(inputs.package, inputs.export, inputs.settings, has_champion=champion_version is not None)
    verdict = worst_verdict(reasons)
    decision = GateDecision(
        verdict=verdict,
        reasons=tuple(reasons),
        candidate_key=candidate_key,
        champion_version=champion_version,
        bootstrap=champion_version is None,
        evaluation_digest=inputs.evaluation.digest,
        package_digest=inputs.package.digest,
        becomes_anchor=verdict is Verdict.PROMOTE and is_best,
    )
    write_json(folder / "decision.json", decision)
    for reason in reasons:
        if reason.warning:
            logger.warning("step=gate rule=%s %s", reason.rule, reason.detail)
    logger.info("step=gate verdict=%s candidate=%s", decision.verdict.value, decision.candidate_key)
    return decision
