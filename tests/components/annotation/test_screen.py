"""Screening: sorted by suspicion, decided by a person, delivered as a lot that the first night takes."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.adapters.mlflow.registry import open_registry
from components.adapters.mlflow.tracking import open_run
from components.annotation.review import Review, ReviewRecord
from components.annotation.screen import ScreenInputs, accept_images, screen
from components.cli import main as console
from components.config.zero_shot import ZeroShotSettings
from components.core.contracts import NightStatus, RunRef
from components.core.errors import EXIT_INPUT_ERROR, InputError
from components.promotion.alias_transaction import open_alias_manager
from components.steps.collect.step import CollectInputs, collect
from tests.helpers.landing import feed_from_folder
from tests.helpers.model_package import new_mlflow, write_package
from tests.helpers.promotion import make_champion
from tests.helpers.small_networks import write_clip, write_sam
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world, texture

NIGHT = NIGHTS[0]


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A key without a champion, a folder of its first images, and checkpoints with random weights."""

    world: TinyWorld
    folder: Path
    settings: ZeroShotSettings

    @property
    def work_dir(self) -> str:
        return self.world.config.paths.work_dir

    def inputs(self, **changes: Any) -> ScreenInputs:
        return replace(
            ScreenInputs(
                run=self.world.run(NIGHT),
                folder=str(self.folder),
                mlflow=self.world.config.mlflow,
                settings=self.settings,
            ),
            **changes,
        )

    def decide(self, made: Review, said: dict[str, str], **changes: Any) -> Path:
        path = self.world.root / "decisions.json"
        value = {"kind": "screen", "key": KEY.slug, "review": made.digest, "decisions": said}
        path.write_text(json.dumps(value | changes))
        return path

    def accept(self, path: Path, **changes: Any) -> Any:
        landing = self.world.config.paths.landing
        return accept_images(path, **({"work_dir": self.work_dir, "key": KEY, "landing": landing} | changes))


def promote_tiny(world: TinyWorld, *, threshold: float = 0.5) -> None:
    """A tiny champion for the key."""
    run = world.run("2026-02-01")
    package = write_package(world.root / f"package-{threshold}", threshold=threshold)
    registry = open_registry(world.config.mlflow, run)
    ref = registry.register(KEY, package, run_id=open_run(world.config.mlflow, run), tags={})
    manager = open_alias_manager(KEY, work_dir=run.work_dir, mlflow=world.config.mlflow, settings=world.config.promote)
    make_champion(manager, ref.version, partition=run.partition)


def write_images(folder: Path, num: int, *, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + num):
        pixels = texture(seed).copy()
        if seed % 3 == 0:
            pixels[20:30, 10:40] = 250
        Image.fromarray(pixels).save(folder / f"{seed:03d}.png")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> ZeroShotSettings:
    model, path, digest = write_clip(tmp_path_factory.mktemp("clip"))
    return ZeroShotSettings(clip_model=model, clip_checkpoint=path, clip_sha256=digest, device="cpu", max_masks=3)


@pytest.fixture
def shop(tmp_path: Path, checkpoints: ZeroShotSettings) -> Shop:
    world = make_tiny_world(tmp_path)
    new_mlflow(tmp_path / "mlflow")
    write_images(tmp_path / "images", 7)
    return Shop(world=world, folder=tmp_path / "images", settings=checkpoints)


def record_of(review: Review) -> ReviewRecord:
    return ReviewRecord.from_json(json.loads((Path(review.folder) / "record.json").read_text()))


def test_a_folder_is_sorted_by_suspicion_with_heat_maps_masks_and_a_page(shop: Shop) -> None:
    review = screen(shop.inputs())

    record = record_of(review)
    scores = [entry.score for entry in record.entries]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert (review.num_images, review.num_masks, review.refused) == (7, 3, ())
    assert "CLIP" in review.judged_by
    assert "no SAM configured" in review.masks_by
    assert [bool(entry.mask) for entry in record.entries] == [True] * 3 + [False] * 4
    folder = Path(review.folder)
    for entry in record.entries:
        with Image.open(folder / "heat_maps" / f"{entry.name}.png") as image:
            assert image.size == (64, 64)
    with Image.open(folder / record.entries[0].mask) as image:
        assert set(np.unique(np.asarray(image))) == {0, 255}
    page = Path(review.page_path).read_text()
    names = re.findall(r'data-name="([^"]+)"', page)
    assert names == [entry.name for entry in record.entries]
    assert review.digest in page


