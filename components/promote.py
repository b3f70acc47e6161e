"""Promote: the blessed package becomes a registered version and takes over the alias ``champion``.

The verdict of the gate is bound to what is promoted: candidate, evaluation and package must be the ones it judged, byte
for byte. Without a verdict of PROMOTE nothing is registered, and that is a success of this step. This step is not
remembered like the others: run again, it looks at ledger and registry and leaves them as they are.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from components._cli import main_for
from components._promotion.decision import outcome_of, promote_version
from components._promotion.desk import Desk, open_desk
from components._promotion.load_check import check_loads
from components._promotion.record import promotion_record
from components.adapters.aliases import BACKFILL_ALIAS
from components.adapters.lease import Clock, utc_now
from components.adapters.tracking import log_metrics, open_run, set_tags
from components.config import MlflowSettings, PromoteSettings
from components.contracts import (
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
from components.errors import InputError
from stlm.calibration import CALIBRATION_FILE, Calibration
from stlm.errors import StlmError
from stlm.serving.package import verify_package

__all__ = ["PromoteInputs", "main", "promote"]

logger = logging.getLogger(__name__)

_APPROVER = "gate"
"""No person is asked: the verdict alone lets a candidate in."""


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
    calibration = _check_binding(inputs)
    run_id = open_run(inputs.mlflow, inputs.run)
    outcome = _promote(inputs, run_id, calibration, clock, fence)
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
    inputs: PromoteInputs, run_id: str, calibration: Calibration, clock: Clock, fence: Fence | None
) -> PromotionRef:
    run, decision = inputs.run, inputs.decision
    desk = open_desk(run.key, work_dir=run.work_dir, mlflow=inputs.mlflow, settings=inputs.settings, clock=clock)
    if run.backfill:
        return _replayed(desk, inputs, run_id, calibration, fence)
    if decision.verdict is not Verdict.PROMOTE:
        against = "; ".join(reason.detail for reason in decision.reasons if reason.verdict is not Verdict.PROMOTE)
        return outcome_of(desk, "REFUSED", version=None, detail=f"verdict {decision.verdict.value}: {against}")
    record = promotion_record(
        run,
        dataset=inputs.dataset,
        validation=inputs.validation,
        candidate=inputs.candidate,
        evaluation=inputs.evaluation,
        package=inputs.package,
        decision=decision,
        calibration=calibration,
        approver=_APPROVER,
    )
    check_loads(Path(inputs.package.package_dir))
    tags = _tags(inputs, calibration.threshold)
    version = desk.registry.register(run.key, inputs.package, run_id=run_id, tags=tags, fence=fence).version
    if inputs.settings.require_approval:
        detail = f"version {version} is registered and waits for approval"
        return outcome_of(desk, "REFUSED", version=version, detail=detail)
    return promote_version(
        desk,
        version,
        judged_against=decision.champion_version,
        becomes_anchor=decision.becomes_anchor,
        by=_APPROVER,
        reason=f"verdict {decision.verdict.value}",
        record=record,
    )


def _replayed(
    desk: Desk, inputs: PromoteInputs, run_id: str, calibration: Calibration, fence: Fence | None
) -> PromotionRef:
    """Register a replayed night's candidate, for the next night to build on and for a person to promote."""
    run, verdict = inputs.run, inputs.decision.verdict.value
    check_loads(Path(inputs.package.package_dir))
    tags = _tags(inputs, calibration.threshold) | {"stlm.backfill": run.backfill}
    version = desk.registry.register(run.key, inputs.package, run_id=run_id, tags=tags, fence=fence).version
    for name in ("stlm.verdict", "stlm.judged_against", "stlm.evaluation_digest"):
        # Judged again, against a later champion: the version is the same one.
        desk.board.tag_version(version, name, tags[name])
    alias = f"{BACKFILL_ALIAS}{run.backfill}"
    posted = desk.board.read()
    head = None if posted is None else posted.aliases.get(alias)
    head_tags = {} if head is None else desk.board.version_tags(head) or {}
    if head_tags.get("stlm.partition", "") <= run.partition:  # a night that was done before is not the last one
        desk.board.point(alias, version)
    detail = f"version {version} is night {run.partition} of backfill {run.backfill}, verdict {verdict}"
    return outcome_of(desk, "REPLAYED", version=version, detail=detail)


def _check_binding(inputs: PromoteInputs) -> Calibration:
    """Everything that the verdict names is what lies here; returns the package's calibration."""
    package, decision = inputs.package, inputs.decision
    pairs = {
        "candidate": (package.candidate_key, decision.candidate_key),
        "trained candidate": (inputs.candidate.candidate_key, decision.candidate_key),
        "evaluation": (inputs.evaluation.digest, decision.evaluation_digest),
        "package": (package.digest, decision.package_digest),
        "champion": (inputs.evaluation.champion_version, decision.champion_version),
    }
    wrong = [f"{what} is {got}, judged was {judged}" for what, (got, judged) in pairs.items() if got != judged]
    folder = Path(package.package_dir)
    try:
        digest = verify_package(folder)
        if digest != package.digest:
            wrong.append(f"package {folder} has digest {digest}, expected {package.digest}")
        calibration = Calibration.from_json((folder / CALIBRATION_FILE).read_text(encoding="utf-8"))
    except (StlmError, OSError) as error:
        raise InputError(f"the package to promote is not what was judged: {error}") from error
    if wrong:
        raise InputError(f"the verdict is about something else: {'; '.join(wrong)}")
    return calibration


def _tags(inputs: PromoteInputs, threshold: float) -> dict[str, str]:
    """Where the version comes from; a person who finds it in the registry can go back to every input."""
    decision = inputs.decision
    return {
        "stlm.key": inputs.run.key.slug,
        "stlm.partition": inputs.run.partition,
        "stlm.data_revision": inputs.dataset.revision,
        "stlm.data_tag": inputs.dataset.tag,
        "stlm.dvc_md5": inputs.dataset.dvc_md5,
        "stlm.validation_digest": inputs.validation.digest,
        "stlm.parent_version": str(inputs.candidate.parent_version or ""),
        "stlm.weights_sha256": inputs.candidate.weights_sha256,
        "stlm.evaluation_digest": inputs.evaluation.digest,
        "stlm.golden_digest": inputs.evaluation.golden_digest,
        "stlm.verdict": decision.verdict.value,
        "stlm.judged_against": str(decision.champion_version or ""),
        "stlm.bootstrap": str(decision.bootstrap).lower(),
        "stlm.threshold": repr(threshold),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line of this step."""
    return main_for("promote", PromoteInputs, promote, argv)


if __name__ == "__main__":
    raise SystemExit(main())
