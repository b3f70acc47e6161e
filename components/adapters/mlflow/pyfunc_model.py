"""A package dressed as an MLflow model: models-from-code, with this library beside it, and nothing pickled."""

import importlib.metadata
import json
import shutil
import warnings
from pathlib import Path

import mlflow.pyfunc
from mlflow.models import ModelSignature

import stlm
from stlm.serving.signature import SIGNATURE

__all__ = ["PACKAGE_PATH", "save_served_model"]

PACKAGE_PATH = "artifacts/package"
"""Where the package lies within the MLflow model."""
_RUNTIME = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow", "torch")
"""What a server needs to load the model; the library itself travels with it."""


def save_served_model(package_dir: Path, folder: Path) -> Path:
    """Write an MLflow model that serves the package.

    Args:
        package_dir: A sealed package.
        folder: An empty folder for scratch files and the model.

    Returns:
        The model's folder within ``folder``.
    """
    library = Path(stlm.__file__).parent
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
            code_paths=[str(library)],
            signature=ModelSignature.from_dict({name: json.dumps(columns) for name, columns in SIGNATURE.items()}),
            pip_requirements=[f"{name}=={_public_version(name)}" for name in _RUNTIME],
        )
    return folder / "model"


def _public_version(distribution: str) -> str:
    """Without a local suffix such as ``+cu132``, which no package index lists."""
    return importlib.metadata.version(distribution).partition("+")[0]