def test_the_page_needs_nothing_but_itself(shop: Shop) -> None:
    page = Path(screen(shop.inputs()).page_path).read_text()

    assert "default-src 'none'" in page
    assert set(re.findall(r'(?:src|href)="([a-z]+):', page)) == {"data"}
    assert not re.search(r"https?://", page)


def test_the_same_images_are_screened_once_and_other_ones_anew(shop: Shop) -> None:
    first = screen(shop.inputs())
    stamp = Path(first.page_path).stat().st_mtime_ns

    assert screen(shop.inputs()) == first
    assert Path(first.page_path).stat().st_mtime_ns == stamp
    write_images(shop.folder, 1, first=50)
    again = screen(shop.inputs())
    assert again.num_images == 8
    assert again.folder != first.folder


def test_a_screening_that_died_is_made_again_the_same(shop: Shop) -> None:
    first = screen(shop.inputs())
    page = Path(first.page_path).read_bytes()
    (Path(first.folder) / "review.json").unlink()
    shutil.rmtree(Path(first.folder) / "heat_maps")

    assert screen(shop.inputs()) == first
    assert Path(first.page_path).read_bytes() == page


def test_bad_images_are_left_out_with_one_line_each(shop: Shop) -> None:
    Image.fromarray(texture(1)).convert("RGBA").save(shop.folder / "alpha.png")
    Image.fromarray(texture(2).astype(np.uint16) * 257).save(shop.folder / "deep.png")
    Image.fromarray(texture(3)).resize((7, 64)).save(shop.folder / "tiny.png")
    (shop.folder / "broken.png").write_bytes(b"no image")
    (shop.folder / "notes.txt").write_text("not an image")

    review = screen(shop.inputs())

    assert review.refused == (
        "alpha.png: expected 8-bit grey or RGB, got 8-bit RGBA with transparency",
        "broken.png: no image that can be read",
        "deep.png: expected 8-bit grey or RGB, got 16-bit I;16",
        "tiny.png: 64 x 7 pixels, smaller than one patch of 8 pixels",
    )
    assert review.num_images == 7
    page = Path(review.page_path).read_text()
    assert "64 x 7 pixels" in page
    with pytest.raises(InputError, match=r"'alpha\.png', which is no image of the review that could be decided"):
        shop.accept(shop.decide(review, {"alpha.png": "accept"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"has no images, expected files like \.bmp"),
        ({"a.txt": b"x", ".hidden.png": b"x"}, "has no images"),
        ({"a.png": b"x"}, r"none of its 1 images can be judged: a\.png: no image that can be read"),
    ],
)
def test_a_folder_without_images_is_refused_in_one_line(shop: Shop, content: dict[str, bytes], message: str) -> None:
    folder = shop.world.root / "other"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)

    with pytest.raises(InputError, match=message) as error:
        screen(shop.inputs(folder=str(folder)))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="does not exist"):
        screen(shop.inputs(folder=str(folder / "missing")))


def test_accepted_images_become_the_lot_that_the_first_night_takes(shop: Shop) -> None:
    review = screen(shop.inputs())
    decisions = {"001.png": "accept", "002.png": "accept", "003.png": "reject"}

    done = shop.accept(shop.decide(review, decisions))

    assert (done.lot, done.num_accepted, done.num_rejected, done.num_undecided) == ("20260301-screened", 2, 1, 4)
    night = collect(CollectInputs(run=shop.world.run(NIGHT), landing=shop.world.config.paths.landing))
    assert night.status is NightStatus.NEW_IMAGES
    assert night.batch is not None
    taken = Path(night.batch.image_dir) / done.lot
    assert sorted(path.name for path in taken.iterdir()) == ["001.png", "002.png"]
    assert (taken / "001.png").read_bytes() == (shop.folder / "001.png").read_bytes()


def test_accepting_twice_changes_nothing_and_another_choice_needs_another_lot(shop: Shop) -> None:
    review = screen(shop.inputs())
    first = shop.accept(shop.decide(review, {"001.png": "accept"}))

    assert shop.accept(shop.decide(review, {"001.png": "accept"})) == first
    with pytest.raises(InputError, match="is there already with other images; name another lot with --lot"):
        shop.accept(shop.decide(review, {"002.png": "accept"}))
    assert shop.accept(shop.decide(review, {"002.png": "accept"}), lot="more", night=NIGHTS[1]).lot == "more"


def test_images_in_lots_keep_their_lots_in_their_names(shop: Shop) -> None:
    write_images(shop.folder / "a", 2, first=20)
    review = screen(shop.inputs())

    done = shop.accept(shop.decide(review, {"a/020.png": "accept", "000.png": "accept"}))

    lot = Path(shop.world.config.paths.landing) / KEY.path / done.lot
    assert sorted(path.name for path in lot.iterdir()) == ["000.png", "a-020.png", "manifest.json"]


