"""Folders in MVTec layout: read in one order, with every fault named at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stlm.data.layout import GoldenItem, read_golden_set, read_train_normals
from stlm.errors import DataError

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def picture(path: Path, size: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)).save(path)


def mask(path: Path, size: tuple[int, int] = (6, 8), values: tuple[int, ...] = (255,)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, dtype=np.uint8)
    pixels.flat[: len(values)] = values
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    picture(root / "test" / "good" / "b.png")
    picture(root / "test" / "good" / "a.jpg")
    for name in ("1", "2"):
        picture(root / "test" / "crack" / f"{name}.png")
        mask(root / "ground_truth" / "crack" / f"{name}_mask.png")
    picture(root / "test" / "blot" / "1.png")
    mask(root / "ground_truth" / "blot" / "1_mask.png")
    return root


def test_images_come_sorted_with_their_classes_and_masks(root: Path) -> None:
    golden = read_golden_set(root)
    truth = root / "ground_truth"
    assert golden.has_masks
    assert golden.root == root
    assert golden.items == tuple(
        GoldenItem(path=root / "test" / name, defect=name.split("/")[0], mask_path=mask_path, stratum="all")
        for name, mask_path in [
            ("blot/1.png", truth / "blot" / "1_mask.png"),
            ("crack/1.png", truth / "crack" / "1_mask.png"),
            ("crack/2.png", truth / "crack" / "2_mask.png"),
            ("good/a.jpg", None),
            ("good/b.png", None),
        ]
    )


def test_a_set_without_masks_is_complete_too(root: Path) -> None:
    shutil.rmtree(root / "ground_truth")
    golden = read_golden_set(root)
    assert not golden.has_masks
    assert all(item.mask_path is None for item in golden.items)


def test_the_digest_is_of_names_and_contents_and_not_of_the_place(root: Path, tmp_path: Path) -> None:
    digest = read_golden_set(root).digest
    shutil.copytree(root, tmp_path / "elsewhere")
    assert read_golden_set(tmp_path / "elsewhere").digest == digest
    mask(root / "ground_truth" / "blot" / "1_mask.png", values=(255, 255))
    changed = read_golden_set(root).digest
    assert changed != digest
    (root / "test" / "good" / "b.png").rename(root / "test" / "good" / "c.png")
    assert read_golden_set(root).digest not in (digest, changed)


def test_hidden_files_of_a_file_manager_do_not_matter(root: Path) -> None:
    digest = read_golden_set(root).digest
    (root / "test" / "good" / ".DS_Store").write_bytes(b"x")
    (root / "ground_truth" / "crack" / ".DS_Store").write_bytes(b"x")
    assert read_golden_set(root).digest == digest


def test_all_faults_are_told_at_once(root: Path) -> None:
    truth = root / "ground_truth"
    mask(truth / "crack" / "1_mask.png", size=(5, 8))
    mask(truth / "crack" / "2_mask.png", values=())
    (truth / "blot" / "1_mask.png").unlink()
    mask(truth / "crack" / "9_mask.png")
    picture(root / "test" / "scratch" / "1.png")
    mask(truth / "scratch" / "1_mask.png", values=(3, 200))
    (root / "test" / "good" / "b.png").write_bytes(b"no image")
    (root / "test" / "good" / "notes.txt").write_text("x")
    picture(root / "test" / "good" / "a.png")
    (root / "test" / "empty").mkdir()
    picture(root / "test" / "loose.png")
    with pytest.raises(DataError) as raised:
        read_golden_set(root)
    message = str(raised.value)
    for finding in (
        "mask ground_truth/crack/1_mask.png is (5, 8), image test/crack/1.png is (6, 8)",
        "mask ground_truth/crack/2_mask.png is empty",
        "test/blot/1.png has no mask, expected ground_truth/blot/1_mask.png",
        "ground_truth/crack/9_mask.png belongs to no image",
        "mask ground_truth/scratch/1_mask.png has 3 grey levels",
        "test/good/b.png cannot be read",
        "test/good/notes.txt is not an image",
        "test/good/a.png and a.jpg would share a mask",
        "test/empty has no images",
        "test/loose.png lies outside the folder of a class",
    ):
        assert finding in message
    assert message.count(";") == 9


def test_a_published_set_may_leave_a_defect_unmarked_and_nothing_else(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask(root / "ground_truth" / "crack" / "2_mask.png", values=())
    with pytest.raises(DataError, match=r"2_mask\.png is empty"):
        read_golden_set(root)
    golden = read_golden_set(root, leave_out_unmarked=True)
    assert [item.path.relative_to(root).as_posix() for item in golden.items] == [
        "test/blot/1.png", "test/crack/1.png", "test/good/a.jpg", "test/good/b.png"
    ]  # fmt: skip
    assert "test/crack/2.png is left out" in caplog.text

    (root / "ground_truth" / "blot" / "1_mask.png").unlink()
    with pytest.raises(DataError, match=r"blot/1\.png has no mask"):
        read_golden_set(root, leave_out_unmarked=True)


def test_strata_come_from_their_file(root: Path) -> None:
    names = ["blot/1.png", "crack/1.png", "crack/2.png", "good/a.jpg", "good/b.png"]
    lines = [f"test/{name},{'left' if '1' in name else 'right'}" for name in names]
    digest = read_golden_set(root).digest
    (root / "strata.csv").write_text("\n".join(["path,stratum", *lines]) + "\n")
    golden = read_golden_set(root)
    assert [item.stratum for item in golden.items] == ["left", "left", "right", "right", "right"]
    assert golden.digest != digest
    (root / "strata.csv").write_text("\n".join(["path,stratum", *lines[1:], "test/good/z.png,left"]) + "\n")
    with pytest.raises(DataError, match=r"names test/good/z\.png.*no stratum for test/blot/1\.png"):
        read_golden_set(root)


def test_lots_stand_beside_the_strata(root: Path) -> None:
    names = ["blot/1.png", "crack/1.png", "crack/2.png", "good/a.jpg", "good/b.png"]
    lines = [f"test/{name},left,{'a' if '1' in name else ''}" for name in names]
    (root / "strata.csv").write_text("\n".join(["path,stratum,lot", *lines]) + "\n")
    assert [item.lot for item in read_golden_set(root).items] == ["a", "a", "", "", ""]
    (root / "strata.csv").write_text("path,lot\n")
    with pytest.raises(DataError, match=r"expected path,stratum\[,lot\]"):
        read_golden_set(root)


def test_no_set_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder test"):
        read_golden_set(tmp_path / "nowhere")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="no images"):
        read_golden_set(tmp_path)


def test_train_normals_are_sorted_and_not_empty(root: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        read_train_normals(root)
    picture(root / "train" / "good" / "2.png")
    picture(root / "train" / "good" / "1.png")
    assert [path.name for path in read_train_normals(root)] == ["1.png", "2.png"]
    (root / "train" / "good" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt"):
        read_train_normals(root)


@pytest.mark.parametrize(
    ("name", "num_good", "num_defective", "num_train"),
    [("mtd/exp1", 45, 53, 106), ("mtd/exp5", 48, 65, 112), ("mvtec_bottle", 20, 63, 209)],
)
def test_real_sets_are_read(name: str, num_good: int, num_defective: int, num_train: int) -> None:
    root = SHARED / name
    if not root.is_dir():
        pytest.skip(f"{root} is not on this machine")
    golden = read_golden_set(root)
    found = sum(item.defect == "good" for item in golden.items)
    assert (found, len(golden.items) - found) == (num_good, num_defective)
    assert golden.has_masks
    assert len(read_train_normals(root)) == num_train
