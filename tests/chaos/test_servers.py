"""Real servers that are killed in the middle of a promotion, and come back: one version, one move, one commit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components.config import MlflowSettings, PromoteSettings
from components.core.errors import TransientError
from components.promotion.alias_transaction import open_alias_manager
from components.steps.promote.step import PromoteInputs, promote
from tests.helpers.edges import watched
from tests.helpers.model_package import KEY
from tests.helpers.mortal import mortal
from tests.helpers.postgres import mlflow_server, postgres_server
from tests.helpers.promotion import ahead, another_package, inputs_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAME = KEY.registered_model
CHANGES = ("create_model_version", "set_registered_model_alias", "set_registered_model_tag")


def _candidate(root: Path, mlflow: MlflowSettings, number: int) -> PromoteInputs:
    """The first is judged against nothing, the second against the first."""
    package = another_package(root / f"package-{number}", number)
    inputs = inputs_for(root, mlflow, champion=1 if number else None, package=package)
    return replace(inputs, run=replace(inputs.run, partition=f"2026-11-{number + 1:02}"))


def _once(change: str, act: Callable[[], object]) -> Callable[[str, tuple[Any, ...]], None]:
    """A hook that acts at the first change of this name."""
    done = False

    def hook(name: str, args: tuple[Any, ...]) -> None:
        nonlocal done
        if name == change and not done:
            done = True
            act()

    return hook


def _check_one_move_each(root: Path, mlflow: MlflowSettings) -> None:
    client = MlflowClient(tracking_uri=mlflow.tracking_uri, registry_uri=mlflow.tracking_uri)
    assert {int(version.version) for version in client.search_model_versions(f"name = '{NAME}'")} == {1, 2}
    manager = open_alias_manager(KEY, work_dir=str(root / "work"), mlflow=mlflow, settings=PromoteSettings())
    chain, posted = manager.snapshot()
    assert posted.aliases == {"champion": 2, "previous": 1, "anchor": 1}
    assert posted.tags["stlm.ledger_head"] == chain.head
    assert [entry.body["champion"] for entry in chain.entries if entry.kind == "commit"] == [1, 2]
    assert len(client.search_runs([e.experiment_id for e in client.search_experiments()])) == 2


@pytest.mark.chaos(
    "MLflow's server is killed between creating a version and moving the alias",
    outcome="worth a retry, the old champion serves; then one version, one move, one commit",
)
def test_an_mlflow_that_dies_before_the_alias_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with mlflow_server(database, tmp_path) as url, mortal(url) as server:
        mlflow = MlflowSettings(tracking_uri=url, artifact_root=str(tmp_path / "artifacts"))
        first, second = (_candidate(tmp_path, mlflow, number) for number in range(2))
        assert promote(first).outcome == "PROMOTED"
        with watched(before=_once("set_registered_model_alias", server.kill)), pytest.raises(TransientError):
            promote(second)
        with pytest.raises(TransientError, match="cannot be reached"):
            promote(second, clock=ahead(1800))

        server.revive()
        client = MlflowClient(tracking_uri=url, registry_uri=url)
        assert int(client.get_model_version_by_alias(NAME, "champion").version) == 1
        assert promote(second, clock=ahead(3600)).outcome == "PROMOTED"
        assert promote(second, clock=ahead(7200)).outcome == "ALREADY_PROMOTED"
        _check_one_move_each(tmp_path, mlflow)


@pytest.mark.chaos(
    "PostgreSQL is killed and restarted in the middle of a promotion",
    outcome="worth a retry at most; then one version, one move, one commit",
)
def test_a_postgresql_that_restarts_under_a_promotion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with postgres_server() as database, mlflow_server(database, tmp_path) as url, mortal(database) as server:
        mlflow = MlflowSettings(tracking_uri=url, artifact_root=str(tmp_path / "artifacts"))
        first, second = (_candidate(tmp_path, mlflow, number) for number in range(2))
        assert promote(first).outcome == "PROMOTED"

        pending, attempts, outcome = set(CHANGES), 0, ""

        def restart(name: str, args: tuple[Any, ...]) -> None:
            if name in pending:
                pending.remove(name)
                server.restart()

        with watched(before=restart):
            while not outcome:
                before, attempts = len(pending), attempts + 1
                try:
                    outcome = promote(second, clock=ahead(3600 * attempts)).outcome
                except TransientError:
                    assert len(pending) < before
        assert pending == set()
        assert promote(second, clock=ahead(3600 * attempts)).outcome == "ALREADY_PROMOTED"
        _check_one_move_each(tmp_path, mlflow)
