"""Manual promotion: a named candidate takes over if the gate said so, or if two people break the glass.

The candidate is named by its version or by (the beginning of) its key; one that no night registered is looked for in
the records of the nights. By the ordinary way it must carry a verdict of PROMOTE against the present champion, on the
present golden set, nothing may be frozen, and where the model has approvers the person must be one of them. Break-glass
needs two names and passes over verdict and freeze; the freeze stays, so that no night follows unasked, and such a
version never becomes the anchor. Neither way passes over the load check, the lease or the ledger.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.adapters.lease import Clock, utc_now
from components.adapters.mlflow.aliases import FROZEN_TAG, PROMOTED_TAG
from components.adapters.mlflow.tracking import open_run
from components.config import MlflowSettings, PromoteSettings
from components.core.contracts import (
    CHAMPION_ALIAS,
    CandidateRef,
    DatasetRef,
    EvaluationRef,
    GateDecision,
    ModelKey,
    PackageRef,
    PromotionRef,
    ValidationRef,
    Verdict,
)
from components.core.errors import InputError
from components.core.run_records import nights, read_night
from components.promotion.alias_transaction import AliasManager, open_alias_manager
from components.promotion.champion_state import ChampionState, replay_ledger, version_label
from components.promotion.registration import PromotionEvidence, check_binding, check_version, read_record, register
from components.promotion.takeover import promote_version
from stlm.data.layout import read_golden_set
from stlm.errors import DataError

__all__ = ["PromoteByHandInputs", "promote_by_hand"]

_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_CANDIDATE = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteByHandInputs:
    """Which candidate, by whom and why."""

    key: ModelKey
    work_dir: str
    golden: str
    """The golden set on which it must have been judged."""
    mlflow: MlflowSettings
    settings: PromoteSettings
    candidate: str
    """A version, or at least 12 hex digits of a candidate's key."""
    reason: str
    by: str
    approvers: tuple[str, ...] = ()
    """Who may, in the ordinary way; empty: everybody."""
    break_glass: bool = False
    second: str = ""
    """Who agreed to break the glass."""

    def __post_init__(self) -> None:
        for name in ("reason", "by"):
            if not getattr(self, name).strip():
                raise InputError(f"{name} must not be empty")
        if not _VERSION.fullmatch(self.candidate) and not _CANDIDATE.fullmatch(self.candidate):
            raise InputError(
                f"candidate {self.candidate!r}: expected a version, or at least 12 hex digits of a candidate's key"
            )
        if self.break_glass and self.second.strip().casefold() in ("", self.by.strip().casefold()):
            raise InputError(f"to break the glass takes two people: {self.by!r} and {self.second!r} are not two")
        if self.second and not self.break_glass:
            raise InputError("a second name is for breaking the glass only")
        if self.approvers and not self.break_glass and self.by not in self.approvers:
            raise InputError(f"{self.by!r} may not promote for {self.key.slug}; who may: {', '.join(self.approvers)}")


def promote_by_hand(inputs: PromoteByHandInputs, *, clock: Clock = utc_now) -> PromotionRef:
    """Make the named candidate the champion.

    Args:
        inputs: Which, by whom and why.
        clock: The clock of the lease and of the ledger's entries.

    Returns:
        ``PROMOTED``, or ``ALREADY_PROMOTED`` where it is the champion already.

    Raises:
        InputError: There is no such candidate, it may not take over, or it does not load; the champion is untouched.
        TransientError: MLflow or the ledger cannot be reached, or another holds the lease for long.
    """
    manager = open_alias_manager(
        inputs.key, work_dir=inputs.work_dir, mlflow=inputs.mlflow, settings=inputs.settings, clock=clock
    )
    state, frozen = _look(manager)
    version, judged = _find(manager, inputs)
    if version is not None:
        if state.champion == version:
            return _already(inputs, state, version)
        record = read_record(manager, version)
        _may_take_over(inputs, state, frozen, record, f"version {version}")
        _refuse_former(manager, state, version)
        # Without the lease: to fetch a package and to load it may take longer than it lasts.
        check_version(manager, version, scores_needed=True)
    else:
        assert judged is not None
        decision = judged.decision
        verdict = {"verdict": decision.verdict.value, "judged_against": decision.champion_version}
        found = {"verdict": verdict, "golden_digest": judged.evaluation.golden_digest}
        _may_take_over(inputs, state, frozen, found, f"the candidate of {judged.run.partition}")
        calibration = check_binding(judged)
        version, record = register(manager, judged, calibration, run_id=open_run(inputs.mlflow, judged.run))
    outcome = promote_version(
        manager,
        version,
        judged_against=state.champion if inputs.break_glass else record["verdict"]["judged_against"],
        becomes_anchor=bool(record["verdict"].get("becomes_anchor")),
        by=f"{inputs.by} and {inputs.second}" if inputs.break_glass else inputs.by,
        reason=inputs.reason,
        record=record | _people(inputs, record),
        break_glass=inputs.break_glass,
    )
    if outcome.outcome not in {"PROMOTED", "ALREADY_PROMOTED"}:
        raise InputError(f"{manager.key.registered_model}: {outcome.outcome}: {outcome.detail}")
    return outcome


