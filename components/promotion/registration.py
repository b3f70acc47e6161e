"""Registration of a judged candidate: is it what was judged, does it load, what shall be known of it?"""

import hashlib
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from components.adapters.mlflow.pyfunc_model import save_served_model
from components.core.contracts import (
    CandidateRef,
    DatasetRef,
    EvaluationRef,
    Fence,
    GateDecision,
    ModelRef,
    PackageRef,
    RunRef,
    ValidationRef,
    canonical_json,
)
from components.core.errors import InputError
from components.promotion.alias_transaction import AliasManager
from components.promotion.load_check import check_serves
from components.promotion.promotion_record import promotion_record
from components.promotion.sbom import SBOM_FILE, bill_of_materials
from stlm.calibration import CALIBRATION_FILE, Calibration
from stlm.errors import StlmError, WeightsError
from stlm.serving.attestation import ATTESTATION_FILE, attest, verified_statement
from stlm.serving.package import verify_package

__all__ = [
    "PromotionEvidence",
    "VerifiedAttestation",
    "check_binding",
    "check_version",
    "read_record",
    "register",
    "update_verdict",
    "verify_attestation",
]

logger = logging.getLogger(__name__)

_RECORD_FILE = "record.json"
_PREDICATE_TYPE = "https://stlm.invalid/judged/v1"
"""What is said of a package: which candidate it is, for which key, and the sha256 of the record of its judgement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionEvidence:
    """A night's outputs up to the verdict."""

    run: RunRef
    package: PackageRef
    decision: GateDecision
    dataset: DatasetRef
    validation: ValidationRef
    evaluation: EvaluationRef
    candidate: CandidateRef


class VerifiedAttestation(NamedTuple):
    """A trusted key's word for a package."""

    signer: str
    """Id of the key."""
    digest: str
    """The package's."""


def check_binding(judged: PromotionEvidence) -> Calibration:
    """See that everything that the verdict names is what lies here.

    Args:
        judged: A night's outputs.

    Returns:
        The package's calibration.

    Raises:
        InputError: Candidate, evaluation or package is another one than was judged; the message names all that are.
    """
    package, decision = judged.package, judged.decision
    pairs = {
        "candidate": (package.candidate_key, decision.candidate_key),
        "trained candidate": (judged.candidate.candidate_key, decision.candidate_key),
        "evaluation": (judged.evaluation.digest, decision.evaluation_digest),
        "package": (package.digest, decision.package_digest),
        "champion": (judged.evaluation.champion_version, decision.champion_version),
    }
    wrong = [f"{what} is {got}, judged was {was}" for what, (got, was) in pairs.items() if got != was]
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


def register(
    manager: AliasManager,
    judged: PromotionEvidence,
    calibration: Calibration,
    *,
    run_id: str,
    fence: Fence | None = None,
) -> tuple[int, dict[str, Any]]:
    """Check that the package loads and says what it said, and register it with what shall be known of it.

    Args:
        manager: The key's aliases and ledger.
        judged: The candidate; :func:`check_binding` has seen it.
        calibration: Its calibration.
        run_id: MLflow run of the night.
        fence: Of the run that holds the key.

    Returns:
        Its version, the same every time, and its record.

    Raises:
        InputError: It does not load in a clean process, or gives other scores; nothing is registered.
        TransientError: MLflow cannot be reached.
    """
    sbom = bill_of_materials()
    record = promotion_record(
        judged.run,
        dataset=judged.dataset,
        validation=judged.validation,
        candidate=judged.candidate,
        evaluation=judged.evaluation,
        package=judged.package,
        decision=judged.decision,
        calibration=calibration,
        sbom=sbom,
    )
    with tempfile.TemporaryDirectory(prefix="stlm-model-") as folder:
        model_dir = save_served_model(Path(judged.package.package_dir), Path(folder))
        record["load_check"] = {"num_golden_images": check_serves(model_dir, scores_needed=True)}
        registered = manager.registry.register(
            judged.run.key,
            judged.package,
            run_id=run_id,
            tags=_tags(judged, calibration.threshold),
            attachments={**_attested(manager, judged.package, record), SBOM_FILE: sbom},
            fence=fence,
            model_dir=model_dir,
        )
    verify_attestation(manager, registered)
    return registered.version, record


