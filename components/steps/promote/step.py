"""Promote: the blessed package becomes a registered version and takes over the alias ``champion``.

The verdict of the gate is bound to what is promoted: candidate, evaluation and package must be the ones it judged, byte
for byte; where people must agree, their word is bound to it as well. Where the key has shadow nights, the version
becomes challenger instead. Without a verdict of PROMOTE nothing is registered, and that is a success of this step, as
is a no. This step is not remembered like the others: run again, it looks at ledger and registry and leaves them as they
are.
"""

import logging
from dataclasses import dataclass

from components.adapters.lease import Clock, utc_now
from components.adapters.mlflow.aliases import BACKFILL_ALIAS
from components.adapters.mlflow.tracking import log_metrics, open_run, set_tags
from components.config import MlflowSettings, PromoteSettings
from components.core.contracts import (
    Approval,
    CandidateRef,
    DatasetRef,
    EvaluationRef,
    Fence,
    GateDecision,
    PackageRef,
    PromotionRef,
    RunRef,
    ValidationRef,
    Verdict,
)
from components.core.errors import InputError
from components.promotion.alias_transaction import AliasManager, open_alias_manager
from components.promotion.registration import PromotionEvidence, check_binding, register, update_verdict
from components.promotion.takeover import challenge, outcome_of, promote_version
from stlm.calibration import Calibration

__all__ = ["PromoteInputs", "promote"]

logger = logging.getLogger(__name__)

_APPROVER = "gate"
"""Who lets a candidate in where no person is asked: the verdict alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteInputs:
    """The package, the verdict, and where everything came from."""

    run: RunRef
    package: PackageRef
    decision: GateDecision
    dataset: DatasetRef
    validation: ValidationRef
    evaluation: EvaluationRef
    candidate: CandidateRef
    mlflow: MlflowSettings
    settings: PromoteSettings
    approvers: tuple[str, ...] = ()
    """Who may let it in; empty: the verdict alone does."""
    approval: Approval | None = None
    """What one of them said."""
    shadow_nights: int = 0
    """On so many nights it is first scored beside the champion; the first model of a key has none to stand beside."""


def promote(inputs: PromoteInputs, *, clock: Clock = utc_now, fence: Fence | None = None) -> PromotionRef:
    """Register the package and move the alias, if the gate said so.

    A replayed night's package is registered whatever the verdict, for the next one builds on it, and moves nothing.

    Args:
        inputs: What to promote, and on whose word.
        clock: The clock of the lease and of the ledger's entries.
        fence: Of the run that holds the key.

    Returns:
        What happened; see ``PromotionRef.outcome``.

    Raises:
        InputError: The verdict is about something else than what is to be promoted, the package is altered, or it
            does not load in a clean process.
        TransientError: MLflow or the ledger cannot be reached, or another promotion holds the lease for long.
    """
    judged = PromotionEvidence(
        run=inputs.run,
        package=inputs.package,
        decision=inputs.decision,
        dataset=inputs.dataset,
        validation=inputs.validation,
        evaluation=inputs.evaluation,
        candidate=inputs.candidate,
    )
    calibration = check_binding(judged)
    run_id = open_run(inputs.mlflow, inputs.run)
    outcome = _promote(inputs, judged, run_id, calibration, clock=clock, fence=fence)
    set_tags(
        inputs.mlflow,
        run_id,
        {
            "stlm.candidate_key": inputs.package.candidate_key,
            "stlm.verdict": inputs.decision.verdict.value,
            "stlm.promotion": outcome.outcome,
        },
    )
    figures = {"promote/threshold": calibration.threshold, "promote/size_bytes": inputs.package.size_bytes}
    log_metrics(inputs.mlflow, run_id, figures)
    logger.info("step=promote outcome=%s version=%s detail=%s", outcome.outcome, outcome.version, outcome.detail)
    return outcome


def _promote(
    inputs: PromoteInputs,
    judged: PromotionEvidence,
    run_id: str,
    calibration: Calibration,
    *,
    clock: Clock,
    fence: Fence | None,
) -> PromotionRef:
    run, decision, settings = inputs.run, inputs.decision, inputs.settings
    manager = open_alias_manager(run.key, work_dir=run.work_dir, mlflow=inputs.mlflow, settings=settings, clock=clock)
    if run.backfill:
        return _replayed(manager, judged, run_id, calibration, fence)
    if decision.verdict is not Verdict.PROMOTE:
        against = "; ".join(reason.detail for reason in decision.reasons if reason.verdict is not Verdict.PROMOTE)
        return outcome_of(manager, "REFUSED", version=None, detail=f"verdict {decision.verdict.value}: {against}")
    refusal = _answer(inputs) if inputs.approvers else ""
    version, record = register(manager, judged, calibration, run_id=run_id, fence=fence)
    if refusal:
        detail = f"version {version} is registered; {refusal}"
        return outcome_of(manager, "REFUSED", version=version, detail=detail)
    approver, approval = _APPROVER, inputs.approval if inputs.approvers else None
    if approval is not None:
        approver, record["approval"] = approval.by, approval.to_json()
    record["approver"] = approver
    if inputs.shadow_nights and decision.champion_version is not None:
        return challenge(manager, version, judged_against=decision.champion_version, by=approver, record=record)
    return promote_version(
        manager,
        version,
        judged_against=decision.champion_version,
        becomes_anchor=decision.becomes_anchor,
        by=approver,
        reason=f"verdict {decision.verdict.value}",
        record=record,
    )


def _replayed(
    manager: AliasManager, judged: PromotionEvidence, run_id: str, calibration: Calibration, fence: Fence | None
) -> PromotionRef:
    """Register a replayed night's candidate, for the next night to build on and for a person to promote."""
    run = judged.run
    version, record = register(manager, judged, calibration, run_id=run_id, fence=fence)
    update_verdict(manager, judged, calibration, version, record)
    alias = f"{BACKFILL_ALIAS}{run.backfill}"
    posted = manager.aliases.read()
    head = None if posted is None else posted.aliases.get(alias)
    head_tags = {} if head is None else manager.aliases.version_tags(head) or {}
    if head_tags.get("stlm.partition", "") <= run.partition:  # a night that was done before is not the last one
        manager.aliases.set_alias(alias, version)
    detail = f"version {version} is night {run.partition} of backfill {run.backfill}"
    return outcome_of(manager, "REPLAYED", version=version, detail=f"{detail}, verdict {judged.decision.verdict.value}")


def _answer(inputs: PromoteInputs) -> str:
    """Why people did not let the candidate in; empty where they did."""
    approval, people = inputs.approval, ", ".join(inputs.approvers)
    if approval is None:
        raise InputError(f"{inputs.run.key.slug} is let in by {people}, but nobody was asked")
    asked, there = (approval.candidate_key, approval.package_digest), inputs.package
    if asked != (there.candidate_key, there.digest):
        raise InputError(
            f"{approval.by or 'nobody'} answered about candidate {asked[0]}, package {asked[1]}; to be promoted is "
            f"candidate {there.candidate_key}, package {there.digest}"
        )
    if approval.answer in {"APPROVED", "REJECTED"} and approval.by not in inputs.approvers:
        raise InputError(f"{approval.by!r} answered, who is none of {people}")
    return {
        "APPROVED": "",
        "REJECTED": f"{approval.by} said no",
        "TIMED_OUT": f"none of {people} answered in time, which is a no",
        "NOT_ASKED": f"none of {people} was asked",
    }[approval.answer]
