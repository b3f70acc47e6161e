"""Processes that want to promote at once: one wins, the others are told, and nothing is lost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.config import MlflowSettings, PromoteSettings
from components.promotion.alias_transaction import open_alias_manager
from components.promotion.registration import verify_attestation
from components.promotion.rollback import RollbackInputs, rollback
from components.steps.promote.step import PromoteInputs, promote
from tests.helpers.edges import at_once, dies_before_change
from tests.helpers.model_package import KEY, new_mlflow
from tests.helpers.postgres import mlflow_server, postgres_server
from tests.helpers.promotion import ahead, another_package, inputs_for
from tests.helpers.s3_server import S3Server

NAME = KEY.registered_model


def _candidate(root: Path, mlflow: MlflowSettings, settings: PromoteSettings, number: int) -> PromoteInputs:
    """The first is judged against nothing, the others against the first."""
    package = another_package(root / f"package-{number}", number)
    inputs = inputs_for(root, mlflow, champion=1 if number else None, package=package)
    partition = f"2026-11-{number + 1:02}"
    return replace(inputs, run=replace(inputs.run, partition=partition), settings=settings)


def _apart(action: Callable[[], object]) -> None:
    """In a process of its own, so that this one has no connection that its children would share."""
    assert not dies_before_change(1_000_000, action)


def _race(candidates: list[PromoteInputs]) -> list[str]:
    """Promote all of them at once, each in its own process; their outcomes."""
    outcomes = at_once(len(candidates), lambda number: promote(candidates[number]).to_json())
    for outcome in outcomes:
        if outcome["outcome"] == "STALE_DECISION":
            assert "the verdict was against version 1, the champion is version" in outcome["detail"]
    return sorted(outcome["outcome"] for outcome in outcomes)


def _run(tmp_path: Path, mlflow: MlflowSettings, settings: PromoteSettings, count: int) -> None:
    first, *candidates = [_candidate(tmp_path, mlflow, settings, number) for number in range(count + 1)]
    _apart(lambda: promote(first))

    outcomes = _race(candidates)

    assert outcomes == ["PROMOTED"] + ["STALE_DECISION"] * (count - 1)
    client = MlflowClient(tracking_uri=mlflow.tracking_uri, registry_uri=mlflow.tracking_uri)
    versions = client.search_model_versions(f"name = '{NAME}'")
    keys = {int(version.version): version.tags["stlm.candidate_key"] for version in versions}
    assert len(keys) == len(set(keys.values())) == count + 1
    manager = open_alias_manager(KEY, work_dir=str(tmp_path / "work"), mlflow=mlflow, settings=settings)
    chain, posted = manager.snapshot()
    assert [entry.kind for entry in chain.entries] == ["intent", "commit"] * 2
    winner = chain.entries[-1].body
    assert keys[winner["champion"]] == winner["record"]["candidate_key"]
    assert (winner["from"], winner["previous"]) == (1, 1)
    assert posted.aliases == {"champion": winner["champion"], "previous": 1, "anchor": 1}
    assert posted.tags["stlm.ledger_head"] == chain.head


@pytest.mark.chaos(
    "twenty processes promote at once, on PostgreSQL and S3", outcome="one wins, the others are told; one commit"
)
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_twenty_processes_on_postgresql_and_s3_exactly_one_wins(
    tmp_path: Path, s3: S3Server, new_store: Callable[[], str]
) -> None:
    settings = PromoteSettings(ledger=new_store(), ledger_endpoint_url=s3.endpoint_url)
    with postgres_server() as database, mlflow_server(database, tmp_path) as url:
        mlflow = MlflowSettings(tracking_uri=url, artifact_root=str(tmp_path / "artifacts"))
        _run(tmp_path, mlflow, settings, 20)


@pytest.mark.chaos("kill -9 of the step promote at every change", outcome="one version, one move, one commit")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_step_killed_at_any_boundary_ends_in_one_version_one_move_one_commit(tmp_path: Path) -> None:
    def state(root: Path, mlflow: MlflowSettings) -> dict[str, object]:
        client = MlflowClient(tracking_uri=mlflow.tracking_uri, registry_uri=mlflow.tracking_uri)
        manager = open_alias_manager(KEY, work_dir=str(root / "work"), mlflow=mlflow, settings=PromoteSettings())
        chain, posted = manager.snapshot()
        commits = [entry.body for entry in chain.entries if entry.kind == "commit"]
        assert posted.tags["stlm.ledger_head"] == chain.head
        versions = client.search_model_versions(f"name = '{NAME}'")
        assert all(
            verify_attestation(manager, manager.registry.version(KEY, int(version.version))) for version in versions
        )
        return {
            # Each world makes a key of its own, so that the signed word is another one.
            "versions": [dict(version.tags) | {"stlm.attestation_sha256": ""} for version in versions],
            "aliases": dict(posted.aliases),
            "commits": [{name: value for name, value in body.items() if name != "intent"} for body in commits],
            "runs": len(client.search_runs([e.experiment_id for e in client.search_experiments()])),
        }

    number, expected, died = 0, None, True
    while died:
        root = tmp_path / str(number)
        mlflow = new_mlflow(root / "mlflow")
        inputs = _candidate(root, mlflow, PromoteSettings(), 0)
        died = number > 0 and dies_before_change(number, lambda inputs=inputs: promote(inputs))  # type: ignore[misc]
        outcome = promote(inputs, clock=ahead(3600)).outcome
        assert outcome in {"PROMOTED", "ALREADY_PROMOTED"}
        now = state(root, mlflow)
        expected = expected or now
        assert now == expected, f"died before change {number}"
        died = died or number == 0
        number += 1
    assert number > 15


@pytest.mark.chaos("kill -9 of a roll-back at every change", outcome="the version before, moved to once")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_roll_back_killed_at_any_boundary_ends_on_the_version_before(tmp_path: Path) -> None:
    number, died, expected = 0, True, None
    while died:
        root = tmp_path / str(number)
        mlflow = new_mlflow(root / "mlflow")
        nights = [_candidate(root, mlflow, PromoteSettings(), n) for n in range(2)]
        _apart(lambda nights=nights: [promote(inputs) for inputs in nights])  # type: ignore[misc]
        asked = RollbackInputs(
            key=KEY,
            work_dir=str(root / "work"),
            mlflow=mlflow,
            settings=PromoteSettings(),
            reason="scratches",
            by="Ada",
        )
        died = number > 0 and dies_before_change(number, lambda asked=asked: rollback(asked))  # type: ignore[misc]
        result = rollback(asked, clock=ahead(3600))
        assert result.champion_version == 1
        manager = open_alias_manager(KEY, work_dir=str(root / "work"), mlflow=mlflow, settings=PromoteSettings())
        chain, posted = manager.snapshot()
        commits = [entry.body["action"] for entry in chain.entries if entry.kind == "commit"]
        now = (commits, dict(posted.aliases))
        expected = expected or now
        assert now == expected == (["promote", "promote", "rollback"], {"champion": 1, "anchor": 1})
        died = died or number == 0
        number += 1
    assert number > 10
