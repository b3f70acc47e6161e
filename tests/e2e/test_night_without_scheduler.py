"""Whole nights on a product that trains in seconds, through every real part but the scheduler."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from airflow.models.dagrun import DagRun
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError
from mlflow import MlflowClient

from components.cli.status import champion_of
from components.config import load_config
from components.core.contracts import ANCHOR_ALIAS, ModelRef
from components.core.run_records import read_night
from components.local_stack.workspace import open_workspace
from stlm.data.image_files import read_image
from stlm.serving.predictor import OnnxPredictor, TorchPredictor
from tests.helpers.model_package import new_mlflow
from tests.helpers.pickles import pickles_below
from tests.helpers.receivers import web_server
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world

# What Airflow and the libraries it runs deprecate among themselves is theirs; each step's own tests are strict.
pytestmark = pytest.mark.filterwarnings("default")

RunNight = Callable[[TinyWorld, str | None], dict[str, str]]


@pytest.fixture
def run_night(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> RunNight:
    """Runs a night with ``dag.test()``; gives the state of every task, and of the run under the name "run"."""

    def run(world: TinyWorld, night: str | None) -> dict[str, str]:
        monkeypatch.setenv("STLM_CONFIG", str(world.config_path))
        dag = _read_dag(world)
        dag_run: DagRun = dag.test(run_conf={"partition": night})
        states = {ti.task_id: str(ti.state) for ti in dag_run.get_task_instances()}
        return states | {"run": str(dag_run.state)}

    return run


def _new_world(root: Path, recipe: str = "tiny") -> TinyWorld:
    new_mlflow(root / "mlflow")
    return make_tiny_world(root, recipe=recipe)


def _read_dag(world: TinyWorld) -> DAG:
    from dags.nightly_retrain import nightly_retrain

    return nightly_retrain(world.config, world.config.models[0])


def _outputs(world: TinyWorld, night: str) -> dict[str, dict[str, Any]]:
    return {step: record.outputs or {} for step, record in read_night(world.run(night)).items()}


def _champion(world: TinyWorld) -> ModelRef | None:
    return champion_of(open_workspace(str(world.config_path), str(world.root / "state")), world.config.models[0])


def test_a_night_goes_from_landing_to_champion_and_again_to_the_same_end(tmp_path: Path, run_night: RunNight) -> None:
    world = _new_world(tmp_path)
    world.feed(NIGHTS[0])

    states = run_night(world, NIGHTS[0])

    assert set(states.values()) == {"success"}
    first = _outputs(world, NIGHTS[0])
    champion = _champion(world)
    assert champion is not None
    assert champion.version == 1

    assert set(run_night(world, NIGHTS[0]).values()) == {"success"}
    again = _outputs(world, NIGHTS[0])
    looks_at_the_registry = {"promote", "report"}
    assert {step: again[step] for step in first if step not in looks_at_the_registry} == {
        step: first[step] for step in first if step not in looks_at_the_registry
    }
    assert (first["promote"]["outcome"], again["promote"]["outcome"]) == ("PROMOTED", "ALREADY_PROMOTED")
    assert _champion(world) == champion


@pytest.mark.slow
def test_the_third_night_is_judged_against_the_champion_and_an_older_anchor(
    tmp_path: Path, run_night: RunNight
) -> None:
    world = _new_world(tmp_path)
    for night in NIGHTS:
        world.feed(night)
        assert run_night(world, night)["run"] == "success"
        if night == NIGHTS[0]:
            MlflowClient(world.config.mlflow.tracking_uri).set_registered_model_alias(
                KEY.registered_model, ANCHOR_ALIAS, "1"
            )

    second, third = (_outputs(world, night) for night in NIGHTS[1:])
    assert (second["evaluate"]["champion_version"], second["evaluate"]["anchor_version"]) == (1, 1)
    assert second["promote"]["outcome"] == "PROMOTED", second["gate"]["reasons"]
    # As long as nobody moves it, the anchor stays where it was.
    assert (third["evaluate"]["champion_version"], third["evaluate"]["anchor_version"]) == (2, 1)
    rules = {reason["rule"]: reason["verdict"] for reason in third["gate"]["reasons"]}
    assert {"champion image_auroc", "anchor image_auroc", "forgetting", "latency"} <= set(rules)
    assert "ERROR" not in rules.values(), third["gate"]["reasons"]
    page = Path(third["report"]["page_path"]).read_text(encoding="utf-8")
    section = page[page.index('<section id="nights">') : page.index('<section id="images">')]
    # Two grids of three models: each on its own night and those before it, and the champions on the next one.
    assert all(section.count(words) == 2 for words in ("v1 promoted", "v2 promoted", f'scope="row">{NIGHTS[2]}'))
    assert section.count("<td></td>") == 2
    assert "Forgetting: " in section


@pytest.mark.slow
def test_a_challenger_takes_over_after_its_night_and_nothing_that_was_written_is_a_pickle(
    tmp_path: Path, run_night: RunNight
) -> None:
    world = _new_world(tmp_path)
    setting = 'recipe = "tiny"\nshadow_nights = 1\nshadow_min_agreement = 0.0\nshadow_alarm_rate = 1.0'
    world.config_path.write_text(world.config_path.read_text().replace('recipe = "tiny"', setting))
    world = TinyWorld(root=world.root, config_path=world.config_path, config=load_config(world.config_path))
    for night in NIGHTS:
        world.feed(night)
        assert run_night(world, night)["run"] == "success"

    first, second, third = (_outputs(world, night) for night in NIGHTS)
    assert (first["shadow"]["outcome"], first["promote"]["outcome"]) == ("NO_CHALLENGER", "PROMOTED")
    assert (second["shadow"]["outcome"], second["promote"]["outcome"]) == ("NO_CHALLENGER", "CHALLENGER")
    assert second["promote"]["champion_version"] == 1
    assert (third["shadow"]["outcome"], third["promote"]["outcome"]) == ("PROMOTED", "STALE_DECISION")
    assert third["shadow"]["num_nights"] == 1
    champion = _champion(world)
    assert champion is not None
    assert champion.version == 2
    page = Path(third["report"]["page_path"]).read_text(encoding="utf-8")
    assert "Version 2 took over after its shadow nights." in page
    found = [name for name in pickles_below(tmp_path) if "checkpoint" not in name]
    assert found == []


@pytest.mark.slow
def test_isstad_runs_the_same_nights_and_its_champion_screens_and_is_carried_on(
    tmp_path: Path, run_night: RunNight
) -> None:
    world = _new_world(tmp_path, "isstad_tiny")
    for night in NIGHTS[:2]:
        world.feed(night, num_images=24)
        states = run_night(world, night)
        assert set(states.values()) == {"success"}, states

    first, second = (_outputs(world, night) for night in NIGHTS[:2])
    assert first["promote"]["outcome"] == "PROMOTED", first["gate"]["reasons"]
    assert second["promote"]["outcome"] == "PROMOTED", second["gate"]["reasons"]
    assert (second["fine_tune"]["parent_version"], second["evaluate"]["champion_version"]) == (1, 1)
    assert second["fine_tune"]["num_replay_images"] == world.config.fine_tune.replay_images
    for night in (first, second):
        assert night["export"]["error"] == ""
        assert night["export"]["num_decision_flips"] == 0
        assert night["export"]["max_score_difference"] < 1e-3
    screened = [pd.read_parquet(night["validate"]["table_path"])["screened_by"] for night in (first, second)]
    assert set(screened[0].dropna()) == {"outliers"}
    assert set(screened[1].dropna()) <= {"champion", "outliers (drift)"}
    champion = _champion(world)
    assert champion is not None
    assert champion.version == 2
    picture = read_image(world.root / "golden" / "test" / "good" / "000.png")
    by_onnx, by_torch = (
        predictor(champion.package_dir).predict([picture])[0] for predictor in (OnnxPredictor, TorchPredictor)
    )
    assert by_onnx.score == pytest.approx(by_torch.score, abs=1e-3)
    page = Path(second["report"]["page_path"]).read_text(encoding="utf-8")
    assert "masked autoencoder" in page
    assert "repair" in page


def test_a_night_with_nothing_new_succeeds_and_still_has_its_page(tmp_path: Path, run_night: RunNight) -> None:
    world = _new_world(tmp_path)

    states = run_night(world, NIGHTS[0])

    ran = {task for task, state in states.items() if state == "success"}
    assert ran == {"collect", "report", "finish", "run"}
    assert set(states.values()) == {"success", "skipped"}
    page = read_night(world.run(NIGHTS[0]))["report"].outputs
    assert page is not None
    assert Path(page["page_path"]).exists()


def test_a_failed_step_fails_the_night_the_page_names_it_and_people_are_told(
    tmp_path: Path, run_night: RunNight, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = _new_world(tmp_path)
    world.feed(NIGHTS[0], dark=True)
    monkeypatch.setenv("STLM_WEBHOOK_SECRET", "s")

    with web_server() as web:
        told = f'[notify]\nwebhook_url = "http://127.0.0.1:{web.port}/"\n'
        world.config_path.write_text(world.config_path.read_text() + told)
        world = TinyWorld(root=world.root, config_path=world.config_path, config=load_config(world.config_path))
        states = run_night(world, NIGHTS[0])

    assert states["run"] == states["validate"] == "failed"
    assert states["report"] == states["notify"] == "success"
    (body,) = web.bodies
    said = json.loads(body)
    assert (said["outcome"], said["level"], said["champion"]) == ("FAILED", "trouble", None)
    assert said["failures"][0].startswith("validate: ")
    assert {states[task] for task in ("fine_tune", "evaluate", "export", "gate", "promote", "finish")} == {
        "upstream_failed"
    }
    records = read_night(world.run(NIGHTS[0]))
    page = records["report"].outputs
    assert page is not None
    text = Path(page["page_path"]).read_text(encoding="utf-8")
    assert "validate" in text
    assert records["validate"].outcome == "FAILED"


def test_a_night_that_is_no_date_starts_no_task(tmp_path: Path, run_night: RunNight) -> None:
    with pytest.raises(ParamValidationError, match="'yesterday' is not a 'date'"):
        run_night(_new_world(tmp_path), "yesterday")
    assert not (tmp_path / "work").exists()


def test_a_run_that_names_no_night_fails_without_asking_the_clock(tmp_path: Path, run_night: RunNight) -> None:
    states = run_night(_new_world(tmp_path), None)
    assert (states["run"], states["collect"]) == ("failed", "failed")
    assert not (tmp_path / "work").exists()
