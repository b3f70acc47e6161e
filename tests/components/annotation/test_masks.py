"""Masks are proposed from a map, and enter the golden set only by a person's yes, in a form the next night can read."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.annotation.masks import MasksInputs, accept_masks, masks
from components.annotation.review import Review, ReviewRecord
from components.cli import main as console
from components.config.zero_shot import ZeroShotSettings
from components.core.errors import EXIT_INPUT_ERROR, InputError
from stlm.data.layout import read_golden_set
from tests.components.annotation.test_screen import promote_tiny, write_images
from tests.helpers.model_package import new_mlflow
from tests.helpers.tiny_nights import KEY, TinyWorld, make_tiny_world, texture


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A key with a champion, confirmed defects, and its golden set with masks."""

    world: TinyWorld
    folder: Path
    golden: Path

    def inputs(self, **changes: Any) -> MasksInputs:
        return replace(
            MasksInputs(
                key=KEY,
                work_dir=self.world.config.paths.work_dir,
                folder=str(self.folder),
                defect="dent",
                mlflow=self.world.config.mlflow,
                settings=ZeroShotSettings(device="cpu"),
            ),
            **changes,
        )

    def decide(self, review: Review, decisions: dict[str, str], **changes: Any) -> Path:
        path = self.world.root / "decisions.json"
        value = {"kind": "masks", "key": KEY.slug, "review": review.digest, "decisions": decisions}
        path.write_text(json.dumps(value | changes))
        return path

    def accept(self, path: Path) -> Any:
        return accept_masks(path, work_dir=self.world.config.paths.work_dir, key=KEY, golden=str(self.golden))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    world = make_tiny_world(tmp_path, num_good=3, num_defective=3)
    new_mlflow(tmp_path / "mlflow")
    promote_tiny(world)
    write_images(tmp_path / "defects", 4, first=200)
    return Shop(world=world, folder=tmp_path / "defects", golden=tmp_path / "golden")


def record_of(review: Review) -> ReviewRecord:
    return ReviewRecord.from_json(json.loads((Path(review.folder) / "record.json").read_text()))


def test_every_image_gets_a_proposal_whatever_its_score(shop: Shop) -> None:
    review = masks(shop.inputs())

    assert (review.num_images, review.num_masks) == (4, 4)
    assert masks(shop.inputs()) == review
    page = Path(review.page_path).read_text()
    assert "defects of class dent" in page
    assert "stlm masks --key tiles.line1.cam1 --accept decisions-masks-tiles.line1.cam1.json" in page


def test_accepted_masks_and_their_images_enter_the_golden_set(shop: Shop) -> None:
    before = read_golden_set(shop.golden)
    review = masks(shop.inputs())
    path = shop.decide(review, {"200.png": "accept", "201.png": "accept", "202.png": "reject"})

    done = shop.accept(path)

    after = read_golden_set(shop.golden)
    assert (done.num_masks, done.num_images, done.golden_digest) == (2, 2, after.digest)
    assert len(after.items) == len(before.items) + 2
    added = [item for item in after.items if item.defect == "dent"]
    assert [item.path.name for item in added] == ["200.png", "201.png"]
    for item in added:
        assert item.path.read_bytes() == (shop.folder / item.path.name).read_bytes()
        assert item.mask_path is not None
        shown = next(entry.mask for entry in record_of(review).entries if entry.name == item.path.name)
        assert item.mask_path.read_bytes() == (Path(review.folder) / shown).read_bytes()
    assert shop.accept(path) == replace(done, num_images=0)
    assert read_golden_set(shop.golden).digest == after.digest


def test_a_golden_set_without_masks_gets_all_of_them_in_one_go_or_none(shop: Shop) -> None:
    for path in (shop.golden / "ground_truth" / "scratch").iterdir():
        path.unlink()
    write_images(shop.golden / "test" / "dent", 1, first=300)
    review = masks(shop.inputs(folder=str(shop.golden / "test"), defect=""))
    names = [entry.name for entry in record_of(review).entries]
    assert sorted(names) == ["dent/300.png", "scratch/000.png", "scratch/001.png", "scratch/002.png"]
    some = {name: "accept" for name in names if name.startswith("scratch")}

    with pytest.raises(InputError, match=r"none for 1 others, such as test/dent/300\.png"):
        shop.accept(shop.decide(review, some))
    assert not read_golden_set(shop.golden).has_masks
    done = shop.accept(shop.decide(review, dict.fromkeys(names, "accept")))

    assert (done.num_masks, done.num_images) == (4, 0)
    assert read_golden_set(shop.golden).has_masks


