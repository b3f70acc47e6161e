"""Each rule finds exactly its own trouble; lots fall alone; doubles and defects stay out; a re-run says the same."""

import csv
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from components.adapters.mlflow.registry import open_registry
from components.adapters.mlflow.tracking import open_run
from components.config import MlflowSettings, ValidateSettings
from components.core.contracts import DatasetRef, RunRef, ValidationRef, to_json
from components.core.errors import InputError
from components.steps.__main__ import main
from components.steps.collect.step import CollectInputs, collect
from components.steps.validate.step import ValidateInputs, validate
from components.steps.version.step import VersionInputs, version
from stlm.data.image_files import read_image
from stlm.serving.predictor import TorchPredictor
from tests.helpers.landing import feed_from_folder
from tests.helpers.model_package import KEY, new_mlflow, write_package
from tests.helpers.tiny_nights import texture

NO_SCREENING = 50.0
"""Robust deviations that no picture reaches."""
LENIENT = ValidateSettings(
    screen_deviations=NO_SCREENING, screen_champion_deviations=NO_SCREENING, max_quarantined_share=0.9
)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def good(seed: int) -> Image.Image:
    return Image.fromarray(texture(seed))


def defective(seed: int) -> Image.Image:
    pixels = texture(seed).copy()
    pixels[20:34, 12:52] = 250
    return Image.fromarray(pixels)


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.02)


def deep_colour(seed: int) -> bytes:
    """16 bits per channel in colour, which Pillow cannot write and opens as 8-bit RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = np.stack([texture(seed).astype(np.uint16) * 257] * 3, axis=-1).astype(">u2")
    raw = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def taken_in_2020(seed: int) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[36867] = "2020:01:01 12:00:00"
    return encoded(good(seed), "JPEG", exif=exif, quality=95)


def two_levels(seed: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 2, (16, 16)).astype(np.uint8)
    return Image.fromarray(np.kron(blocks * 80 + 90, np.ones((4, 4), np.uint8)).astype(np.uint8))


TROUBLE = {
    "truncated.png": (encoded(good(900))[:1500], "unreadable"),
    "empty.png": (b"", "unreadable"),
    "bomb.png": (encoded(Image.new("1", (20_000, 20_000))), "unreadable"),  # 50 kB that decode to 400 megapixels
    "=1+1.png": (b"frame grabber: no signal\n", "unreadable"),
    "alpha.png": (encoded(good(901).convert("RGBA")), "mode"),
    "deep.png": (deep_colour(902), "bit depth"),
    "wide.png": (encoded(good(903).resize((80, 64))), "size"),
    "dark.png": (encoded(Image.fromarray((texture(904) * 0.07).astype(np.uint8))), "dark"),
    "bright.png": (encoded(Image.fromarray((255 - texture(905) * 0.07).astype(np.uint8))), "bright"),
    "blurred.png": (encoded(good(906).filter(ImageFilter.GaussianBlur(3))), "blurred"),
    "levels.png": (encoded(two_levels(907)), "low information"),
    "old.jpg": (taken_in_2020(908), "taken outside the window"),
    "z-again.png": (encoded(good(100)), "exact duplicate in the night"),
    "z-similar.png": (encoded(brighter(good(101))), "near duplicate in the night"),
    "z-yesterday.png": (encoded(good(0)), "exact duplicate of an earlier night"),
    "z-like-yesterday.png": (encoded(brighter(good(1))), "near duplicate of an earlier night"),
    "z-golden.png": (encoded(good(500)), "copy of a golden image"),
    "z-like-golden.png": (encoded(brighter(good(501))), "near duplicate of a golden image"),
}


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A landing zone, a data repository, a golden set and an empty registry."""

    root: Path
    mlflow: MlflowSettings

    def run(self, night: str) -> RunRef:
        return RunRef(key=KEY, partition=night, work_dir=str(self.root / "work"))

    def deliver(self, lot: str, date: str, files: dict[str, bytes]) -> None:
        folder = self.root / "produced" / lot
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        feed_from_folder(sorted(folder.iterdir()), str(self.root / "landing"), KEY, lot, date)

    def versioned(self, night: str) -> DatasetRef:
        run = self.run(night)
        collected = collect(CollectInputs(run=run, landing=str(self.root / "landing")))
        assert collected.batch is not None
        return version(
            VersionInputs(
                run=run,
                batch=collected.batch,
                data_repo=str(self.root / "repo"),
                dvc_remote=str(self.root / "remote"),
            )
        )

    def inputs(self, night: str, settings: ValidateSettings = LENIENT) -> ValidateInputs:
        return ValidateInputs(
            run=self.run(night),
            dataset=self.versioned(night),
            dvc_remote=str(self.root / "remote"),
            golden=str(self.root / "golden"),
            mlflow=self.mlflow,
            settings=settings,
        )

    def promote(self, threshold: float) -> None:
        """A tiny champion that calls whatever scores above ``threshold`` anomalous."""
        run = self.run("2026-10-31")
        package = write_package(self.root / f"package-{threshold}", threshold=threshold)
        registry = open_registry(self.mlflow, run)
        ref = registry.register(KEY, package, run_id=open_run(self.mlflow, run), tags={})
        registry.aliases(KEY).set_alias("champion", ref.version)


