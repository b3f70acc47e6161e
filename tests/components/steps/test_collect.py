"""Complete lots are taken once, whole and unchanged; nothing is dropped in silence."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.core.contracts import ModelKey, NightStatus, RunRef, to_json
from components.core.errors import InputError, TransientError
from components.steps.collect.step import CollectInputs, CollectOutputs, collect
from tests.helpers.landing import feed_from_folder
from tests.helpers.s3_server import S3Server

KEY = ModelKey(product="tile", line="line1", camera="cam1")


class Plant:
    """A landing zone, and a producer who fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.landing = folder / "landing"
        self.landing.mkdir(parents=True)

    def lot(self, name: str) -> Path:
        return self.landing / KEY.path / name

    def deliver(self, lot: str, date: str, *names: str) -> None:
        source = self.folder / "source" / lot
        source.mkdir(parents=True, exist_ok=True)
        for name in names:
            (source / name).write_bytes(f"{lot} {name}".encode() * 50)
        feed_from_folder([source / name for name in names], str(self.landing), KEY, lot, date)

    def edit_manifest(self, lot: str, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.lot(lot) / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    def inputs(self, partition: str) -> CollectInputs:
        run = RunRef(key=KEY, partition=partition, work_dir=str(self.folder / "work"))
        return CollectInputs(run=run, landing=str(self.landing))

    def collect(self, partition: str) -> CollectOutputs:
        return collect(self.inputs(partition))


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path)


def taken(outputs: CollectOutputs) -> dict[str, bool]:
    """Lot -> late."""
    if outputs.batch is None:
        return {}
    manifest = json.loads(Path(outputs.batch.manifest_path).read_text())
    return {lot["lot"]: lot["late"] for lot in manifest["lots"]}