def test_decisions_that_do_not_fit_are_refused_and_nothing_is_delivered(shop: Shop) -> None:
    review = screen(shop.inputs())
    yes = {"001.png": "accept"}
    cases = [
        (shop.decide, {"key": "a.b.c"}, "are about a.b.c, not tiles.line1.cam1"),
        (shop.decide, {"review": "0" * 64}, "no review 0000000000000000 of tiles.line1.cam1"),
        (shop.decide, {"kind": "masks"}, "expected decisions of `stlm screen`, got those of `stlm masks`"),
        (shop.decide, {"decisions": {"001.png": "maybe"}}, r"decisions\.001\.png: expected one of"),
        (shop.decide, {"decisions": {"nothing.png": "accept"}}, "'nothing.png', which is no image of the review"),
        (shop.decide, {"decisions": {"001.png": "reject"}}, "none of the 7 images was accepted"),
        (shop.decide, {"author": "me"}, "unknown field 'author'"),
    ]
    for decide, change, message in cases:
        with pytest.raises(InputError, match=message):
            shop.accept(decide(review, yes, **change))
    with pytest.raises(InputError, match="No such file"):
        shop.accept(shop.world.root / "missing.json")
    with pytest.raises(InputError, match="night '2026-02-30': expected YYYY-MM-DD"):
        shop.accept(shop.decide(review, yes), night="2026-02-30")
    with pytest.raises(InputError, match="must be named with letters"):
        shop.accept(shop.decide(review, yes), lot="../elsewhere")
    write_images(shop.folder, 1, first=90)
    shutil.copyfile(shop.folder / "090.png", shop.folder / "001.png")
    with pytest.raises(InputError, match=r"001\.png is not the image that was shown"):
        shop.accept(shop.decide(review, yes))
    assert not list(Path(shop.world.config.paths.landing).rglob("*.png"))


def test_two_images_of_one_name_in_a_lot_are_refused(shop: Shop) -> None:
    write_images(shop.folder / "A", 1, first=20)
    shutil.copyfile(shop.folder / "001.png", shop.folder / "a-020.png")
    review = screen(shop.inputs())

    with pytest.raises(InputError, match="would have the same name in one lot"):
        shop.accept(shop.decide(review, {"A/020.png": "accept", "a-020.png": "accept"}))


