"""The quick start's data: the same everywhere, with every planted trouble, and delivered like a producer would."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from components.adapters.storage import open_storage
from components.config import ValidateSettings
from components.core.contracts import RunRef
from components.core.errors import InputError
from components.quickstart import KEY, NIGHTS, corruptions, feed_landing, materialise
from components.steps.collect.step import CollectInputs, collect
from stlm.data.layout import read_golden_set
from tests.helpers.landing import feed_from_folder
from tests.helpers.s3_server import S3Server

ROOT = Path(__file__).resolve().parents[3]
GOOD_KINDS = {"normal", "normal, lot without manifest"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quickstart") / "data"
    materialise(target)
    return target


def truth(data: Path) -> dict[str, dict[str, str]]:
    images: dict[str, dict[str, str]] = json.loads((data / "planted.json").read_text())["images"]
    return images


def landing(data: Path) -> Path:
    return data / "landing" / KEY.path


def of_kind(data: Path, kind: str) -> list[bytes]:
    return [(landing(data) / name).read_bytes() for name, fact in truth(data).items() if fact["kind"] == kind]


def test_three_nights_a_golden_set_and_the_truth(data: Path) -> None:
    nights = Counter(fact["night"] for fact in truth(data).values())
    assert nights == {NIGHTS[0]: 249, NIGHTS[1]: 86, NIGHTS[2]: 87}
    kinds = Counter(fact["kind"] for fact in truth(data).values())
    assert kinds["normal"] == 236 + 70 + 78
    assert kinds["defective"] == 12
    assert kinds["normal, lot without manifest"] == 8
    golden = Counter(item.defect for item in read_golden_set(data / "golden").items)
    assert golden == {"good": 188, "defective": 301}
    on_disk = {path.relative_to(landing(data)).as_posix() for path in landing(data).rglob("*.png")}
    assert on_disk == set(truth(data))


def test_making_them_again_changes_nothing_and_anything_else_there_is_refused(data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    materialise(data)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    stray = data / "stray.txt"
    stray.write_text("mine")
    try:
        with pytest.raises(InputError, match="remove it"):
            materialise(data)
    finally:
        stray.unlink()


def test_dvc_status_is_clean_after_the_command_in_a_fresh_clone(data: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "data.dvc"):
        (clone / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, clone / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", "init", "-q"], cwd=clone, env=environment, check=True)
    shutil.copytree(data, clone / "data")

    def dvc_status() -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--json"],
            cwd=clone, env=environment, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    assert dvc_status() == {}
    (clone / "data" / "golden" / "test" / "good" / "extra.png").write_bytes(b"x")
    assert "data.dvc" in dvc_status()


def test_file_names_tell_nothing(data: Path) -> None:
    for name in truth(data):
        lot, file = name.split("/")
        assert file == f"{lot}-{int(file[-8:-4]):04d}.png"


def test_golden_images_and_landing_normals_are_strangers(data: Path) -> None:
    golden = {path.name for path in (data / "golden").rglob("*.png")}
    for fact in truth(data).values():
        if fact["kind"] != "copy of a golden image":
            assert Path(fact["cell"]).name not in golden


def test_every_trouble_is_what_it_says(data: Path, tmp_path: Path) -> None:
    def opened(content: bytes) -> Image.Image:
        path = tmp_path / "image.png"
        path.write_bytes(content)
        with Image.open(path) as image:
            image.load()
            return image

    whole = {hashlib.sha256(content).hexdigest() for content in of_kind(data, "normal")}
    for content in of_kind(data, "truncated"):
        with pytest.raises(OSError, match="truncated"):
            opened(content)
    for content in of_kind(data, "text") + of_kind(data, "empty"):
        with pytest.raises(UnidentifiedImageError):
            opened(content)
    assert all(opened(content).mode == "I;16" for content in of_kind(data, "16-bit"))
    assert all(opened(content).size == (300, 240) for content in of_kind(data, "wrong size"))
    assert all(np.asarray(opened(content)).max() <= 2 for content in of_kind(data, "black"))
    for kind in ("exact duplicate", "exact duplicate of an earlier night"):
        (content,) = of_kind(data, kind)
        assert hashlib.sha256(content).hexdigest() in whole
    for kind in ("near duplicate", "near duplicate of an earlier night"):
        (content,) = of_kind(data, kind)
        (cell,) = [fact["cell"] for fact in truth(data).values() if fact["kind"] == kind]
        (original,) = [n for n, fact in truth(data).items() if (fact["kind"], fact["cell"]) == ("normal", cell)]
        near = np.asarray(opened(content)).astype(int)
        with Image.open(landing(data) / original) as image:
            assert 0 < np.abs(near - np.asarray(image)).max() <= 1
    (copy,) = of_kind(data, "copy of a golden image")
    assert copy in {path.read_bytes() for path in (data / "golden" / "test" / "good").iterdir()}


def test_no_lot_holds_so_much_trouble_that_it_would_be_rejected_whole(data: Path) -> None:
    bad, total = Counter[str](), Counter[str]()
    for name, fact in truth(data).items():
        total[name.split("/")[0]] += 1
        bad[name.split("/")[0]] += fact["kind"] not in GOOD_KINDS
    shares = {lot: bad[lot] / total[lot] for lot in total}
    # Half of the limit, to leave room for what the screening takes by mistake.
    assert max(shares.values()) < ValidateSettings().max_quarantined_share / 2, shares


def test_nights_are_delivered_and_collected_like_real_ones(data: Path, tmp_path: Path) -> None:
    collected = []
    for night in NIGHTS:
        for _ in range(2):
            lots = feed_landing(data / "landing", str(tmp_path / "landing"), KEY, night)
        assert all(lot.startswith(night.replace("-", "")) for lot in lots)
        run = RunRef(key=KEY, partition=night, work_dir=str(tmp_path / "work"))
        outputs = collect(CollectInputs(run=run, landing=str(tmp_path / "landing")))
        assert outputs.batch is not None
        collected.append((outputs.batch.num_lots, outputs.batch.num_images))
        assert any("20261102-c has no manifest.json" in line for line in outputs.waiting) == (night != NIGHTS[0])
    assert collected == [(3, 249), (2, 78), (2, 87)]


def test_a_night_that_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2026-12-24"):
        feed_landing(data / "landing", str(tmp_path / "landing"), KEY, "2026-12-24")
    with pytest.raises(InputError, match="must be named"):
        feed_from_folder([], str(tmp_path / "landing"), KEY, "../lot", "2026-11-01")


def test_a_night_can_be_delivered_into_a_bucket(data: Path, s3: S3Server, new_store: Callable[[], str]) -> None:
    bucket = new_store()
    feed_landing(data / "landing", bucket, KEY, NIGHTS[1], s3_endpoint_url=s3.endpoint_url)
    storage = open_storage(bucket, endpoint_url=s3.endpoint_url)
    assert len(storage.files(KEY.path)) == 86 + 2
    name = f"{KEY.path}/20261102-a/manifest.json"
    assert storage.read(name) == (data / "landing" / name).read_bytes()


@given(arrays(st.sampled_from([np.uint8, np.uint16]), array_shapes(min_dims=2, max_dims=2, max_side=300)))
def test_a_png_without_a_compressor_reads_back_as_it_was(pixels: NDArray[Any]) -> None:
    import io

    with Image.open(io.BytesIO(corruptions.png(pixels))) as image:
        assert image.mode == ("L" if pixels.dtype == np.uint8 else "I;16")
        assert (np.asarray(image) == pixels).all()


def test_blur_keeps_what_is_flat_and_takes_detail_from_the_rest() -> None:
    flat = np.full((40, 50), 137, dtype=np.uint8)
    assert (corruptions.blurred(flat) == flat).all()
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.ptp(corruptions.blurred(checkers)) <= 3