def files(outputs: CollectOutputs) -> dict[str, bytes]:
    assert outputs.batch is not None
    root = Path(outputs.batch.image_dir)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_complete_lots_are_copied_byte_for_byte(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png", "2.png")
    plant.deliver("lot-b", "2026-11-01", "1.png")
    outputs = plant.collect("2026-11-01")
    assert outputs.status is NightStatus.NEW_IMAGES
    assert outputs.batch is not None
    assert (outputs.batch.num_lots, outputs.batch.num_images) == (2, 3)
    assert outputs.waiting == ()
    assert set(files(outputs)) == {"lot-a/1.png", "lot-a/2.png", "lot-b/1.png"}
    for name, content in files(outputs).items():
        assert content == (plant.landing / KEY.path / name).read_bytes()
    assert hashlib.sha256(Path(outputs.batch.manifest_path).read_bytes()).hexdigest() == outputs.batch.digest


def test_the_digest_depends_on_the_images_alone(plant: Plant, tmp_path: Path) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png", "2.png")
    other = Plant(tmp_path / "other")
    other.deliver("lot-a", "2026-11-01", "2.png", "1.png")
    other.edit_manifest("lot-a", lambda manifest: manifest["images"].reverse())
    ours, theirs = plant.collect("2026-11-01").batch, other.collect("2026-11-01").batch
    assert ours is not None
    assert theirs is not None
    assert ours.digest == theirs.digest


def test_nothing_new_is_a_result_and_looks_again_next_time(plant: Plant) -> None:
    assert plant.collect("2026-11-01").status is NightStatus.NOTHING_NEW
    plant.deliver("lot-a", "2026-11-01", "1.png")
    assert plant.collect("2026-11-01").status is NightStatus.NEW_IMAGES


def test_a_lot_without_manifest_is_left_for_later_and_said_so(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    plant.deliver("lot-b", "2026-11-01", "1.png", "2.png")
    manifest = (plant.lot("lot-b") / "manifest.json").read_bytes()
    (plant.lot("lot-b") / "manifest.json").unlink()
    first = plant.collect("2026-11-01")
    assert taken(first) == {"lot-a": False}
    assert first.waiting == ("lot lot-b has no manifest.json yet; its 2 files are left for later",)
    (plant.lot("lot-b") / "manifest.json").write_bytes(manifest)
    assert taken(plant.collect("2026-11-02")) == {"lot-b": True}


def test_lots_of_the_future_wait_for_their_night(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-02", "1.png")
    first = plant.collect("2026-11-01")
    assert first.status is NightStatus.NOTHING_NEW
    assert "dated 2026-11-02" in first.waiting[0]
    assert taken(plant.collect("2026-11-02")) == {"lot-a": False}


def test_what_a_night_took_stays_its_own_whatever_lands_later(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    first = plant.collect("2026-11-01")
    plant.deliver("lot-b", "2026-11-01", "1.png")
    second = plant.collect("2026-11-02")
    assert taken(second) == {"lot-b": True}
    assert plant.collect("2026-11-01") == first
    assert plant.collect("2026-11-02") == second


def test_a_rerun_after_the_copies_were_lost_takes_exactly_the_same(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png", "2.png")
    first = plant.collect("2026-11-01")
    before = files(first)
    plant.deliver("lot-b", "2026-11-01", "1.png")
    assert first.batch is not None
    (Path(first.batch.image_dir) / "lot-a" / "1.png").write_bytes(b"damaged")
    (Path(first.batch.image_dir) / "lot-a" / "2.png").unlink()
    Path(first.batch.manifest_path).unlink()
    assert plant.collect("2026-11-01") == first
    assert files(first) == before


def test_a_lot_that_changed_after_it_was_taken_is_refused_on_a_rerun(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    first = plant.collect("2026-11-01")
    assert first.batch is not None
    shutil.rmtree(first.batch.image_dir)
    (plant.lot("lot-a") / "1.png").write_bytes(b"another image")
    with pytest.raises(InputError, match=r"1\.png of lot lot-a"):
        plant.collect("2026-11-01")


@pytest.mark.chaos("images missing or cut short in the landing zone", outcome="refused, each named; nothing taken")
def test_missing_images_and_wrong_sizes_are_told_together_and_nothing_is_taken(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png", "2.png", "3.png")
    (plant.lot("lot-a") / "1.png").unlink()
    (plant.lot("lot-a") / "2.png").write_bytes(b"short")
    with pytest.raises(InputError, match=r"lot lot-a .*1\.png is missing.*2\.png has 5 bytes, expected 550"):
        plant.collect("2026-11-01")
    assert not list(plant.folder.rglob("taken.json"))


def test_wrong_content_of_the_right_size_is_found_while_copying(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png", "2.png")
    image = plant.lot("lot-a") / "2.png"
    expected = hashlib.sha256(image.read_bytes()).hexdigest()
    image.write_bytes(b"y" * image.stat().st_size)
    with pytest.raises(InputError, match=rf"2\.png of lot lot-a.*{expected}.*got 550 bytes"):
        plant.collect("2026-11-01")
    copies = plant.inputs("2026-11-01").run.run_dir / "collect" / "images"
    assert {path.name for path in copies.rglob("*") if path.is_file()} <= {"1.png"}
    shutil.copyfile(plant.folder / "source" / "lot-a" / "2.png", image)
    assert taken(plant.collect("2026-11-01")) == {"lot-a": False}


def test_files_that_no_manifest_lists_are_ignored_but_said(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    (plant.lot("lot-a") / "extra.png").write_bytes(b"x")
    (plant.lot("lot-a") / "sub").mkdir()
    (plant.lot("lot-a") / "sub" / "note.txt").write_bytes(b"x")
    outputs = plant.collect("2026-11-01")
    assert set(files(outputs)) == {"lot-a/1.png"}
    assert outputs.waiting == ("lot lot-a holds 2 files its manifest does not list, ignored: extra.png, sub/note.txt",)


def test_a_folder_that_is_no_lot_is_ignored_but_said(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    plant.lot(".uploading").mkdir()
    assert "line1/cam1/.uploading is ignored" in plant.collect("2026-11-01").waiting[0]


@pytest.mark.chaos("paths in the names of a manifest", outcome="refused")
@pytest.mark.parametrize(
    "name",
    ["../1.png", "/etc/passwd", "sub/1.png", "..", ".hidden.png", "a\\b.png", "a\nb.png", "x.dvc", "", "é" * 101],
)
def test_names_that_are_not_plain_file_names_are_refused(plant: Plant, name: str) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    plant.edit_manifest("lot-a", lambda manifest: manifest["images"][0].update(name=name))
    with pytest.raises(InputError, match=r"image name .* is refused"):
        plant.collect("2026-11-01")


def test_one_name_twice_is_refused_whatever_its_case(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "a.png", "A.png")
    with pytest.raises(InputError, match=r"named twice.*a\.png"):
        plant.collect("2026-11-01")


@pytest.mark.chaos("a symbolic link in a lot", outcome="refused")
def test_a_link_in_a_lot_is_refused(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    (plant.lot("lot-a") / "1.png").unlink()
    (plant.lot("lot-a") / "1.png").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="symbolic link"):
        plant.collect("2026-11-01")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "tile.line1.cam2"}, r"key is 'tile\.line1\.cam2', expected 'tile\.line1\.cam1'"),
        ({"lot": "lot-b"}, "lot is 'lot-b', expected 'lot-a'"),
        ({"date": "01.11.2026"}, "date"),
        ({"date": "2026-11-31"}, "lot-a"),
        ({"images": []}, "images is empty"),
        ({"colour": "red"}, "unknown field 'colour'"),
    ],
)
def test_a_manifest_that_does_not_fit_names_file_and_field(plant: Plant, change: dict[str, Any], message: str) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    plant.edit_manifest("lot-a", lambda manifest: manifest.update(change))
    with pytest.raises(InputError, match=message):
        plant.collect("2026-11-01")


@pytest.mark.chaos("a manifest that is still being written", outcome="tried again later")
def test_half_a_manifest_is_worth_another_try(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    manifest = plant.lot("lot-a") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    with pytest.raises(TransientError, match="not all of it yet"):
        plant.collect("2026-11-01")


def test_a_night_that_took_lots_and_never_versioned_them_is_remembered(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    plant.collect("2026-11-01")
    assert plant.collect("2026-11-02").waiting == (
        "night 2026-11-01 took lot-a but never versioned them: run that night again",
    )
    done = plant.inputs("2026-11-01").run.run_dir / "version" / "0" / "outputs.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    assert plant.collect("2026-11-02").waiting == ()


def test_other_keys_are_none_of_its_business(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    inputs = plant.inputs("2026-11-01")
    other = replace(inputs, run=replace(inputs.run, key=replace(KEY, camera="cam2")))
    assert collect(other).status is NightStatus.NOTHING_NEW
    assert taken(collect(inputs)) == {"lot-a": False}


def _killed_at(event_number: int, inputs: CollectInputs) -> bool:
    """Collect in a process that dies at its n-th change of the file system; False when it lived."""
    if (child := os.fork()) == 0:
        seen = 0

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writing or event in ("os.rename", "os.remove", "os.mkdir"):
                seen += 1
                if seen == event_number:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            collect(inputs)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.chaos("kill -9 of collect at every change of the file system", outcome="the same batch, and nothing half")
def test_a_crash_at_any_change_of_the_file_system_leads_to_the_same_end(plant: Plant) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png", "2.png")
    reference = plant.collect("2026-11-01")
    expected = files(reference)
    work = plant.folder / "work"
    number = 1
    while True:
        shutil.rmtree(work)
        died = _killed_at(number, plant.inputs("2026-11-01"))
        assert plant.collect("2026-11-01") == reference, f"after a crash at change {number}"
        assert files(reference) == expected
        assert not list(work.rglob("*.part"))
        if not died:
            break
        number += 1
    assert number > 10


def test_a_bucket_gives_the_same_batch_as_a_folder(plant: Plant, s3: S3Server, new_store: Callable[[], str]) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png", "2.png")
    local = plant.collect("2026-11-01")
    landing = f"{new_store()}/landing"
    source = sorted((plant.folder / "source" / "lot-a").iterdir())
    feed_from_folder(source, landing, KEY, "lot-a", "2026-11-01", s3_endpoint_url=s3.endpoint_url)
    run = replace(plant.inputs("2026-11-01").run, work_dir=str(plant.folder / "work-s3"))
    remote = collect(CollectInputs(run=run, landing=landing, s3_endpoint_url=s3.endpoint_url))
    assert local.batch is not None
    assert remote.batch is not None
    assert remote.batch.digest == local.batch.digest
    assert files(remote) == files(local)


def test_the_command_line_takes_and_gives_the_same_json(plant: Plant, tmp_path: Path) -> None:
    plant.deliver("lot-a", "2026-11-01", "1.png")
    inputs = plant.inputs("2026-11-01")
    (tmp_path / "in.json").write_text(json.dumps(to_json(inputs)))
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-m", "components.steps", "collect", "--inputs", str(tmp_path / "in.json")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert CollectOutputs.from_json(json.loads(done.stdout)) == collect(inputs)
    (plant.lot("lot-a") / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "work")
    plant.deliver("lot-b", "2026-11-01", "1.png")
    (plant.lot("lot-b") / "1.png").unlink()
    failed = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 65
    assert "1.png is missing" in failed.stderr