def test_a_champions_own_map_needs_no_clip_and_draws_masks_above_its_threshold(shop: Shop) -> None:
    with pytest.raises(InputError, match=r"tiles\.line1\.cam1 has no champion whose map could be used"):
        screen(shop.inputs(map="champion"))
    promote_tiny(shop.world, threshold=0.0)
    nothing = ZeroShotSettings(device="cpu")

    review = screen(shop.inputs(settings=nothing))

    record = record_of(review)
    assert review.judged_by == "champion version 1"
    above = [entry for entry in record.entries if entry.score is not None and entry.score > 0.0]
    assert [bool(entry.mask) for entry in record.entries] == [entry in above for entry in record.entries]
    assert record.threshold == 0.0
    assert screen(shop.inputs(map="clip")).judged_by.startswith("CLIP")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_checkpoint": "", "clip_sha256": ""}, "no CLIP is configured: set zero_shot.clip_checkpoint"),
        ({"clip_sha256": "0" * 64}, "zero_shot: checkpoint .* expected sha256 0000"),
        ({"clip_checkpoint": "missing.bin"}, "zero_shot: checkpoint missing.bin does not exist"),
        ({"clip_model": "ViT-L-14-363"}, "zero_shot: CLIP model 'ViT-L-14-363' is unknown"),
        ({"prompts": {"tiles": "missing.toml"}}, "zero_shot: prompt file missing.toml does not exist"),
        ({"sam_checkpoint": "missing.pt", "sam_sha256": "0" * 64}, "zero_shot: checkpoint missing.pt does not exist"),
    ],
)
def test_what_is_not_configured_or_does_not_fit_is_one_line_and_leaves_nothing(
    shop: Shop, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        screen(shop.inputs(settings=replace(shop.settings, **settings)))
    assert "\n" not in str(error.value)
    assert not list(Path(shop.work_dir).rglob("review*/*"))


def test_a_products_own_prompts_are_used_and_name_what_an_image_looks_like(shop: Shop) -> None:
    prompts = shop.world.root / "tiles.toml"
    prompts.write_text(
        'object = "tile"\ntemplates = ["a photo of a {}."]\nnormal = ["good {}"]\n'
        '[anomalous]\nscratch = ["scratched {}"]\nhole = ["{} with a hole"]\n'
    )

    review = screen(shop.inputs(settings=replace(shop.settings, prompts={"tiles": str(prompts)})))

    assert "prompts for 'tile'" in review.judged_by
    assert {entry.remark for entry in record_of(review).entries} <= {"scratch", "hole"}
    assert "most like <b>" in Path(review.page_path).read_text()
    prompts.write_text(prompts.read_text().replace("scratched", "worn"))
    edited = screen(shop.inputs(settings=replace(shop.settings, prompts={"tiles": str(prompts)})))
    assert edited.digest != review.digest


@pytest.mark.slow
def test_with_mobile_sam_the_masks_are_refined(shop: Shop) -> None:
    path, digest = write_sam(shop.world.root / "sam")
    settings = replace(shop.settings, sam_checkpoint=path, sam_sha256=digest, max_masks=1)

    review = screen(shop.inputs(settings=settings))

    entry = record_of(review).entries[0]
    assert review.masks_by == "mobile_sam, cascaded prompts"
    assert entry.mask_source in {"pass 1", "pass 2", "pass 3", "region"}
    with Image.open(Path(review.folder) / entry.mask) as image:
        assert image.size == (64, 64)


def test_the_console_screens_and_accepts(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    config, settings = shop.world.config_path, shop.settings
    config.write_text(
        config.read_text() + f'\n[zero_shot]\nclip_model = "{settings.clip_model}"\n'
        f'clip_checkpoint = "{settings.clip_checkpoint}"\nclip_sha256 = "{settings.clip_sha256}"\ndevice = "cpu"\n'
    )

    def stlm(*arguments: str) -> int:
        return console(["--config", str(config), "--state", str(shop.world.root / "state"), "screen", *arguments])

    assert stlm(str(shop.folder), "--night", NIGHT) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1])
    review = Review.from_json(json.loads((page.parent / "review.json").read_text()))
    assert stlm("--accept", str(shop.decide(review, {"001.png": "accept"}))) == 0
    assert "20260301-screened: 1 images accepted" in capsys.readouterr().out
    for arguments, message in (
        ([str(shop.folder)], "which night of tiles.line1.cam1 are the images for?"),
        ([], "give either a folder, `stlm screen FOLDER`, or decisions, `stlm screen --accept FILE`"),
    ):
        assert stlm(*arguments) == EXIT_INPUT_ERROR
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_without_any_checkpoint_the_console_says_what_is_missing(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(shop.world.config_path), "screen", str(shop.folder), "--night", NIGHT]

    assert console(arguments) == EXIT_INPUT_ERROR
    err = capsys.readouterr().err
    assert "no CLIP is configured: set zero_shot.clip_checkpoint (a path or URL) and zero_shot.clip_sha256" in err
    assert err.count("\n") == 1


def test_lots_from_the_intake_are_screened_without_being_taken_from_the_nights(shop: Shop) -> None:
    """What the DAG does: collect into a work folder of its own, then screen under the common one."""
    intake = shop.world.root / "intake"
    intake.mkdir()
    feed_from_folder(sorted(shop.folder.iterdir()), str(intake), KEY, "raw", NIGHT)
    night = RunRef(key=KEY, partition=NIGHT, work_dir=f"{shop.work_dir}/screening")
    batch = collect(CollectInputs(run=night, landing=str(intake))).batch
    assert batch is not None

    review = screen(shop.inputs(folder=batch.image_dir))
    shop.accept(shop.decide(review, {"raw/001.png": "accept"}))

    taken = collect(CollectInputs(run=shop.world.run(NIGHT), landing=shop.world.config.paths.landing))
    assert taken.batch is not None
    assert taken.batch.num_images == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('clip_checkpoint = "a.bin"', "clip_checkpoint needs clip_sha256, 64 hex digits, got ''"),
        ("second_opinion = true", "second_opinion = true needs clip_checkpoint, which is empty"),
        ('sam_model = "sam3"', "zero_shot.sam_model: expected one of"),
        ("max_masks = -1", "max_masks must not be negative, got -1"),
        ("[zero_shot.cascade]\nnum_positives = 0", "zero_shot.cascade: num_positives must be at least 1, got 0"),
        ("[zero_shot.clip]\ntemprature = 1.0", "zero_shot.clip: unknown field 'temprature'"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_read(
    shop: Shop, lines: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shop.world.config_path
    path.write_text(f"{path.read_text()}\n[zero_shot]\n{lines}\n")

    assert console(["--config", str(path), "status"]) == EXIT_INPUT_ERROR
    assert message in capsys.readouterr().err
