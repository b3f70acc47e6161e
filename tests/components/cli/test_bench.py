"""``stlm bench``: a table for people, JSON and a page for later, and one clear line where something is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from components.cli import main
from stlm.config import RecipeConfig
from stlm.recipes import RECIPES, paper
from tests.helpers.categories import write_category
from tests.helpers.small_networks import write_sam


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    for brightness in (100, 140):
        write_category(tmp_path / "nights" / f"night{brightness}", brightness=brightness)
    return tmp_path / "nights"


def test_drift_tells_writes_and_draws(nights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tmp_path / "parts.csv"
    names = [path.name for path in sorted((nights / "night100" / "train" / "good").iterdir())]
    parts.write_text("path,part\n" + "".join(f"train/good/{name},SN-{i}\n" for i, name in enumerate(names)), "utf-8")
    out = tmp_path / "out"
    arguments = ["bench", "drift", "--root", str(nights), "--recipe", "tiny", "--parts", str(parts), "--out", str(out)]
    assert main([*arguments, "--strategy", "distribution-only", "--strategy", "no-update"]) == 0
    told = capsys.readouterr().out
    assert "night140: image AUROC" in told
    assert "forgetting" in told
    assert "distribution-only: final image AUROC below no-update on" in told
    assert "+-" not in told
    results = json.loads((out / "drift.json").read_text("utf-8"))["results"]
    assert [result["strategy"] for result in results] == ["distribution-only", "no-update"]
    assert len(results[0]["matrices"]["image_auroc"]) == 2
    assert results[1]["seconds"][1] < results[0]["seconds"][0]
    page = (out / "drift.html").read_text("utf-8")
    assert "after night140" in page
    assert "http" not in page

    assert main([*arguments, "--strategy", "distribution-only", "--seed", "0", "--seed", "1"]) == 0
    told = capsys.readouterr().out
    assert told.count("kept from before") == 1
    (row,) = [line for line in told.splitlines() if line.startswith("distribution-only ") and "+-" in line]
    lives = json.loads((out / "drift.json").read_text("utf-8"))["results"]
    assert [life["seed"] for life in lives] == [0, 1]
    finals = [life["summary"]["image_auroc"]["final_mean"] for life in lives]
    assert f"{sum(finals) / 2:.3f}+-{abs(finals[0] - finals[1]) / 2:.3f}" == row.split()[1]


def test_categories_tell_means_over_seeds(nights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "mvtec", "--root", str(nights), "--category", "night100", "--recipe", "tiny"]
    assert main([*arguments, "--seed", "0", "--seed", "1", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert told.count("night100 ") == 2
    assert "+-" in told
    rows = json.loads((tmp_path / "out" / "mvtec.json").read_text("utf-8"))["rows"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert 0 <= rows[0]["pro"] <= 1


def test_a_measurement_that_was_stopped_goes_on_where_it_stood(
    nights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "mvtec", "--root", str(nights), "--category", "night100", "--recipe", "tiny"]
    drift = ["bench", "drift", "--root", str(nights), "--recipe", "tiny", "--strategy", "distribution-only"]
    out = ["--out", str(tmp_path / "out")]
    assert main([*arguments, *out]) == main([*drift, *out]) == 0
    rows = json.loads((tmp_path / "out" / "mvtec.json").read_text("utf-8"))["rows"]
    (life,) = json.loads((tmp_path / "out" / "drift.json").read_text("utf-8"))["results"]
    assert "kept" not in capsys.readouterr().out

    assert main([*arguments, "--seed", "0", "--seed", "1", *out]) == 0
    assert main([*drift, "--strategy", "no-update", *out]) == 0
    assert capsys.readouterr().out.count("kept from before") == 2
    # To the last digit of the time it took: it was not done again.
    assert json.loads((tmp_path / "out" / "mvtec.json").read_text("utf-8"))["rows"][0] == rows[0]
    assert json.loads((tmp_path / "out" / "drift.json").read_text("utf-8"))["results"][0] == life

    min((nights / "night100" / "train" / "good").iterdir()).unlink()
    assert main([*arguments, *out]) == 0  # other data, another result
    assert "kept" not in capsys.readouterr().out
    for path in (tmp_path / "out" / "results").glob("mvtec*"):
        path.write_text("{")
    assert main([*arguments, *out]) == 65
    assert "delete it to measure anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["drift", "--root", "{nights}/night100"], "at least two folders"),
        (["drift", "--root", "{nights}", "--strategy", "magic"], "unknown strategy 'magic'; known: recipe"),
        (["drift", "--root", "{nights}", "--recipe", "magic"], "unknown recipe 'magic'"),
        (["drift", "--root", "{nights}", "--parts", "{nights}/none.csv"], "none.csv cannot be read"),
        (["mvtec", "--root", "{nights}/nowhere"], "found none"),
        (["mvtec", "--root", "{nights}", "--category", "bottle"], "expected bottle"),
        (["mvtec", "--root", "{nights}", "--strategy", "magic"], "unknown strategy 'magic'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    nights: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["bench", *(argument.format(nights=nights) for argument in arguments)]) == 65
    assert told in capsys.readouterr().err


def _published(image_size: int = 64) -> RecipeConfig:
    """The published design, small: MobileSAM for a teacher, two passes."""
    config = paper()
    return replace(
        config,
        name="published",
        model=replace(config.model, teacher="mobile_sam", score_size=(image_size, image_size)),
        data=replace(config.data, image_size=(image_size, image_size)),
        stages=(replace(config.stages[0], passes=2),),
    )


def test_the_published_design_learns_from_its_checkpoint_and_is_judged_on_the_way(
    nights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "published", _published)
    arguments = ["bench", "mvtec", "--root", str(nights / "night100"), "--recipe", "published", "--judge-every", "1"]
    assert main(arguments) == 65
    assert "set fine_tune.teacher_checkpoint" in capsys.readouterr().err

    checkpoint, sha256 = write_sam(tmp_path / "sam")
    config = tmp_path / "stlm.toml"
    text = (Path(__file__).parents[3] / "infra" / "quickstart.toml").read_text("utf-8")
    for name, value in (("teacher_checkpoint", checkpoint), ("teacher_sha256", sha256)):
        text = text.replace(f'{name} = ""', f'{name} = "{value}"', 1)
    config.write_text(text, "utf-8")
    assert main(["--config", str(config), *arguments, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "chosen on test" in told
    (row,) = json.loads((tmp_path / "out" / "mvtec.json").read_text("utf-8"))["rows"]
    assert [each["passes"] for each in row["on_the_way"]] == [1, 2]
    last = row["on_the_way"][1]["figures"]
    assert last == {name: row[name] for name in last}  # two passes are all
    assert row["on_the_way"][0]["figures"] != last
    assert main(["--config", str(config), *arguments, "--out", str(tmp_path / "out")]) == 0
    assert "chosen on test" in capsys.readouterr().out


def test_what_is_fitted_at_the_end_is_not_judged_on_the_way(nights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "mvtec", "--root", str(nights / "night100"), "--recipe", "tiny", "--judge-every", "1"]
    assert main(arguments) == 65
    assert "recipes whose only map is the aggregation's" in capsys.readouterr().err
