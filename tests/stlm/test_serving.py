"""A package is served as it was sealed, or not at all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stlm.data.transforms import preprocess
from stlm.errors import DataError, WeightsError
from stlm.serving.load_check import check_package
from stlm.serving.package import seal_package, verify_package
from stlm.serving.predictor import OnnxPredictor, TorchPredictor
from tests.helpers.model_package import tiny_model, write_package

FILES = ("calibration.json", "config.json", "lineage.json", "model.onnx", "model.safetensors", "replay.json")


@pytest.fixture
def package_dir(tmp_path: Path) -> Path:
    write_package(tmp_path / "package")
    return tmp_path / "package"


def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    sizes = [(64, 64)] * 10 + [(40, 90), (64, 64), (200, 31)]
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("predictor", [OnnxPredictor, TorchPredictor])
def test_predictions_are_the_models_own_in_order(package_dir: Path, predictor: type[OnnxPredictor]) -> None:
    predictions = predictor(package_dir).predict(images())

    assert len(predictions) == 13
    for image, prediction in zip(images(), predictions, strict=True):
        with torch.no_grad():
            expected = tiny_model()(preprocess(torch.from_numpy(image[None]), (64, 64)))
        assert prediction.score == pytest.approx(float(expected.score), abs=1e-4)
        np.testing.assert_allclose(prediction.anomaly_map, expected.anomaly_map[0].numpy(), atol=1e-4)
        assert prediction.anomaly_map.dtype == np.float32


@pytest.mark.parametrize("predictor", [OnnxPredictor, TorchPredictor])
def test_label_is_one_strictly_above_the_threshold_of_the_package(
    tmp_path: Path, predictor: type[OnnxPredictor]
) -> None:
    write_package(tmp_path / "probe")
    scores = [prediction.score for prediction in predictor(tmp_path / "probe").predict(images())]
    threshold = sorted(scores)[len(scores) // 2]
    write_package(tmp_path / "package", threshold=threshold)

    served = predictor(tmp_path / "package")
    labels = [prediction.label for prediction in served.predict(images())]

    assert served.threshold == threshold
    assert labels == [int(score > threshold) for score in scores]
    assert 0 < sum(labels) < len(labels)


def test_no_images_give_no_predictions(package_dir: Path) -> None:
    assert OnnxPredictor(package_dir).predict([]) == []


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros((8, 8), np.uint8), r"image 1: .*got uint8 \(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"image 1: .*got uint8 \(8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.float32), r"image 1: .*got float32"),
        (np.zeros((0, 8, 3), np.uint8), r"image 1 is empty"),
        ("picture.png", r"image 1: .*got str"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place(package_dir: Path, image: np.ndarray, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        OnnxPredictor(package_dir).predict([np.zeros((8, 8, 3), np.uint8), image])


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_in_any_file_is_refused_by_name(package_dir: Path, name: str) -> None:
    content = bytearray((package_dir / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package_dir / name).write_bytes(content)

    with pytest.raises(WeightsError, match=f"{name} is altered"):
        OnnxPredictor(package_dir)


def test_missing_and_foreign_files_are_refused_together(package_dir: Path) -> None:
    (package_dir / "model.safetensors").unlink()
    (package_dir / "extra.pkl").write_bytes(b"")

    with pytest.raises(WeightsError, match=r"model.safetensors is missing; extra.pkl is not listed"):
        TorchPredictor(package_dir)


def test_package_without_a_manifest_is_refused(package_dir: Path) -> None:
    (package_dir / "manifest.json").unlink()

    with pytest.raises(WeightsError, match=r"has no manifest.json"):
        OnnxPredictor(package_dir)


def test_digest_depends_on_the_files_alone(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        write_package(folder)
    (tmp_path / "two" / ".left-by-a-crash").write_text("")

    digest = seal_package(tmp_path / "two")

    assert digest == verify_package(tmp_path / "one") == verify_package(tmp_path / "two")
    (tmp_path / "two" / "lineage.json").write_text("[]")
    assert seal_package(tmp_path / "two") != digest


def test_model_with_a_broken_output_is_not_taken_for_all_good(package_dir: Path) -> None:
    import onnx

    model = onnx.load(package_dir / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            tensor.raw_data = np.full(list(tensor.dims), np.nan, np.float32).tobytes()
    onnx.save(model, package_dir / "model.onnx")
    seal_package(package_dir)

    with pytest.raises(WeightsError, match="not finite"):
        check_package(package_dir)


def test_onnx_predictor_needs_no_torch(package_dir: Path) -> None:
    code = (
        "import sys, numpy; from stlm.serving.predictor import OnnxPredictor;"
        "OnnxPredictor(sys.argv[1]).predict([numpy.zeros((8, 9, 3), 'uint8')]);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(package_dir)], cwd=Path(__file__).resolve().parents[2], check=True)
