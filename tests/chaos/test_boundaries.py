"""A whole night, killed at the boundaries of each of its steps, ends as an undisturbed one."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components._promotion.desk import open_desk
from components.config import PromoteSettings
from tests.helpers.model_package import new_mlflow
from tests.helpers.night_apart import night_apart
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

REMEMBERED = ("version", "validate", "fine_tune", "evaluate", "export", "gate", "report")
INSIDE = (
    "-collect/taken.json",
    "+collect/taken.json",
    "-package/lineage.json",  # weights are there, the candidate is not
    "-held_out.json",
    "-package/manifest.json",  # exported, but not sealed
    "-ledger/stlm.tiles.line1.cam1/00000001.json",
)


def _new_world(root: Path) -> TinyWorld:
    """In the same folder each time: addresses are part of what a candidate is."""
    shutil.rmtree(root, ignore_errors=True)
    new_mlflow(root / "mlflow")
    world = make_tiny_world(root)
    world.feed(NIGHTS[0])
    return world


def _end(world: TinyWorld, outputs: Path) -> dict[str, Any]:
    """What must not depend on where processes died."""
    done = json.loads(outputs.read_text(encoding="utf-8"))
    client = MlflowClient(world.config.mlflow.tracking_uri, registry_uri=world.config.mlflow.tracking_uri)
    desk = open_desk(KEY, work_dir=world.config.paths.work_dir, mlflow=world.config.mlflow, settings=PromoteSettings())
    chain, posted = desk.look()
    assert posted.tags["stlm.ledger_head"] == chain.head
    package = Path(done["export"]["package_dir"])
    return {
        "batch": done["collect"]["batch"]["digest"],
        "dataset": done["version"],
        "validation": done["validate"],
        "candidate": done["fine_tune"]["candidate_key"],
        "steps": done["fine_tune"]["num_steps"],
        "metrics": done["evaluate"]["metrics"],
        "calibration": json.loads((package / "calibration.json").read_text()),
        "onnx": hashlib.sha256((package / "model.onnx").read_bytes()).hexdigest(),
        "verdict": done["gate"]["verdict"],
        "champion": done["promote"]["champion_version"],
        "versions": len(client.search_model_versions(f"name = '{KEY.registered_model}'")),
        "runs": len(client.search_runs([e.experiment_id for e in client.search_experiments()])),
        "aliases": dict(posted.aliases),
        "commits": [entry.body["champion"] for entry in chain.entries if entry.kind == "commit"],
        "page": Path(done["report"]["page_path"]).exists(),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("night") / "world"


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> dict[str, Any]:
    world = _new_world(place)
    outputs = night_apart(world.config_path, NIGHTS[0])
    assert outputs is not None
    end = _end(world, outputs)
    assert (end["champion"], end["versions"], end["commits"]) == (1, 1, [1])
    return end


@pytest.mark.chaos(
    "kill -9 of every step of a night, before and after its outputs are recorded", outcome="the same night; one version"
)
@pytest.mark.parametrize("when", ["-", "+"])
def test_a_night_killed_at_the_end_of_every_step_ends_as_an_undisturbed_one(
    place: Path, undisturbed: dict[str, Any], when: str
) -> None:
    world = _new_world(place)
    for step in REMEMBERED:
        folder = world.run(NIGHTS[0]).run_dir / step
        assert night_apart(world.config_path, NIGHTS[0], dies=f"{when}outputs.json") is None
        assert bool(list(folder.glob("*/outputs.json"))) == (when == "+"), step
        if when == "-":
            _finish(world, step)
    outputs = night_apart(world.config_path, NIGHTS[0])
    assert outputs is not None
    assert _end(world, outputs) == undisturbed


def _finish(world: TinyWorld, step: str) -> None:
    """The next attempt gets one step further, and dies there."""
    assert night_apart(world.config_path, NIGHTS[0], dies="+outputs.json") is None
    assert list((world.run(NIGHTS[0]).run_dir / step).glob("*/outputs.json"))


@pytest.mark.chaos(
    "kill -9 of a night within its steps, time and again", outcome="the same night; one version, one move"
)
def test_a_night_killed_within_its_steps_ends_as_an_undisturbed_one(place: Path, undisturbed: dict[str, Any]) -> None:
    world = _new_world(place)
    for where in INSIDE:
        assert night_apart(world.config_path, NIGHTS[0], dies=where) is None
    outputs = night_apart(world.config_path, NIGHTS[0])
    assert outputs is not None
    assert _end(world, outputs) == undisturbed