def new_plant(root: Path) -> Plant:
    for name, image in {"good/a": good(500), "good/b": good(501), "bad/c": defective(502)}.items():
        path = root / "golden" / "test" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (root / "landing").mkdir()
    return Plant(root=root, mlflow=new_mlflow(root / "mlflow"))


def goods(first: int, num: int) -> dict[str, bytes]:
    return {f"good-{seed}.png": encoded(good(seed)) for seed in range(first, first + num)}


def table_of(ref: ValidationRef) -> pd.DataFrame:
    return pd.read_parquet(ref.table_path).set_index("image")


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return new_plant(tmp_path)


@dataclass(frozen=True, kw_only=True)
class Troubled:
    """Two nights, the second full of trouble."""

    plant: Plant
    inputs: ValidateInputs
    ref: ValidationRef
    table: pd.DataFrame


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Troubled:
    plant = new_plant(tmp_path_factory.mktemp("troubled"))
    plant.deliver("first", "2026-11-01", goods(0, 10))
    validate(plant.inputs("2026-11-01"))
    files = goods(100, 20) | {name: content for name, (content, _) in TROUBLE.items()}
    plant.deliver("second", "2026-11-02", files)
    inputs = plant.inputs("2026-11-02")
    ref = validate(inputs)
    return Troubled(plant=plant, inputs=inputs, ref=ref, table=table_of(ref))


@pytest.mark.chaos(
    "a decompression bomb, half an image, no image, a format that is not the product's",
    outcome="quarantined, each by name",
)
@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, (_, reason) in TROUBLE.items()])
def test_a_rule_finds_its_own_trouble_and_no_other(troubled: Troubled, name: str, reason: str) -> None:
    row = troubled.table.loc[f"second/{name}"]

    assert row["reasons"] == reason
    assert not row["accepted"]


def test_good_images_pass_and_the_first_of_two_stays(troubled: Troubled) -> None:
    accepted = troubled.table[troubled.table["accepted"]]

    assert sorted(accepted["name"]) == sorted(goods(100, 20))
    assert set(accepted["reasons"]) == {""}
    assert troubled.ref.num_accepted == 20
    assert troubled.ref.num_quarantined == len(TROUBLE)
    assert troubled.ref.num_rejected == 0
    assert troubled.ref.reasons["unreadable"] == 4
    assert not [name for name in accepted.columns if name.startswith("second_")]  # CLIP was not asked


def test_a_double_names_its_original(troubled: Troubled) -> None:
    doubles = troubled.table["double_of"]

    assert doubles["second/z-again.png"] == "second/good-100.png"
    assert doubles["second/z-like-yesterday.png"] == "2026-11-01/first/good-1.png"
    assert doubles["second/z-golden.png"] == "test/good/a.png"


@pytest.mark.chaos("formulas in what goes to the quarantine's list", outcome="no spreadsheet executes them")
def test_the_quarantine_is_a_folder_and_a_list_that_no_spreadsheet_executes(troubled: Troubled) -> None:
    folder = Path(troubled.ref.table_path).parent / "quarantine"

    with (folder / "quarantine.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    assert {row["name"].removeprefix("'") for row in rows} == set(TROUBLE)
    assert {path.name for path in (folder / "second").iterdir()} == set(TROUBLE)
    assert (folder / "second" / "blurred.png").read_bytes() == TROUBLE["blurred.png"][0]
    assert "'=1+1.png" in {row["name"] for row in rows}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]


def test_data_docs_have_a_page_for_each_suite_and_the_fetched_images_are_gone(troubled: Troubled) -> None:
    docs = Path(troubled.ref.docs_path)

    assert docs.is_file()
    pages = {path.parts[-4] for path in docs.parent.glob("validations/*/*/*/*.html")}
    assert pages == {"lots", "content", "identity", "screening", "counts"}
    assert not (docs.parent.parent / "fetched").exists()


