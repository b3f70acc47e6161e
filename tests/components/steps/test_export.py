"""The package is assembled once, from what was measured, and its exported file has proved itself."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.config import ExportSettings
from components.core.contracts import CandidateRef, EvaluationRef, ModelRef, to_json
from components.core.errors import InputError
from components.promotion.load_check import check_loads
from components.steps.export.step import ExportInputs, _spread, export
from stlm.data.image_files import read_image
from stlm.data.layout import read_golden_set
from stlm.data.transforms import preprocess
from stlm.serving.package import verify_package
from stlm.serving.predictor import OnnxPredictor
from tests.helpers.model_package import calibration, night, tiny_model, write_candidate, write_package

ROOT = Path(__file__).resolve().parents[3]


def write_golden(root: Path, classes: dict[str, int]) -> Path:
    random = np.random.default_rng(0)
    for name, count in classes.items():
        (root / "test" / name).mkdir(parents=True)
        for index in range(count):
            picture = random.integers(0, 256, (48 + index, 64), dtype=np.uint8)
            Image.fromarray(picture).save(root / "test" / name / f"{index:03}.png")
    return root


def write_scores(path: Path, golden: Path) -> None:
    """What evaluate gives the candidate."""
    items = read_golden_set(golden).items
    pictures = [torch.tensor(read_image(item.path)[None]) for item in items]
    model = tiny_model()
    with torch.inference_mode():
        scores = [model(preprocess(picture, model.image_size)).score.item() for picture in pictures]
    names = [str(item.path.relative_to(golden)) for item in items]
    np.savez_compressed(path, paths=np.array(names), candidate_scores=np.array(scores, np.float32))


@pytest.fixture
def inputs(tmp_path: Path) -> ExportInputs:
    golden = write_golden(tmp_path / "golden", {"good": 5, "scratch": 4, "hole": 1})
    evaluation_dir = tmp_path / "evaluate"
    evaluation_dir.mkdir()
    (evaluation_dir / "report.json").write_text("{}")
    (evaluation_dir / "calibration.json").write_text(calibration(0.5).to_json())
    sha256 = write_candidate(tmp_path / "candidate")
    write_scores(evaluation_dir / "scores.npz", golden)
    return ExportInputs(
        run=night(tmp_path / "work"),
        candidate=CandidateRef(
            package_dir=str(tmp_path / "candidate"),
            candidate_key="c" * 64,
            weights_sha256=sha256,
            parent_version=None,
            num_steps=1,
            num_new_images=1,
            num_replay_images=0,
            training_seconds=1.0,
            curves_path="",
        ),
        evaluation=EvaluationRef(
            report_path=str(evaluation_dir / "report.json"),
            scores_path=str(evaluation_dir / "scores.npz"),
            digest="e" * 64,
            golden_digest=read_golden_set(golden).digest,
            candidate_key="c" * 64,
            champion_version=None,
            synthetic_pixels=True,
            metrics={},
            champion_metrics={},
        ),
        golden=str(golden),
        settings=ExportSettings(parity_images=6, probe_images=6),
    )


def test_package_holds_everything_serving_needs_and_agrees_with_the_model(inputs: ExportInputs) -> None:
    package = export(inputs)

    folder = Path(package.package_dir)
    assert {path.name for path in folder.iterdir()} == {
        "calibration.json",
        "config.json",
        "golden.json",
        "lineage.json",
        "manifest.json",
        "model.onnx",
        "model.safetensors",
        "probe",
        "probe.json",
        "replay.json",
        "signature.json",
    }
    assert check_loads(folder, scores_needed=True) == 6
    assert verify_package(folder) == package.digest
    assert OnnxPredictor(folder).threshold == 0.5
    assert package.error == ""
    assert package.num_parity_images == 6
    assert package.num_decision_flips == 0
    assert package.max_score_difference < 1e-4
    assert json.loads((folder / "golden.json").read_text()) == {"digest": inputs.evaluation.golden_digest}
    assert package.champion_ms_per_image is None
    assert package.size_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_champions_exported_file_is_timed_in_the_same_run(inputs: ExportInputs, tmp_path: Path) -> None:
    write_package(tmp_path / "champion", seed=1)
    champion = ModelRef(name="m", version=1, candidate_key="x", package_dir=str(tmp_path / "champion"))

    package = export(dataclasses.replace(inputs, champion=champion))

    assert package.onnx_ms_per_image > 0
    assert package.champion_ms_per_image is not None
    assert package.champion_ms_per_image > 0


def test_a_champion_without_an_exported_file_has_no_time(inputs: ExportInputs, tmp_path: Path) -> None:
    champion = ModelRef(name="m", version=1, candidate_key="x", package_dir=str(tmp_path / "nowhere"))
    assert export(dataclasses.replace(inputs, champion=champion)).champion_ms_per_image is None


def test_a_second_call_returns_the_same_package_untouched(inputs: ExportInputs) -> None:
    first = export(inputs)
    written = (Path(first.package_dir) / "model.onnx").stat().st_mtime_ns

    assert export(inputs) == first
    assert (Path(first.package_dir) / "model.onnx").stat().st_mtime_ns == written


@pytest.mark.chaos("export dies before its end", outcome="done again; the same digest")
def test_a_try_that_died_before_its_end_is_done_again_with_the_same_digest(inputs: ExportInputs) -> None:
    first = export(inputs)
    folder = Path(first.package_dir)
    (folder.parent / "outputs.json").unlink()
    (folder / "model.onnx").write_bytes(b"half")
    (folder / "rubbish").write_text("")

    again = export(inputs)

    assert again.digest == first.digest == verify_package(folder)


def test_a_model_that_cannot_be_exported_is_left_for_the_gate_to_refuse(
    inputs: ExportInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An exporter without the operators of this model, as after a change of either.
    monkeypatch.setattr("stlm.export.onnx._OPSET", 6)

    package = export(inputs)

    assert "cannot be exported" in package.error
    assert package.num_parity_images == 0
    assert package.max_score_difference > 1e300
    assert not (Path(package.package_dir) / "model.onnx").exists()
    json.dumps(to_json(package), allow_nan=False)


def test_altered_weights_are_bad_input(inputs: ExportInputs) -> None:
    weights = Path(inputs.candidate.package_dir) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    with pytest.raises(InputError, match=r"model.safetensors is altered"):
        export(inputs)


def test_an_evaluation_of_another_candidate_is_bad_input(inputs: ExportInputs) -> None:
    other = dataclasses.replace(inputs.evaluation, candidate_key="d" * 64)

    with pytest.raises(InputError, match=r"is of candidate d+, expected c+"):
        export(dataclasses.replace(inputs, evaluation=other))


@pytest.mark.chaos("the golden set changes between evaluate and export", outcome="refused")
def test_a_golden_set_that_changed_since_the_evaluation_is_bad_input(inputs: ExportInputs) -> None:
    (Path(inputs.golden) / "test" / "good" / "000.png").unlink()

    with pytest.raises(InputError, match="has changed since the evaluation"):
        export(inputs)


def test_a_missing_calibration_is_bad_input(inputs: ExportInputs) -> None:
    (Path(inputs.evaluation.report_path).parent / "calibration.json").unlink()

    with pytest.raises(InputError, match=r"calibration.json"):
        export(inputs)


def test_parity_images_are_spread_over_classes_and_within_them() -> None:
    good, scratch, hole = list(range(100)), list(range(200, 204)), [300]

    assert _spread([good, scratch, hole], 9) == [0, 25, 50, 75, 200, 201, 202, 203, 300]
    assert _spread([good, scratch, hole], 2) == [0, 200]
    assert len(_spread([good, scratch, hole], 1000)) == 105
    assert _spread([[], [1]], 3) == [1]


def test_the_command_line_takes_and_gives_the_same_json(inputs: ExportInputs, tmp_path: Path) -> None:
    expected = export(inputs)
    (tmp_path / "in.json").write_text(json.dumps(to_json(inputs)))
    command = [sys.executable, "-m", "components.steps", "export", "--inputs", str(tmp_path / "in.json")]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == to_json(expected)
