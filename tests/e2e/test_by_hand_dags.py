"""The DAGs that a person starts, run as Airflow runs them."""

import shutil
from pathlib import Path

import pytest
from airflow.sdk import DAG

from components.promotion.alias_transaction import AliasManager, open_alias_manager
from tests.components.promotion.test_manual import template  # noqa: F401  the registry with candidates
from tests.helpers.tiny_nights import KEY, TinyWorld, make_tiny_world

# What Airflow and the libraries it runs deprecate among themselves is theirs; each step's own tests are strict.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PERSON = {"key": KEY.slug, "reason": "false alarms", "by": "Ada"}


def _run(dag: DAG, **given: object) -> str:
    return str(dag.test(run_conf=PERSON | given).state)


def _manager(world: TinyWorld) -> AliasManager:
    config = world.config
    return open_alias_manager(KEY, work_dir=config.paths.work_dir, mlflow=config.mlflow, settings=config.promote)


def test_they_promote_and_roll_back_and_a_refusal_fails_the_run(
    template: Path,  # noqa: F811
    tmp_path: Path,
    airflow_database: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dags.promote_model import promote_model
    from dags.rollback_model import rollback_model

    root = tmp_path / "world"
    world = make_tiny_world(root)
    (root / "mlflow").mkdir()
    shutil.copyfile(template / "mlflow" / "mlflow.db", root / "mlflow" / "mlflow.db")
    shutil.copytree(template / "work", root / "work")
    monkeypatch.setenv("STLM_CONFIG", str(world.config_path))
    promote, rollback = promote_model(world.config), rollback_model(world.config)

    assert _run(promote, candidate="2") == "success"
    chain, posted = _manager(world).snapshot()
    assert posted.aliases == {"champion": 2, "previous": 1, "anchor": 1}
    assert (chain.entries[-1].body["by"], chain.entries[-1].body["reason"]) == (
        "Ada (account dag_test)",
        "false alarms",
    )

    assert _run(promote, candidate="3") == "failed"
    assert _manager(world).snapshot()[0].entries == chain.entries

    assert _run(rollback, to=None) == "success"
    assert _manager(world).snapshot()[1].aliases == {"champion": 1, "anchor": 1}
    assert _run(rollback, to=9) == "failed"