def test_a_golden_set_can_begin_with_masks(shop: Shop) -> None:
    review = masks(shop.inputs())
    fresh = replace(shop, golden=shop.world.root / "fresh")

    fresh.accept(shop.decide(review, {"200.png": "accept"}))

    assert [item.defect for item in read_golden_set(fresh.golden).items] == ["dent"]


def test_what_would_break_the_golden_set_is_refused_before_anything_is_written(shop: Shop) -> None:
    review = masks(shop.inputs())
    yes = {"200.png": "accept"}
    target = shop.golden / "test" / "dent"
    target.mkdir()
    digest = read_golden_set_or_none(shop.golden)

    Image.fromarray(texture(1)).save(target / "200.png")
    with pytest.raises(InputError, match=r"200\.png is there already and differs"):
        shop.accept(shop.decide(review, yes))
    (target / "200.png").unlink()
    Image.fromarray(texture(1)).save(target / "200.bmp")
    with pytest.raises(InputError, match="would share a mask; rename the image"):
        shop.accept(shop.decide(review, yes))
    (target / "200.bmp").unlink()
    assert not list(target.iterdir())
    assert digest == read_golden_set_or_none(shop.golden)


def read_golden_set_or_none(root: Path) -> list[str]:
    return sorted(path.as_posix() for path in root.rglob("*") if path.is_file())


def test_what_is_not_what_was_shown_is_refused(shop: Shop) -> None:
    review = masks(shop.inputs())
    yes = shop.decide(review, {"200.png": "accept"})
    mask = Path(review.folder) / "masks" / "200.png.png"
    content = mask.read_bytes()

    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"200\.png\.png is not what was shown"):
        shop.accept(yes)
    mask.write_bytes(content)
    Image.fromarray(texture(5)).save(shop.folder / "200.png")
    with pytest.raises(InputError, match=r"200\.png is not what was shown"):
        shop.accept(yes)
    record = Path(review.folder) / "record.json"
    record.write_text(record.read_text().replace("dent", "dint"))
    with pytest.raises(InputError, match="is not what was shown: its digest has changed"):
        shop.accept(yes)
    with pytest.raises(InputError, match=r"are about other\.line1\.cam1"):
        shop.accept(shop.decide(review, {"200.png": "accept"}, key="other.line1.cam1"))


@pytest.mark.parametrize("defect", ["good", "../up", "a/b", "."])
def test_a_class_that_is_no_folder_of_defects_is_refused(shop: Shop, defect: str) -> None:
    with pytest.raises(ValueError, match="defect must be letters"):
        shop.inputs(defect=defect)


def test_without_a_class_the_sub_folders_must_name_it(shop: Shop) -> None:
    with pytest.raises(InputError, match=r"200\.png lies in no folder of a defect class; name the class with --defect"):
        masks(shop.inputs(defect=""))
    write_images(shop.world.root / "only" / "good", 1)
    with pytest.raises(InputError, match="has no image of a defect class"):
        masks(shop.inputs(folder=str(shop.world.root / "only"), defect=""))


def test_a_flat_image_has_no_proposal_and_cannot_be_accepted(shop: Shop) -> None:
    review = masks(shop.inputs())
    record = record_of(review)
    bare = replace(record, entries=(replace(record.entries[0], mask="", mask_sha256=""), *record.entries[1:]))
    from components.annotation.review import review as make

    again = make(shop.world.config.paths.work_dir, KEY, "masks", {"case": "flat"}, lambda _: bare)

    with pytest.raises(InputError, match="was accepted, but no mask was proposed for it"):
        shop.accept(shop.decide(again, {record.entries[0].name: "accept"}))


def test_the_console_proposes_and_saves(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    def stlm(*arguments: str) -> int:
        return console(["--config", str(shop.world.config_path), "masks", *arguments])

    assert stlm(str(shop.folder), "--defect", "dent") == 0
    page = Path(capsys.readouterr().out.splitlines()[-1])
    review = Review.from_json(json.loads((page.parent / "review.json").read_text()))
    assert stlm("--accept", str(shop.decide(review, {"200.png": "accept"}))) == 0
    assert "1 masks saved, 1 images added" in capsys.readouterr().out
    assert stlm(str(shop.folder), "--defect", "good") == EXIT_INPUT_ERROR
    err = capsys.readouterr().err
    assert "defect must be letters" in err
    assert err.count("\n") == 1
