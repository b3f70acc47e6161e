"""A challenger stands beside the champion for some nights, and takes over, or is dropped, by what they showed."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.config import MlflowSettings
from components.core.contracts import PackageRef, ShadowRef
from components.promotion.champion_state import replay_ledger
from components.steps.promote.step import promote
from components.steps.shadow.step import ShadowInputs, shadow
from tests.helpers.model_package import KEY, new_mlflow, night, write_package
from tests.helpers.promotion import inputs_for, make_champion, new_alias_manager
from tests.helpers.tiny_nights import make_tiny_world

NAME = KEY.registered_model
HIGH, LOW = 1e9, -1e9
NUM_NORMALS, NUM_GOLDEN = 4, 8


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PackageRef]:
    """The champion alarms on nothing; so does "quiet", and "loud" on everything."""
    root = tmp_path_factory.mktemp("packages")
    return {
        "champion": write_package(root / "champion", threshold=HIGH),
        "quiet": write_package(root / "quiet", seed=1, threshold=HIGH),
        "loud": write_package(root / "loud", seed=1, threshold=LOW),
    }


class Line:
    """A key with a champion and a challenger, and nights to come."""

    def __init__(self, root: Path, mlflow: MlflowSettings, packages: dict[str, PackageRef]) -> None:
        self.root = root
        self.packages = packages
        self.mlflow = mlflow

    def challenge(self, name: str) -> str:
        inputs = inputs_for(self.root, self.mlflow, seed=1, champion=1, package=self.packages[name])
        return promote(dataclasses.replace(inputs, shadow_nights=2)).outcome

    def night(self, day: int, *, min_agreement: float = 0.9, max_alarm_rate: float = 0.1) -> ShadowRef:
        run = night(self.root / "work", f"2026-11-{day:02d}")
        images = run.run_dir / "shadow" / "images" / "data" / "lot"
        images.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(day)
        names = [f"{index}.png" for index in range(NUM_NORMALS + 1)]
        for name in names:
            Image.fromarray(random.integers(0, 256, (64, 64), dtype=np.uint8)).save(images / name)
        table = self.root / f"table-{day}.parquet"
        accepted = [True] * NUM_NORMALS + [False]
        pd.DataFrame({"lot": "lot", "name": names, "accepted": accepted}).to_parquet(table)
        judged = inputs_for(self.root, self.mlflow, package=self.packages["champion"])
        return shadow(
            ShadowInputs(
                run=run,
                dataset=dataclasses.replace(judged.dataset, path="data"),
                validation=dataclasses.replace(judged.validation, table_path=str(table)),
                dvc_remote="",
                s3_endpoint_url="",
                golden=str(self.root / "golden"),
                mlflow=self.mlflow,
                settings=judged.settings,
                nights=2,
                min_agreement=min_agreement,
                max_alarm_rate=max_alarm_rate,
            )
        )

    @property
    def aliases(self) -> dict[str, int]:
        return dict(new_alias_manager(self.root / "work", self.mlflow).snapshot()[1].aliases)

    @property
    def kinds(self) -> list[str]:
        return [entry.kind for entry in new_alias_manager(self.root / "work", self.mlflow).snapshot()[0].entries]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, PackageRef]) -> Path:
    """Version 1 is champion."""
    root = tmp_path_factory.mktemp("template")
    mlflow = new_mlflow(root / "mlflow")
    make_tiny_world(root, num_good=NUM_GOLDEN // 2, num_defective=NUM_GOLDEN // 2)
    assert promote(inputs_for(root, mlflow, package=packages["champion"])).outcome == "PROMOTED"
    return root


@pytest.fixture
def line(template: Path, tmp_path: Path, packages: dict[str, PackageRef]) -> Line:
    root = tmp_path / "line"
    shutil.copytree(template, root)
    mlflow = MlflowSettings(
        tracking_uri=f"sqlite:///{root / 'mlflow' / 'mlflow.db'}", artifact_root=str(root / "mlflow" / "artifacts")
    )
    return Line(root, mlflow, packages)


def test_a_challenger_that_decides_as_the_champion_takes_over_after_its_nights(line: Line) -> None:
    assert line.challenge("quiet") == "CHALLENGER"
    assert line.aliases == {"champion": 1, "anchor": 1, "challenger": 2}
    assert line.challenge("quiet") == "CHALLENGER"  # a night that is run again
    assert line.night(2).detail == ""  # the night that taught it does not count

    first = line.night(3)
    assert (first.outcome, first.num_nights, first.agreement, first.alarm_rate) == ("SCORED", 1, 1.0, 0.0)
    assert line.night(3) == first
    last = line.night(4)

    assert (last.outcome, last.champion, last.num_nights) == ("PROMOTED", 2, 2)
    assert f"100.0% of {2 * NUM_NORMALS + NUM_GOLDEN} images decided as by the champion" in last.detail
    assert line.aliases == {"champion": 2, "previous": 1, "anchor": 1}
    assert line.kinds == ["intent", "commit", "challenge", "shadow", "shadow", "intent", "commit"]
    body = new_alias_manager(line.root / "work", line.mlflow).snapshot()[0].entries[-1].body
    assert body["reason"].startswith("verdict PROMOTE, and 2 shadow nights: ")
    assert body["record"]["shadow"]["nights"] == ["2026-11-03", "2026-11-04"]
    assert body["record"]["partition"] == "2026-11-02"
    again = line.night(4)
    assert (again.outcome, again.champion, again.num_nights, again.agreement) == ("PROMOTED", 2, 2, 1.0)
    assert line.night(5).outcome == "NO_CHALLENGER"


def test_one_that_alarms_or_disagrees_too_often_is_dropped_and_does_not_come_back(line: Line) -> None:
    line.challenge("loud")
    line.night(3)
    last = line.night(4)

    assert (last.outcome, last.alarm_rate, last.champion_alarm_rate) == ("DROPPED", 1.0, 0.0)
    assert "it decided 0.0% of the images as the champion does, below 90.0%" in last.detail
    assert "it alarmed on 100.0% of the normals, above 10.0%" in last.detail
    assert line.aliases == {"champion": 1, "anchor": 1}
    again = line.night(4)
    assert (again.outcome, again.detail) == ("DROPPED", last.detail)
    assert line.challenge("loud") == "REFUSED"
    assert line.kinds[-1] == "drop"


@pytest.mark.slow
def test_limits_that_allow_everything_let_it_in(line: Line) -> None:
    line.challenge("loud")
    line.night(3, min_agreement=0.0, max_alarm_rate=1.0)
    assert line.night(4, min_agreement=0.0, max_alarm_rate=1.0).outcome == "PROMOTED"


def test_while_one_stands_beside_the_champion_the_next_waits_and_a_new_champion_ends_it(line: Line) -> None:
    line.challenge("quiet")
    inputs = inputs_for(line.root, line.mlflow, seed=2, champion=1, package=line.packages["loud"])
    package = dataclasses.replace(inputs.package, candidate_key="7" * 64)
    inputs = inputs_for(line.root, line.mlflow, seed=2, champion=1, package=package)
    outcome = promote(dataclasses.replace(inputs, shadow_nights=2))
    assert (outcome.outcome, outcome.version) == ("REFUSED", 3)
    assert outcome.detail == "version 3 is registered; version 2 is in its shadow nights"

    make_champion(new_alias_manager(line.root / "work", line.mlflow), 3)
    last = line.night(4)
    assert last.outcome == "DROPPED"
    assert "it was judged against version 1, the champion is version 3" in last.detail
    assert "challenger" not in line.aliases


@pytest.mark.slow
def test_a_freeze_holds_it_until_somebody_unfreezes(line: Line) -> None:
    line.challenge("quiet")
    line.night(3)
    manager = new_alias_manager(line.root / "work", line.mlflow)
    with manager.transaction("tests") as transaction:
        transaction.note("freeze", by="Ada", reason="audit")
    last = line.night(4)
    assert last.outcome == "HELD"
    assert "audit (by Ada" in last.detail
    assert line.aliases["challenger"] == 2
    with manager.transaction("tests") as transaction:
        transaction.note("unfreeze", by="Ada", reason="done")
    assert line.night(5).outcome == "PROMOTED"


@pytest.mark.slow
def test_the_first_model_of_a_key_has_nobody_to_stand_beside(tmp_path: Path, packages: dict[str, PackageRef]) -> None:
    inputs = inputs_for(tmp_path, new_mlflow(tmp_path / "mlflow"), package=packages["quiet"])
    assert promote(dataclasses.replace(inputs, shadow_nights=2)).outcome == "PROMOTED"


def test_a_challenger_set_by_hand_in_mlflow_is_taken_away(line: Line) -> None:
    manager = new_alias_manager(line.root / "work", line.mlflow)
    manager.aliases.set_alias("challenger", 1)
    with manager.transaction("next") as transaction:
        assert transaction.repairs == ["alias 'challenger' stood at version 1, by the ledger it is no version: moved"]
    assert replay_ledger(manager.snapshot()[0].entries).challenger is None
