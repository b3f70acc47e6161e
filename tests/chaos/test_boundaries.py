"""A whole night, killed at the boundaries of each of its steps, ends as an undisturbed one."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.model_package import new_mlflow
from tests.helpers.night_apart import night_apart
from tests.helpers.tiny_nights import NIGHTS, TinyWorld, make_tiny_world

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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("night") / "world"


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> dict[str, Any]:
    world = _new_world(place)
    end = night_apart(world.config_path, NIGHTS[0])
    assert (end["champion"], end["versions"], end["commits"]) == (1, 1, [1])
    # A process that has trained before rounds a map's last digit otherwise than a fresh one.
    return end | {"metrics": pytest.approx(end["metrics"], abs=1e-6)}


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
        night_apart(world.config_path, NIGHTS[0], dies=f"{when}outputs.json")
        assert bool(list(folder.glob("*/outputs.json"))) == (when == "+"), step
        if when == "-":
            _finish(world, step)
    assert night_apart(world.config_path, NIGHTS[0]) == undisturbed


def _finish(world: TinyWorld, step: str) -> None:
    """The next attempt gets one step further, and dies there."""
    night_apart(world.config_path, NIGHTS[0], dies="+outputs.json")
    assert list((world.run(NIGHTS[0]).run_dir / step).glob("*/outputs.json"))


@pytest.mark.chaos(
    "kill -9 of a night within its steps, time and again", outcome="the same night; one version, one move"
)
def test_a_night_killed_within_its_steps_ends_as_an_undisturbed_one(place: Path, undisturbed: dict[str, Any]) -> None:
    world = _new_world(place)
    for where in INSIDE:
        night_apart(world.config_path, NIGHTS[0], dies=where)
    assert night_apart(world.config_path, NIGHTS[0]) == undisturbed