def test_data_docs_ask_no_foreign_host_and_their_index_leads_everywhere(troubled: Troubled) -> None:
    docs = Path(troubled.ref.docs_path)
    pages = sorted(docs.parent.rglob("*.html"))

    loaded = {
        page.name: re.findall(r"""<(?:link|script|img)[^>]*(?:href|src)=["'](http[^"']*)""", page.read_text())
        for page in pages
    }
    assert loaded == {page.name: [] for page in pages}
    links = re.findall(r'href="([^"]+)"', docs.read_text())
    assert len(links) == 2 * 5
    assert [link for link in links if not (docs.parent / link).is_file()] == []
    assert ">Failed<" in docs.read_text()


def test_a_second_call_remembers_and_a_lost_result_comes_out_the_same(troubled: Troubled) -> None:
    assert validate(troubled.inputs) == troubled.ref
    done = Path(troubled.ref.table_path).with_name("outputs.json")
    done.unlink()
    before = Path(troubled.ref.table_path).read_bytes()

    assert validate(troubled.inputs) == troubled.ref
    assert Path(troubled.ref.table_path).read_bytes() == before


def test_an_old_night_validated_again_does_not_know_the_later_ones(troubled: Troubled) -> None:
    inputs = troubled.plant.inputs("2026-11-01", replace(LENIENT, min_images=3))

    again = validate(inputs)

    assert again.num_accepted == 10
    assert again.reasons == {}


def test_lots_fall_alone_and_each_for_its_own_reason(plant: Plant) -> None:
    text = {f"note-{i}.png": f"no signal {i}".encode() for i in range(6)}
    plant.deliver("a-good", "2026-11-05", goods(0, 10))
    plant.deliver("b-stale", "2026-08-01", goods(20, 6))
    plant.deliver("c-small", "2026-11-05", goods(30, 2))
    plant.deliver("d-broken", "2026-11-05", goods(40, 8) | text)
    # A lot that falls for its date does not make its second delivery a double.
    plant.deliver("e-stale-again", "2026-11-05", goods(20, 6))

    ref = validate(plant.inputs("2026-11-05", replace(LENIENT, max_quarantined_share=0.35)))

    table = table_of(ref)
    assert ref.rejected_lots == ("b-stale", "c-small", "d-broken")
    assert (ref.num_accepted, ref.num_quarantined, ref.num_rejected) == (16, 0, 22)
    why = table.groupby("lot")["reasons"].unique().map(set)
    assert why["a-good"] == why["e-stale-again"] == {""}
    assert why["b-stale"] == {"lot rejected: dated outside the window"}
    assert why["c-small"] == {"lot rejected: too few accepted"}
    assert why["d-broken"] == {
        "lot rejected: too many quarantined",
        "unreadable;lot rejected: too many quarantined",
    }
    assert not (Path(ref.table_path).parent / "quarantine" / "d-broken").exists()


def test_a_night_with_nothing_left_says_everything_it_found(plant: Plant) -> None:
    plant.deliver("a-stale", "2026-08-01", goods(0, 5))
    plant.deliver("b-broken", "2026-11-05", {f"{i}.png": f"text {i}".encode() for i in range(5)})

    with pytest.raises(InputError, match="no image may be learnt from") as caught:
        validate(plant.inputs("2026-11-05"))

    assert "lot a-stale: dated outside the window" in str(caught.value)
    assert "lot b-broken: too few accepted" in str(caught.value)
    assert "unreadable (5)" in str(caught.value)
    assert not list((plant.root / "work" / "index").rglob("2026-11-05.parquet"))


def test_a_night_of_stale_lots_alone_names_each_of_them(plant: Plant) -> None:
    plant.deliver("a-stale", "2026-08-01", goods(0, 5))
    plant.deliver("b-stale", "2026-08-02", goods(10, 5))

    with pytest.raises(InputError, match=r"lot a-stale: dated outside the window \| lot b-stale: dated outside"):
        validate(plant.inputs("2026-11-05"))


def test_parts_of_different_size_pass_where_the_product_has_them(plant: Plant) -> None:
    sizes = {f"wide-{i}.png": encoded(good(50 + i).resize((64 + 8 * i, 64))) for i in range(4)}
    plant.deliver("lot", "2026-11-01", goods(0, 6) | sizes | {"tiny.png": encoded(good(60).resize((20, 20)))})

    ref = validate(plant.inputs("2026-11-01", replace(LENIENT, any_size=True)))

    assert ref.num_accepted == 10
    assert ref.reasons == {"too small": 1}


