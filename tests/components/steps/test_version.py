"""The version step: its command line, its memory, and the quick start's first night."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.adapters.data_repository import DataRepository
from components.core.contracts import DatasetRef, ModelKey, RunRef, to_json
from components.core.errors import InputError
from components.steps.collect.step import CollectInputs, collect
from components.steps.version.step import VersionInputs, version
from tests.helpers.landing import feed_from_folder

KEY = ModelKey(product="tile", line="line1", camera="cam1")


@pytest.fixture
def inputs(tmp_path: Path) -> VersionInputs:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("1.png", "2.png"):
        (source / name).write_bytes(name.encode() * 100)
    feed_from_folder(sorted(source.iterdir()), str(tmp_path / "landing"), KEY, "lot-a", "2026-11-01")
    run = RunRef(key=KEY, partition="2026-11-01", work_dir=str(tmp_path / "work"))
    batch = collect(CollectInputs(run=run, landing=str(tmp_path / "landing"))).batch
    assert batch is not None
    return VersionInputs(run=run, batch=batch, data_repo=str(tmp_path / "repo"), dvc_remote=str(tmp_path / "remote"))


def test_a_collected_batch_becomes_a_night_of_the_data_repository(inputs: VersionInputs, tmp_path: Path) -> None:
    reference = version(inputs)
    assert reference.tag == "tile.line1.cam1/2026-11-01"
    assert reference.digest == inputs.batch.digest
    assert reference.num_images == 2
    repository = DataRepository(Path(inputs.data_repo), inputs.dvc_remote)
    repository.fetch(reference.revision, [reference.path], tmp_path / "out")
    night = tmp_path / "out" / reference.path
    assert sorted(path.relative_to(night).as_posix() for path in night.rglob("*.png")) == ["lot-a/1.png", "lot-a/2.png"]
    assert json.loads((night / "manifest.json").read_text())["lots"][0]["lot"] == "lot-a"


def test_versioning_twice_even_without_memory_is_the_same_reference(inputs: VersionInputs) -> None:
    first = version(inputs)
    assert version(inputs) == first
    shutil.rmtree(inputs.run.run_dir / "version")
    assert version(inputs) == first


def test_the_command_line_says_the_reference_and_nothing_else(inputs: VersionInputs, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(to_json(inputs)))
    command = [sys.executable, "-m", "components.steps", "version", "--inputs", str(tmp_path / "in.json")]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert DatasetRef.from_json(json.loads(done.stdout)) == version(inputs)


def test_a_batch_whose_images_are_gone_is_an_error_for_good(inputs: VersionInputs) -> None:
    shutil.rmtree(inputs.batch.image_dir)
    with pytest.raises(InputError, match=r"lot-a/1\.png"):
        version(inputs)
    assert not list((inputs.run.run_dir / "version").glob("*/outputs.json"))
