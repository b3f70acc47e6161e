"""Before a package serves it has loaded where nothing else is, and said again what it said when it was judged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.adapters.mlflow.pyfunc_model import save_served_model
from components.core.errors import InputError
from components.local_stack.airflow_env import repository_root
from components.promotion.load_check import check_loads, check_serves, check_signature
from components.promotion.sbom import bill_of_materials, components_of
from stlm.errors import WeightsError
from stlm.serving.load_check import check_package
from stlm.serving.package import seal_package
from tests.helpers.model_package import write_package
from tests.helpers.pickles import pickles_below

FILES = (
    "calibration.json",
    "config.json",
    "lineage.json",
    "manifest.json",
    "model.onnx",
    "model.safetensors",
    "probe.json",
    "probe/000.png",
    "probe/001.png",
    "replay.json",
    "signature.json",
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    write_package(tmp_path / "package")
    return tmp_path / "package"


def test_a_package_says_in_a_clean_process_what_it_said_before(package: Path) -> None:
    assert {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()} == set(FILES)
    assert check_loads(package, scores_needed=True) == 2


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_refused(package: Path, name: str) -> None:
    content = bytearray((package / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package / name).write_bytes(bytes(content))
    with pytest.raises(WeightsError, match=r"altered|cannot be read|is missing|is not listed"):
        check_package(package)


def test_a_flipped_bit_is_refused_through_the_door_that_promotion_uses(package: Path) -> None:
    content = bytearray((package / "model.onnx").read_bytes())
    content[-1] ^= 1
    (package / "model.onnx").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"does not load in a clean process: .*model.onnx is altered"):
        check_loads(package, scores_needed=True)


def _change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, text
    path.write_text(text.replace(before, after))


def test_another_score_than_the_recorded_one_is_refused_also_where_the_package_was_sealed_again(package: Path) -> None:
    probe = json.loads((package / "probe.json").read_text())
    probe["images"][1]["score"] += 0.01
    (package / "probe.json").write_text(json.dumps(probe))
    seal_package(package)
    with pytest.raises(
        InputError, match=r"golden image test/good/001.png scores .*, recorded was .* \(tolerance 0.001\)"
    ):
        check_loads(package, scores_needed=True)


def test_a_package_of_before_has_no_scores_which_is_enough_to_go_back_but_not_to_be_promoted(package: Path) -> None:
    shutil.rmtree(package / "probe")
    (package / "probe.json").unlink()
    seal_package(package)
    assert check_loads(package, scores_needed=False) == 0
    with pytest.raises(InputError, match="holds no golden images with recorded scores"):
        check_loads(package, scores_needed=True)


def test_a_package_that_promises_what_it_does_not_give_is_refused(package: Path) -> None:
    _change(package / "signature.json", '"name": "label"', '"name": "verdict"')
    seal_package(package)
    with pytest.raises(WeightsError, match=r"its signature promises verdict \(long\), it gives None"):
        check_package(package)


def test_the_models_signature_is_compared_without_loading_it_and_nothing_in_it_is_a_pickle(
    package: Path, tmp_path: Path
) -> None:
    (tmp_path / "served").mkdir()
    model = save_served_model(package, tmp_path / "served")
    check_signature(package, model)
    assert pickles_below(model) == []

    _change(model / "MLmodel", '"name": "score"', '"name": "worth"')
    with pytest.raises(InputError, match=r"names outputs \[\('score', 'double'\).*MLflow's model \[\('worth'"):
        check_signature(package, model)
    (model / "MLmodel").write_text("no model")
    with pytest.raises(InputError, match="cannot be verified"):
        check_signature(package, model)


@pytest.fixture
def served(package: Path, tmp_path: Path) -> Path:
    """The package as an MLflow model."""
    (tmp_path / "served").mkdir()
    return save_served_model(package, tmp_path / "served")


def test_what_is_checked_is_what_serves_and_it_needs_no_torch(served: Path) -> None:
    assert check_serves(served, scores_needed=True) == 2
    assert "torch" not in (served / "requirements.txt").read_text()
    code = {path.relative_to(served / "code" / "stlm").parts[0] for path in (served / "code").rglob("*.py")}
    assert code == {"__init__.py", "calibration.py", "data", "errors.py", "nn", "serving"}


def test_code_beside_the_package_that_scores_otherwise_is_refused(served: Path) -> None:
    code = served / "code" / "stlm" / "serving" / "predictor.py"
    _change(code, "Prediction(score=float(score),", "Prediction(score=float(score) + 0.01,")

    with pytest.raises(InputError, match=r"the MLflow model of .* golden image test/good/00\d.png scores .*, recorded"):
        check_serves(served, scores_needed=True)


def test_a_model_may_import_what_its_own_requirements_name_and_nothing_else(served: Path) -> None:
    code, requirements = served / "code" / "stlm" / "serving" / "predictor.py", served / "requirements.txt"
    code.write_text(code.read_text().replace("import numpy as np\n", "import numpy as np\nimport filelock\n", 1))
    with pytest.raises(InputError, match=r"does not load in a clean process: .*No module named 'filelock' among what"):
        check_serves(served, scores_needed=True)

    requirements.write_text(requirements.read_text() + "\nfilelock==3\n")  # as models of before name torch

    assert check_serves(served, scores_needed=True) == 2


def _clean(script: str) -> list[str]:
    start = "import sys; sys.path.insert(0, sys.argv[1]); from stlm.serving.clean_process import *\n"
    command = [sys.executable, "-I", "-c", start + script, str(repository_root())]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


_TRY_PICKLES = """
import os, pickle
forbid_pickle()
for unpickle in (pickle.loads, pickle._loads):
    try:
        unpickle(pickle.dumps(os.getcwd))
    except RuntimeError as error:
        print(error)
"""
_TRY_IMPORTS = """
import importlib
allow_only(RUNTIME, packages=("stlm",))
import numpy, onnxruntime, PIL.Image, stlm.serving.predictor
for name in ("torch", "mlflow", "airflow", "components", "pandas", "safetensors"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(error)
"""


@pytest.mark.chaos("a pickle in a package that is to serve", outcome="cannot be loaded")
def test_in_the_clean_process_no_pickle_and_nothing_but_the_runtime_can_be_had() -> None:
    said = _clean(_TRY_PICKLES)
    assert said == ["a pickle that wants posix.getcwd was opened, which is forbidden"] * 2
    names = ("torch", "mlflow", "airflow", "components", "pandas", "safetensors")
    assert _clean(_TRY_IMPORTS) == [f"No module named '{name}' among what serving needs" for name in names]


def test_the_bill_of_materials_names_every_distribution_and_is_the_same_every_time() -> None:
    content = bill_of_materials()
    bill_of_materials.cache_clear()
    assert bill_of_materials() == content
    bill = json.loads(content)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert "timestamp" not in bill["metadata"]
    named = {(component["name"], component["version"]) for component in bill["components"]}
    assert set(components_of()) <= named
    assert {"mlflow", "onnxruntime", "torch", "stlm", "CPython"} <= {name for name, _ in named}
    torch = next(component for component in bill["components"] if component["name"] == "torch")
    assert torch["purl"].startswith("pkg:pypi/torch@")