@pytest.mark.chaos("a golden set that cannot be read", outcome="the night stops, naming the file")
def test_a_golden_set_that_cannot_be_read_stops_the_night(plant: Plant) -> None:
    plant.deliver("lot", "2026-11-01", goods(0, 6))
    (plant.root / "golden" / "test" / "good" / "d.png").write_bytes(b"")

    with pytest.raises(InputError, match=r"d\.png"):
        validate(plant.inputs("2026-11-01"))


def test_without_a_champion_defective_parts_are_found_as_outliers_of_the_night(plant: Plant) -> None:
    files = goods(0, 30) | {f"defect-{i}.png": encoded(defective(600 + i)) for i in range(2)}
    plant.deliver("lot", "2026-11-01", files)

    ref = validate(plant.inputs("2026-11-01", ValidateSettings(screen_deviations=3.0)))

    table = table_of(ref)
    out = table[table["reasons"] == "outlier of the night"]
    assert {"defect-0.png", "defect-1.png"} <= set(out["name"])
    assert len(out) <= 3
    assert ref.champion is None
    assert set(table["screened_by"]) == {"outliers"}


def _champion_scores(tmp_path: Path, files: dict[str, bytes]) -> dict[str, float]:
    package = write_package(tmp_path / "scorer")
    scores = {}
    for name, content in files.items():
        (tmp_path / "one.png").write_bytes(content)
        scores[name] = TorchPredictor(package.package_dir).predict([read_image(tmp_path / "one.png")])[0].score
    return scores


def test_the_champion_screens_by_its_threshold_and_is_pinned(plant: Plant) -> None:
    files = goods(0, 20)
    scores = _champion_scores(plant.root, files)
    ranked = sorted(scores, key=scores.__getitem__)
    plant.promote((scores[ranked[-2]] + scores[ranked[-3]]) / 2)
    plant.deliver("lot", "2026-11-01", files)

    ref = validate(plant.inputs("2026-11-01", ValidateSettings(screen_champion_deviations=0.01)))

    table = table_of(ref)
    assert set(table["screened_by"]) == {"champion"}
    assert sorted(table.loc[~table["accepted"], "name"]) == sorted(ranked[-2:])
    assert ref.reasons == {"looks defective to the champion": 2}
    assert ref.champion is not None
    assert ref.champion.version == 1


def test_an_image_above_the_threshold_that_does_not_stand_out_is_kept(plant: Plant) -> None:
    files = goods(0, 20)
    scores = _champion_scores(plant.root, files)
    plant.promote(sorted(scores.values())[-2] - 1e-9)
    plant.deliver("lot", "2026-11-01", files)

    ref = validate(plant.inputs("2026-11-01", ValidateSettings(screen_champion_deviations=NO_SCREENING)))

    assert ref.num_accepted == 20


def test_drift_does_not_quarantine_a_whole_night(plant: Plant) -> None:
    plant.promote(-1e9)
    plant.deliver("lot", "2026-11-01", goods(0, 20))

    ref = validate(plant.inputs("2026-11-01", ValidateSettings(screen_deviations=4.0)))

    assert set(table_of(ref)["screened_by"]) == {"outliers (drift)"}
    assert ref.num_accepted >= 19
    assert ref.champion is not None


@pytest.mark.slow
def test_a_shell_gets_the_same_answer_and_the_exit_code(plant: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    plant.deliver("lot", "2026-11-01", goods(0, 6) | {"empty.png": b""})
    inputs = plant.inputs("2026-11-01")
    path, outputs = plant.root / "in.json", plant.root / "out.json"
    path.write_text(json.dumps(to_json(inputs)))

    done = subprocess.run(
        [sys.executable, "-m", "components.steps", "validate", "--inputs", str(path), "--outputs", str(outputs)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        check=False,
    )

    assert done.returncode == 0, done.stderr
    ref = ValidationRef.from_json(json.loads(outputs.read_text()))
    assert ref == validate(inputs)
    assert (ref.num_accepted, ref.num_quarantined) == (6, 1)
    shutil.rmtree(plant.root / "golden")
    shutil.rmtree(plant.root / "work" / "runs" / KEY.slug / "2026-11-01" / "validate")
    assert main(["validate", "--inputs", str(path)]) == 65
    assert "golden" in capsys.readouterr().err
