"""Pyfunc model of a package: models-from-code, with what it imports of the library, and nothing pickled."""

import ast
import importlib.metadata
import json
import shutil
import warnings
from pathlib import Path

import mlflow.pyfunc
from mlflow.models import ModelSignature

import stlm
from stlm.serving.signature import SIGNATURE

__all__ = ["PACKAGE_PATH", "save_served_model", "served_files"]

PACKAGE_PATH = "artifacts/package"
"""Where the package lies within the MLflow model."""
_RUNTIME = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")
"""What a server needs to load the model; what it imports of the library travels with it."""


def save_served_model(package_dir: Path, folder: Path) -> Path:
    """Write an MLflow model that serves the package.

    Args:
        package_dir: A sealed package.
        folder: An empty folder for scratch files and the model.

    Returns:
        The model's folder within ``folder``.
    """
    library = Path(stlm.__file__).parent
    for path in served_files(library):
        target = folder / "code" / path.relative_to(library.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    # MLflow names an artifact's folder after its source.
    staged = folder / "package"
    shutil.copytree(package_dir, staged)
    with warnings.catch_warnings():
        # The signature is given; an example would be a picture in JSON.
        warnings.filterwarnings("ignore", message="(?s).*input example was not provided", category=UserWarning)
        mlflow.pyfunc.save_model(
            folder / "model",
            python_model=str(library / "serving" / "pyfunc.py"),
            artifacts={"package": str(staged)},
            code_paths=[str(folder / "code" / library.name)],
            signature=ModelSignature.from_dict({name: json.dumps(columns) for name, columns in SIGNATURE.items()}),
            pip_requirements=[f"{name}=={_public_version(name)}" for name in _RUNTIME],
        )
    return folder / "model"


def served_files(library: Path) -> list[Path]:
    """Files of the library that the served model needs: what ``serving/pyfunc.py`` imports, and what these import.

    Imports within functions do not count: they are what serving does without.

    Args:
        library: The folder ``stlm/``.

    Returns:
        Its files, sorted.
    """
    found: set[Path] = set()
    waiting = [library / "serving" / "pyfunc.py"]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        waiting += [parent / "__init__.py" for parent in path.parents if parent.is_relative_to(library)]
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == library.name:
                module = library.parent.joinpath(*str(node.module).split("."))
                waiting += [module.with_suffix(".py"), module / "__init__.py"]
                waiting += [module / f"{alias.name}.py" for alias in node.names]
    return sorted(found)


def _public_version(distribution: str) -> str:
    """Without a local suffix such as ``+cu132``, which no package index lists."""
    return importlib.metadata.version(distribution).partition("+")[0]
