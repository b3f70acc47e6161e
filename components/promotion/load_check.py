"""Load check: what would serve loads in clean processes and says what it said when it was judged.

Asked of the package, as a camera's PC loads it (``stlm/serving/load_check.py``), and of the MLflow model around it, as
a server loads it (``pyfunc_process.py``): each in an interpreter of its own, in which no pickle can be loaded and only
what serving needs can be imported. The model's signature is read without loading anything.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import Model

from components.adapters.mlflow.pyfunc_model import PACKAGE_PATH
from components.core.errors import InputError
from stlm.errors import WeightsError
from stlm.serving import clean_process
from stlm.serving.load_check import check_command
from stlm.serving.probe import compare_scores, probe_path, read_probe
from stlm.serving.signature import read_signature

__all__ = ["check_loads", "check_serves", "check_signature"]

logger = logging.getLogger(__name__)

_TIMEOUT_S = 120.0


def check_loads(package_dir: Path, *, scores_needed: bool) -> int:
    """Load and predict in a fresh interpreter, as a server would, and compare with the recorded scores.

    Args:
        package_dir: A sealed package.
        scores_needed: Whether a package without recorded scores, from before they were kept, is refused.

    Returns:
        On how many golden images it said what it had said when it was judged.

    Raises:
        InputError: It does not load there, or says something else; the message ends with the reason.
    """
    said = _run(check_command(package_dir), f"package {package_dir}")
    num_images = int(said["num_images"])
    if scores_needed and num_images == 0:
        raise InputError(f"package {package_dir} holds no golden images with recorded scores to check it by")
    logger.info("package %s loads; num_probe_images=%d", package_dir, num_images)
    return num_images


def check_serves(model_dir: Path, *, scores_needed: bool) -> int:
    """Load an MLflow model in fresh interpreters, alone and with MLflow, and compare with the recorded scores.

    Args:
        model_dir: The model with its package, as it is or will be registered.
        scores_needed: As for :func:`check_loads`.

    Returns:
        On how many golden images it said what its package had said when it was judged.

    Raises:
        InputError: It does not load with what its own requirements name, or says something else.
    """
    package_dir = model_dir / PACKAGE_PATH
    num_images = check_loads(package_dir, scores_needed=scores_needed)
    check_signature(package_dir, model_dir)
    try:
        images, tolerance = read_probe(package_dir)
        files = [str(probe_path(package_dir, index)) for index in range(len(images))]
        script = Path(__file__).with_name("pyfunc_process.py")
        command = [sys.executable, "-I", str(script), str(clean_process.__file__), str(model_dir.resolve()), *files]
        said = _run(command, f"the MLflow model of package {package_dir}")
        compare_scores(images, said["scores"], tolerance=tolerance)
    except WeightsError as error:
        raise InputError(f"the MLflow model of package {package_dir}: {error}") from error
    return num_images


def _run(command: list[str], what: str) -> dict[str, Any]:
    """The JSON of the last line that a clean process prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{what} does not load within {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"{what} does not load in a clean process: {lines[-1]}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def check_signature(package_dir: Path, model_dir: Path) -> None:
    """Compare what an MLflow model says that it takes and gives with what its package says; nothing is loaded.

    Args:
        package_dir: A sealed package; one from before signatures were kept agrees with everything.
        model_dir: The MLflow model that serves it, or a folder with its ``MLmodel`` file.

    Raises:
        InputError: They differ, or one of them cannot be read.
    """
    try:
        recorded = read_signature(package_dir)
        if recorded is None:
            return
        signature = Model.load(str(model_dir)).signature
    except (WeightsError, MlflowException, OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"the signature of {package_dir} cannot be verified: {error}") from error
    found = {} if signature is None else signature.to_dict()
    served = {name: _columns(found.get(name)) for name in ("inputs", "outputs")}
    wanted = {name: _columns(recorded.get(name)) for name in ("inputs", "outputs")}
    for name, columns in wanted.items():
        if served[name] != columns:
            raise InputError(f"the signature of {package_dir} names {name} {columns}, MLflow's model {served[name]}")


def _columns(value: Any) -> list[tuple[str, str]]:
    """Name and type of each column, of a list or of MLflow's JSON of one."""
    columns = json.loads(value) if isinstance(value, str) else value or []
    return [(str(column.get("name")), str(column.get("type"))) for column in columns]
