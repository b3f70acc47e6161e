"""``stlm bench``: a table for people, JSON and a page for later, and one clear line where something is wrong."""

import json
from pathlib import Path

import pytest

from components.console import main
from tests.helpers.categories import write_category


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
    results = json.loads((out / "drift.json").read_text("utf-8"))["results"]
    assert [result["strategy"] for result in results] == ["distribution-only", "no-update"]
    assert len(results[0]["matrices"]["image_auroc"]) == 2
    assert results[1]["seconds"][1] < results[0]["seconds"][0]
    page = (out / "drift.html").read_text("utf-8")
    assert "after night140" in page
    assert "http" not in page


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
        (["mvtec", "--root", "{nights}", "--peer", "magic"], "unknown strategy 'magic'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    nights: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["bench", *(argument.format(nights=nights) for argument in arguments)]) == 65
    assert told in capsys.readouterr().err
