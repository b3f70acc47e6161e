"""Promote: the blessed package becomes a registered version and takes over the alias ``champion``.

The verdict of the gate is bound to what is promoted: candidate, evaluation and package must be the ones it judged, byte
for byte. Without a verdict of PROMOTE nothing is registered, and that is a success of this step. This step is not
remembered like the others: run again, it looks at the registry and leaves it as it is.
"""

import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import stlm
from components._cli import main_for
from components.adapters.registry import open_registry
from components.adapters.tracking import log_metrics, open_run, set_tags
from components.config import MlflowSettings, PromoteSettings
from components.contracts import (
    CandidateRef,
    DatasetRef,
    EvaluationRef,
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

_LOAD_CHECK_TIMEOUT_S = 120.0


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


def promote(inputs: PromoteInputs) -> PromotionRef:
    """Register the package and move the alias, if the gate said so.

    Args:
        inputs: What to promote, and on whose word.

    Returns:
        What happened; see ``PromotionRef.outcome``.

    Raises:
        InputError: The verdict is about something else than what is to be promoted, the package is altered, or it
            does not load in a clean process.
        TransientError: MLflow cannot be reached, or another promotion holds the lock for long.
    """
    threshold = _check_binding(inputs)
    run_id = open_run(inputs.mlflow, inputs.run)
    outcome = _promote(inputs, run_id, threshold)
    set_tags(
        inputs.mlflow,
        run_id,
        {
            "stlm.candidate_key": inputs.package.candidate_key,
            "stlm.verdict": inputs.decision.verdict.value,
            "stlm.promotion": outcome.outcome,
        },
    )
    log_metrics(
        inputs.mlflow, run_id, {"promote/threshold": threshold, "promote/size_bytes": inputs.package.size_bytes}
    )
    logger.info("step=promote outcome=%s version=%s detail=%s", outcome.outcome, outcome.version, outcome.detail)
    return outcome


def _promote(inputs: PromoteInputs, run_id: str, threshold: float) -> PromotionRef:
    run, decision, alias = inputs.run, inputs.decision, inputs.settings.alias
    registry = open_registry(inputs.mlflow, run)
    if decision.verdict is not Verdict.PROMOTE:
        against = "; ".join(reason.detail for reason in decision.reasons if reason.verdict is not Verdict.PROMOTE)
        return registry.refused(run.key, alias=alias, detail=f"verdict {decision.verdict.value}: {against}")
    _check_loads(Path(inputs.package.package_dir))
    version = registry.register(run.key, inputs.package, run_id=run_id, tags=_tags(inputs, threshold)).version
    if inputs.settings.require_approval:
        detail = f"version {version} is registered and waits for approval"
        return registry.refused(run.key, alias=alias, detail=detail, version=version)
    return registry.promote(
        run.key,
        version=version,
        expected_champion=decision.champion_version,
        partition=run.partition,
        alias=alias,
    )


def _check_binding(inputs: PromoteInputs) -> float:
    """Everything that the verdict names is what lies here; returns the package's threshold."""
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
        threshold = Calibration.from_json((folder / CALIBRATION_FILE).read_text(encoding="utf-8")).threshold
    except (StlmError, OSError) as error:
        raise InputError(f"the package to promote is not what was judged: {error}") from error
    if wrong:
        raise InputError(f"the verdict is about something else: {'; '.join(wrong)}")
    return threshold


def _check_loads(package_dir: Path) -> None:
    """Load and predict in a fresh interpreter, as a server would, before anyone can be served by it."""
    library = Path(stlm.__file__).parents[1]
    command = [sys.executable, "-m", "stlm.serving.load_check", str(package_dir.resolve())]
    try:
        # The working directory is where "-m" finds the library.
        done = subprocess.run(
            command, cwd=library, capture_output=True, text=True, timeout=_LOAD_CHECK_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"package {package_dir} does not load within {_LOAD_CHECK_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"package {package_dir} does not load in a clean process: {lines[-1]}")


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