def update_verdict(
    manager: AliasManager, judged: PromotionEvidence, calibration: Calibration, version: int, record: dict[str, Any]
) -> None:
    """Write down that a registered candidate was judged again, against another champion say.

    Args:
        manager: The key's aliases and ledger.
        judged: The candidate as it was judged last.
        calibration: Its calibration.
        version: Its version.
        record: Its record, as :func:`register` gives it.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    tags, known = _tags(judged, calibration.threshold), manager.aliases.version_tags(version) or {}
    if all(known.get(name) == value for name, value in tags.items()):
        return
    manager.registry.attach(manager.key, version, _attested(manager, judged.package, record))
    for name, value in tags.items():
        manager.aliases.tag_version(version, name, value)


def check_version(manager: AliasManager, version: int, *, scores_needed: bool) -> None:
    """Check that a registered version is whole, and that its model loads, takes and gives what its package says.

    Args:
        manager: The key's aliases and ledger.
        version: The version.
        scores_needed: Whether a package from before scores were recorded and packages signed is refused.

    Raises:
        InputError: There is no such version, or it is altered, nobody trusted vouches for it, it does not load or
            says something else.
        TransientError: MLflow cannot be reached.
    """
    registered = manager.registry.version(manager.key, version)
    verify_attestation(manager, registered, needed=scores_needed)
    with tempfile.TemporaryDirectory(prefix="stlm-model-") as folder:
        check_serves(manager.registry.download_model(manager.key, version, Path(folder)), scores_needed=scores_needed)


def read_record(manager: AliasManager, version: int) -> dict[str, Any]:
    """What was recorded of a version when it was registered.

    Args:
        manager: The key's aliases and ledger.
        version: The version.

    Returns:
        The record, of which it is known that it is about this version's package.

    Raises:
        InputError: There is no such version, or it has no record, or one that is altered or about another package.
        TransientError: MLflow cannot be reached.
    """
    name = manager.key.registered_model
    content = manager.registry.attachment(manager.key, version, _RECORD_FILE)
    if content is None:
        raise InputError(f"version {version} of {name} was registered without a record of how it was judged")
    record: dict[str, Any] = json.loads(content)
    registered = (manager.aliases.version_tags(version) or {}).get("stlm.package_digest")
    if record.get("package_digest") != registered:
        raise InputError(
            f"the record of version {version} of {name} is about package {record.get('package_digest')}, registered "
            f"is {registered}"
        )
    return record


def verify_attestation(
    manager: AliasManager, registered: ModelRef, *, needed: bool = True
) -> VerifiedAttestation | None:
    """See, without asking anybody, that a trusted key vouches for a version's package and the record of its judgement.

    Args:
        manager: The key's aliases and ledger.
        registered: The version, as the registry gives it.
        needed: Whether a version that was registered without an attestation is refused.

    Returns:
        Who vouches for what; ``None`` where there is no attestation and none is needed.

    Raises:
        InputError: There is none, it is not by a trusted key, or it is about something else.
        TransientError: MLflow cannot be reached.
    """
    version, name = registered.version, f"version {registered.version} of {registered.name}"
    envelope = manager.registry.attachment(manager.key, version, ATTESTATION_FILE)
    if envelope is None:
        if needed:
            raise InputError(f"{name} was registered without an attestation: nobody vouches for it")
        return None
    try:
        digest = verify_package(Path(registered.package_dir))
        statement = verified_statement(envelope, manager.signing.trusted(), digest=digest)
    except WeightsError as error:
        raise InputError(f"{name}: {error}") from error
    predicate = statement["predicate"]
    record = manager.registry.attachment(manager.key, version, _RECORD_FILE) or b""
    said, there = (predicate["model_key"], predicate["record_sha256"]), (manager.key.slug, _sha256(record))
    if said != there:
        raise InputError(f"{name}: attested are key and record {said}, here are {there}")
    return VerifiedAttestation(signer=str(json.loads(envelope)["signatures"][0]["keyid"]), digest=digest)


def _attested(manager: AliasManager, package: PackageRef, record: dict[str, Any]) -> dict[str, bytes]:
    """The record of a judgement, and the signed word of this installation for it and for the package."""
    content = canonical_json(record).encode()
    envelope = attest(
        manager.signing.private_key(),
        name=manager.key.registered_model,
        digest=package.digest,
        predicate_type=_PREDICATE_TYPE,
        predicate={
            "model_key": manager.key.slug,
            "candidate_key": package.candidate_key,
            "record_sha256": _sha256(content),
        },
    )
    return {_RECORD_FILE: content, ATTESTATION_FILE: envelope}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tags(judged: PromotionEvidence, threshold: float) -> dict[str, str]:
    """Where the version comes from; a person who finds it in the registry can go back to every input."""
    decision = judged.decision
    backfill = {"stlm.backfill": judged.run.backfill} if judged.run.backfill else {}
    return {
        **backfill,
        "stlm.key": judged.run.key.slug,
        "stlm.partition": judged.run.partition,
        "stlm.data_revision": judged.dataset.revision,
        "stlm.data_tag": judged.dataset.tag,
        "stlm.dvc_md5": judged.dataset.dvc_md5,
        "stlm.validation_digest": judged.validation.digest,
        "stlm.parent_version": str(judged.candidate.parent_version or ""),
        "stlm.weights_sha256": judged.candidate.weights_sha256,
        "stlm.evaluation_digest": judged.evaluation.digest,
        "stlm.golden_digest": judged.evaluation.golden_digest,
        "stlm.verdict": decision.verdict.value,
        "stlm.judged_against": str(decision.champion_version or ""),
        "stlm.bootstrap": str(decision.bootstrap).lower(),
        "stlm.threshold": repr(threshold),
    }
