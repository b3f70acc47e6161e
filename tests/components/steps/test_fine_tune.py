"""Training a candidate through its real door: data from DVC, a kill half-way, and a second night with replay."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from components.core.atomic_files import write_json
from components.core.contracts import CandidateRef, ModelRef, ValidationRef
from components.core.errors import EXIT_TRANSIENT_ERROR, InputError
from components.core.step_runner import step_dir
from components.steps.collect.step import CollectInputs, collect
from components.steps.fine_tune.step import FineTuneInputs, fine_tune
from components.steps.version.step import VersionInputs, version
from stlm.recipes import RECIPES, isstad_tiny
from tests.helpers.tiny_nights import NIGHTS, TinyWorld, make_tiny_world

pytestmark = pytest.mark.filterwarnings("default")


def inputs_for(
    world: TinyWorld, night: str, champion: ModelRef | None = None, *, screened: Sequence[dict[str, object]] = ()
) -> FineTuneInputs:
    """A fed, versioned night whose images are all accepted but one."""
    run, paths = world.run(night), world.config.paths
    batch = collect(CollectInputs(run=run, landing=paths.landing)).batch
    assert batch is not None
    dataset = version(VersionInputs(run=run, batch=batch, data_repo=paths.data_repo, dvc_remote=paths.dvc_remote))
    lots = json.loads(Path(batch.manifest_path).read_text(encoding="utf-8"))["lots"]
    rows = [
        {
            "lot": lot["lot"],
            "name": image["name"],
            "sha256": image["sha256"],
            "part": image["part"],
            "accepted": True,
            "rejected": False,
            "reasons": "",
            "champion_excess": -1.0,
            "outlier_excess": float("nan"),
            "screen_clear": False,
        }
        for lot in lots
        for image in lot["images"]
    ]
    rows[0] |= {"accepted": False, "reasons": "too dark", "champion_excess": float("nan")}
    for row, changes in zip(rows[1:], screened, strict=False):
        row |= {"accepted": False, "reasons": "looks defective to the champion", "champion_excess": 0.5, **changes}
    table = run.run_dir / "table.parquet"
    pd.DataFrame(rows).to_parquet(table)
    validation = ValidationRef(
        table_path=str(table),
        docs_path="",
        digest=f"validated {night}",
        num_accepted=len(rows) - 1,
        num_quarantined=1,
        num_rejected=0,
        rejected_lots=(),
        reasons={},
        champion=champion,
    )
    return FineTuneInputs(
        run=run,
        dataset=dataset,
        validation=validation,
        dvc_remote=paths.dvc_remote,
        recipe="tiny",
        settings=world.config.fine_tune,
    )


def champion_from(candidate: CandidateRef) -> ModelRef:
    return ModelRef(
        name="stlm.tiles.line1.cam1",
        version=1,
        candidate_key=candidate.candidate_key,
        package_dir=candidate.package_dir,
    )


def test_a_first_night_trains_from_the_teacher_and_a_second_from_the_champion(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0], num_images=20)
    world.feed(NIGHTS[1], num_images=12)
    first_inputs = inputs_for(world, NIGHTS[0])

    first = fine_tune(first_inputs)
    second = fine_tune(inputs_for(world, NIGHTS[1], champion_from(first)))

    assert first.parent_version is None
    assert first.num_replay_images == 0
    # 19 accepted, a sixth of them held out, but never fewer than four.
    assert first.num_new_images == 15
    assert second.parent_version == 1
    assert second.num_replay_images == world.config.fine_tune.replay_images
    assert second.num_steps < first.num_steps
    replay = json.loads((Path(second.package_dir) / "replay.json").read_text(encoding="utf-8"))
    assert len(replay["training"]) == world.config.fine_tune.replay_images
    assert {image["night"] for image in replay["training"]} == set(NIGHTS[:2])
    held_out = json.loads((Path(second.package_dir).parent / "held_out.json").read_text(encoding="utf-8"))
    assert all(Path(image["path"]).exists() for image in held_out)
    assert set(held_out[0]) == {"path", "sha256", "night", "part", "doubtful"}
    assert not {i["sha256"] for i in held_out} & {i["sha256"] for i in replay["training"]}


def test_what_screening_doubted_is_calibrated_on_and_what_it_was_sure_of_is_not(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0], num_images=20)
    settings = dataclasses.replace(world.config.fine_tune, held_out_share=0.999)
    also_dark = {"reasons": "too dark;looks defective to the champion"}
    inputs = inputs_for(world, NIGHTS[0], screened=[{}, {}, {"screen_clear": True}, also_dark, {"rejected": True}])
    candidate = fine_tune(dataclasses.replace(inputs, settings=settings))

    replayed = json.loads((Path(candidate.package_dir) / "replay.json").read_text(encoding="utf-8"))
    names = [image["path"] for image in replayed["held_out"] if image["doubtful"]]
    assert len(names) == 1  # of two, one is left out as if it were to be learnt
    listed = json.loads((Path(candidate.package_dir).parent / "held_out.json").read_text(encoding="utf-8"))
    assert any(entry["path"].endswith(names[0]) for entry in listed)
    learnt = json.loads((Path(candidate.package_dir).parent / "training.json").read_text(encoding="utf-8"))
    assert not any(entry["path"].endswith(names[0]) for entry in learnt)


def test_a_second_call_returns_the_candidate_without_training(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0])
    inputs = inputs_for(world, NIGHTS[0])
    first = fine_tune(inputs)
    weights = Path(first.package_dir) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert fine_tune(inputs) == first
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            signal.SIGKILL,
            marks=pytest.mark.chaos("kill -9 of fine_tune", outcome="resumed; the same weights bit by bit"),
        ),
        pytest.param(
            signal.SIGTERM,
            marks=[
                pytest.mark.slow,
                pytest.mark.chaos(
                    "SIGTERM to fine_tune", outcome="saves and ends in 30 s; resumed; the same weights bit by bit"
                ),
            ],
        ),
    ],
)
def test_a_killed_training_goes_on_and_ends_with_the_same_weights(tmp_path: Path, how: signal.Signals) -> None:
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0], num_images=60)
    undisturbed = inputs_for(world, NIGHTS[0])
    inputs = dataclasses.replace(
        undisturbed, settings=dataclasses.replace(undisturbed.settings, checkpoint_seconds=0.0)
    )
    write_json(tmp_path / "inputs.json", inputs)
    command = [sys.executable, "-m", "components.steps", "fine_tune", "--inputs", str(tmp_path / "inputs.json")]
    checkpoint = step_dir("fine_tune", inputs) / "checkpoint.pt"

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)

    assert process.returncode == (EXIT_TRANSIENT_ERROR if how is signal.SIGTERM else -signal.SIGKILL), errors
    assert checkpoint.exists()
    assert not (checkpoint.parent / "outputs.json").exists()
    resumed = fine_tune(inputs)
    assert resumed.weights_sha256 == fine_tune(undisturbed).weights_sha256


def test_a_night_without_enough_accepted_images_says_so(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0], num_images=2)
    with pytest.raises(InputError, match="expected at least 2 accepted images, got 1"):
        fine_tune(inputs_for(world, NIGHTS[0]))


def test_another_network_than_the_champions_is_refused(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0])
    world.feed(NIGHTS[1])
    first = fine_tune(inputs_for(world, NIGHTS[0]))
    inputs = dataclasses.replace(inputs_for(world, NIGHTS[1], champion_from(first)), recipe="lite")
    with pytest.raises(InputError, match="is another network than the champion's"):
        fine_tune(inputs)


def test_an_isstad_night_resumes_its_champion_and_refuses_that_of_another_network(tmp_path: Path) -> None:
    world = make_tiny_world(tmp_path)
    for night in NIGHTS[:2]:
        world.feed(night)
    inputs = [dataclasses.replace(inputs_for(world, night), recipe="isstad_tiny") for night in NIGHTS[:2]]
    first = fine_tune(inputs[0])
    validation = dataclasses.replace(inputs[1].validation, champion=champion_from(first))
    second = fine_tune(dataclasses.replace(inputs[1], validation=validation))
    assert (second.parent_version, second.num_replay_images) == (1, world.config.fine_tune.replay_images)
    curves = json.loads(Path(second.curves_path).read_text(encoding="utf-8"))
    assert set(curves) == {"masked_autoencoder", "repair"}
    with pytest.raises(InputError, match="is another network than the champion's"):
        fine_tune(dataclasses.replace(inputs[1], validation=validation, recipe="tiny"))


def test_the_published_isstad_asks_for_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its start, with the network of the tests: the published one takes seconds to make.
    small = dataclasses.replace(isstad_tiny(), model=dataclasses.replace(isstad_tiny().model, start="mae_checkpoint"))
    monkeypatch.setitem(RECIPES, "isstad_paper", lambda: small)
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0])
    with pytest.raises(InputError, match=r"set fine_tune\.teacher_checkpoint"):
        fine_tune(dataclasses.replace(inputs_for(world, NIGHTS[0]), recipe="isstad_paper"))


@pytest.mark.chaos("a GPU asked for where there is none", outcome="refused at once; the CPU only where allowed")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    world = make_tiny_world(tmp_path)
    world.feed(NIGHTS[0])
    inputs = inputs_for(world, NIGHTS[0])
    inputs = dataclasses.replace(inputs, settings=dataclasses.replace(inputs.settings, device="cuda"))
    with pytest.raises(InputError, match="torch sees no GPU"):
        fine_tune(inputs)