def _look(manager: AliasManager) -> tuple[ChampionState, str]:
    """Who is what, and why promotion is frozen, if it is."""
    chain, posted = manager.snapshot()
    state = replay_ledger(chain.entries)
    if not state.bootstrapped and CHAMPION_ALIAS in posted.aliases:
        with manager.transaction(
            "promote by hand"
        ) as transaction:  # a champion from before there was a ledger is written down
            state = transaction.state
    return state, state.frozen_because() or posted.tags.get(FROZEN_TAG, "")


def _find(manager: AliasManager, inputs: PromoteByHandInputs) -> tuple[int | None, PromotionEvidence | None]:
    """The registered version, or else the night whose candidate it is."""
    if _VERSION.fullmatch(inputs.candidate):
        version = int(inputs.candidate)
        if manager.aliases.version_tags(version) is None:
            raise InputError(f"{manager.key.registered_model} has no version {version}")
        return version, None
    versions = manager.registry.versions_of(inputs.key, inputs.candidate)
    if len(versions) > 1:
        found = ", ".join(map(str, versions))
        raise InputError(
            f"candidate {inputs.candidate} is versions {found} of {manager.key.registered_model}: name one"
        )
    if versions:
        return versions[0], None
    return None, _judged(inputs)


def _judged(inputs: PromoteByHandInputs) -> PromotionEvidence:
    """The latest night that judged this candidate."""
    for run in reversed(nights(inputs.work_dir, inputs.key)):
        outputs = {step: record.outputs for step, record in read_night(run).items() if record.outputs is not None}
        decision = outputs.get("gate")
        if decision is None or not str(decision.get("candidate_key", "")).startswith(inputs.candidate):
            continue
        try:
            return PromotionEvidence(
                run=run,
                package=PackageRef.from_json(outputs["export"]),
                decision=GateDecision.from_json(decision),
                dataset=DatasetRef.from_json(outputs["version"]),
                validation=ValidationRef.from_json(outputs["validate"]),
                evaluation=EvaluationRef.from_json(outputs["evaluate"]),
                candidate=CandidateRef.from_json(outputs["fine_tune"]),
            )
        except (KeyError, ValueError) as error:
            raise InputError(f"the records of night {run.partition} cannot be read: {error}") from error
    raise InputError(
        f"no version of {inputs.key.registered_model} and no night of {inputs.key.slug} has candidate "
        f"{inputs.candidate}"
    )


def _may_take_over(
    inputs: PromoteByHandInputs, state: ChampionState, frozen: str, record: dict[str, Any], what: str
) -> None:
    """Refuse before anything is registered or loaded; the lease's holder looks at the champion again."""
    if inputs.break_glass:
        return
    verdict, judged_against = record["verdict"]["verdict"], record["verdict"]["judged_against"]
    name = inputs.key.registered_model
    if verdict != Verdict.PROMOTE.value:
        raise InputError(
            f"{what} of {name} was judged {verdict}; only PROMOTE takes over (or two people: --break-glass)"
        )
    if judged_against != state.champion:
        raise InputError(
            f"STALE_DECISION: {what} of {name} was judged against {version_label(judged_against)}, the champion is "
            f"{version_label(state.champion)}"
        )
    if frozen:
        raise InputError(f"promotion of {name} is frozen: {frozen}; lift it with `stlm unfreeze`")
    try:
        digest = read_golden_set(Path(inputs.golden)).digest
    except DataError as error:
        raise InputError(f"{what} of {name} cannot be held against its golden set: {error}") from error
    if digest != record["golden_digest"]:
        raise InputError(
            f"STALE_DECISION: {what} of {name} was judged on golden set {record['golden_digest']}, {inputs.golden} has "
            f"digest {digest}"
        )


def _refuse_former(manager: AliasManager, state: ChampionState, version: int) -> None:
    if version in state.past_champions or PROMOTED_TAG in (manager.aliases.version_tags(version) or {}):
        raise InputError(
            f"version {version} of {manager.key.registered_model} was champion before; to bring it back: "
            f"`stlm rollback --to {version}`"
        )


def _already(inputs: PromoteByHandInputs, state: ChampionState, version: int) -> PromotionRef:
    return PromotionRef(
        outcome="ALREADY_PROMOTED",
        name=inputs.key.registered_model,
        version=version,
        champion_version=version,
        previous_version=state.previous,
        detail=f"version {version} is the champion already",
    )


def _people(inputs: PromoteByHandInputs, record: dict[str, Any]) -> dict[str, Any]:
    """What the ledger shall say of those who let it in."""
    if not inputs.break_glass:
        return {"approver": inputs.by, "by_hand": True}
    verdict = record["verdict"]
    return {
        "approver": f"{inputs.by} and {inputs.second}",
        "by_hand": True,
        "break_glass": {
            "by": inputs.by,
            "second": inputs.second,
            "reason": inputs.reason,
            "overruled": {"verdict": verdict["verdict"], "judged_against": verdict["judged_against"]},
        },
    }
