"""No pickle between training and serving: none is loaded by the code, and none lies in what a version is made of.

A training checkpoint is torch's own format, which holds one, and is read by torch's weights-only loader alone; it is
for resuming a night and goes nowhere. The official weights of frozen networks are read in the same way.
"""

import ast
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from components.local_stack.airflow_env import repository_root
from tests.helpers.pickles import pickles_below

ROOT = repository_root()
_PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
_CALLS = {"read_pickle", "to_pickle", "loads_pickle", "load_pickle"}
SOURCES = sorted(path for folder in ("components", "dags", "stlm") for path in (ROOT / folder).rglob("*.py"))


def _findings(path: Path, tree: ast.Module) -> list[str]:
    where, found = path.relative_to(ROOT).as_posix(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            tops = {name.partition(".")[0] for name in names} & _PICKLERS
            found += [f"{where}:{node.lineno} imports {top}" for top in tops]
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id in _PICKLERS and node.attr != "UnpicklingError":
                found.append(f"{where}:{node.lineno} uses {node.value.id}.{node.attr}")
            if node.attr in _CALLS:
                found.append(f"{where}:{node.lineno} uses {node.attr}")
        if isinstance(node, ast.Call):
            found += [f"{where}:{node.lineno} {problem}" for problem in _loader(node)]
    return found


def _loader(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load" and options.get("weights_only") != "True":
        return ["torch.load without weights_only=True"]
    if name == "np.load" and options.get("allow_pickle") != "False":
        return ["np.load without allow_pickle=False"]
    if name in {
        "torch.jit.load",
        "torch.package.PackageImporter",
        "mlflow.pytorch.load_model",
        "mlflow.pytorch.log_model",
    }:
        return [name]
    return []


def test_no_code_loads_a_pickle() -> None:
    found = [line for path in SOURCES for line in _findings(path, ast.parse(path.read_text(encoding="utf-8")))]
    # It must name the error that torch's weights-only loader raises.
    assert [line for line in found if not line.startswith("stlm/training/checkpoint.py:5 imports pickle")] == []
    assert len(SOURCES) > 100


def test_only_training_checkpoints_are_written_in_torchs_format() -> None:
    writers = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.save"
    }
    assert writers == {"stlm/training/checkpoint.py"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(open('x', 'rb'))",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import numpy as np\nnp.load('x')",
        "import pandas as pd\npd.read_pickle('x')",
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str) -> None:
    assert _findings(ROOT / "stlm" / "x.py", ast.parse(source))


def test_the_scan_of_files_finds_pickles_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "harmless.json").write_text('{"a": 1}')
    np.save(tmp_path / "plain.npy", np.arange(3))
    assert pickles_below(tmp_path) == []
    (tmp_path / "weights.bin").write_bytes(pickle.dumps({"a": os.getcwd}))
    (tmp_path / "old.txt").write_bytes(pickle.dumps(os.getcwd, protocol=0))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "model.onnx", "w") as archive:
        archive.writestr("data.pkl", b"")
    assert pickles_below(tmp_path) == ["model.onnx!data.pkl", "objects.npy: objects", "old.txt", "weights.bin"]
