"""Desks and champions for tests, without the steps that lead to them."""

import dataclasses
import datetime as dt
import hashlib
import json
from pathlib import Path
from typing import Any

from components.adapters.lease import Clock, utc_now
from components.config import MlflowSettings, PromoteSettings
from components.core.contracts import (
    CandidateRef,
    DatasetRef,
    EvaluationRef,
    GateDecision,
    PackageRef,
    Reason,
    ValidationRef,
    Verdict,
)
from components.promotion.alias_transaction import AliasManager, open_alias_manager
from components.steps.promote.step import PromoteInputs
from stlm.serving.package import seal_package
from tests.helpers.model_package import KEY, night, write_package

__all__ = ["ahead", "another_package", "inputs_for", "make_champion", "new_alias_manager"]


def new_alias_manager(
    work_dir: Path, mlflow: MlflowSettings, *, ledger: str = "", endpoint_url: str = "", clock: Clock = utc_now
) -> AliasManager:
    """The alias manager of the tests' key."""
    settings = PromoteSettings(ledger=ledger, ledger_endpoint_url=endpoint_url)
    return open_alias_manager(KEY, work_dir=str(work_dir), mlflow=mlflow, settings=settings, clock=clock)


def make_champion(manager: AliasManager, version: int, *, partition: str = "2026-11-01", **record: Any) -> None:
    """A promotion as the step makes it, of a version that is registered."""
    with manager.transaction("tests") as transaction:
        transaction.move(
            version,
            action="promote",
            anchor=transaction.state.anchor or version,
            by="gate",
            reason="verdict PROMOTE",
            record={"partition": partition, **record},
        )


def inputs_for(
    tmp_path: Path,
    mlflow: MlflowSettings,
    *,
    seed: int = 0,
    champion: int | None = None,
    verdict: Verdict = Verdict.PROMOTE,
    package: PackageRef | None = None,
) -> PromoteInputs:
    """A night's outputs up to the verdict, about a package of its own; each seed is another candidate and night."""
    package = package or write_package(tmp_path / f"package-{seed}", seed=seed)
    refused = Reason(rule="floor", verdict=verdict, detail="image_auroc 0.61 is below 0.70")
    evaluation = EvaluationRef(
        report_path="",
        scores_path="",
        digest="e" * 64,
        golden_digest="f" * 64,
        candidate_key=package.candidate_key,
        champion_version=champion,
        synthetic_pixels=True,
        metrics={"image_auroc": 0.9},
        champion_metrics={},
    )
    return PromoteInputs(
        run=night(tmp_path / "work", f"2026-11-0{seed + 1}"),
        package=package,
        decision=GateDecision(
            verdict=verdict,
            reasons=(Reason(rule="parity", verdict=Verdict.PROMOTE, detail="parity holds"), refused),
            candidate_key=package.candidate_key,
            champion_version=champion,
            bootstrap=champion is None,
            evaluation_digest=evaluation.digest,
            package_digest=package.digest,
        ),
        dataset=DatasetRef(
            repo="",
            revision="a" * 40,
            tag="night/cells.line1.cam1/2026-11-01",
            dvc_md5="b" * 32,
            path="",
            digest="",
            num_images=40,
        ),
        validation=ValidationRef(
            table_path="",
            docs_path="",
            digest="d" * 64,
            num_accepted=40,
            num_quarantined=0,
            num_rejected=0,
            rejected_lots=(),
            reasons={},
            champion=None,
        ),
        evaluation=evaluation,
        candidate=CandidateRef(
            package_dir="",
            candidate_key=package.candidate_key,
            weights_sha256="9" * 64,
            parent_version=champion,
            num_steps=1,
            num_new_images=40,
            num_replay_images=0,
            training_seconds=1.0,
            curves_path="",
        ),
        mlflow=mlflow,
        settings=PromoteSettings(),
    )


def another_package(folder: Path, number: int) -> PackageRef:
    """A package that differs from every other number's, without the time that it takes to export one."""
    package = write_package(folder)
    (folder / "lineage.json").write_text(json.dumps({"seed": number, "recipe": "tiny", "config_digest": "c" * 64}))
    candidate_key = hashlib.sha256(f"candidate {number}".encode()).hexdigest()
    return dataclasses.replace(package, candidate_key=candidate_key, digest=seal_package(folder))


def ahead(seconds: float) -> Clock:
    """A clock that is so far ahead of this machine's."""
    return lambda: utc_now() + dt.timedelta(seconds=seconds)
