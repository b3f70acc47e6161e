"""The package: a folder with everything that serving needs, sealed by a manifest.

=====================  =================================================================
``model.safetensors``  weights
``config.json``        the recipe that builds the network
``model.onnx``         the same model, preprocessing included
``calibration.json``   the operating threshold and where it comes from
``golden.json``        digest of the golden set that the model was judged on
``signature.json``     what a server takes and gives, see ``signature.py``
``probe.json``         scores of some golden images, which lie in ``probe/``, see ``probe.py``
``manifest.json``      sha256 of every other file; its own sha256 is the package's digest
=====================  =================================================================

Other files (lineage, replay list) may lie beside them; the manifest covers them as well.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from stlm.errors import WeightsError

__all__ = ["GOLDEN_FILE", "MANIFEST_FILE", "ONNX_FILE", "seal_package", "verify_package"]

MANIFEST_FILE = "manifest.json"
ONNX_FILE = "model.onnx"
GOLDEN_FILE = "golden.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """Relative name -> path of every file but the manifest; hidden files, left by a crashed writer, do not count."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path
        for name, path in sorted(files.items())
        if name != MANIFEST_FILE and not any(part.startswith(".") for part in name.split("/"))
    }


def seal_package(folder: Path) -> str:
    """Write the manifest of ``folder`` atomically.

    Args:
        folder: The package; a manifest that is there already is replaced.

    Returns:
        The package's digest: hex sha256 of the manifest.

    Raises:
        WeightsError: The folder holds no files.
    """
    sums = {name: _sha256(path) for name, path in _files(folder).items()}
    if not sums:
        raise WeightsError(f"package {folder} holds no files")
    content = json.dumps(sums, sort_keys=True, indent=1).encode()
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{MANIFEST_FILE}.")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    # mkstemp's files are readable by their owner alone; a served package is not secret.
    Path(temporary).chmod(0o644)
    Path(temporary).replace(folder / MANIFEST_FILE)
    return hashlib.sha256(content).hexdigest()


def verify_package(folder: Path) -> str:
    """Check every file of ``folder`` against its manifest.

    Args:
        folder: A sealed package.

    Returns:
        The package's digest.

    Raises:
        WeightsError: The manifest is missing or unreadable, or a file is missing, altered or not listed; the
            message names every such file.
    """
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
        sums = json.loads(content)
    except FileNotFoundError:
        raise WeightsError(f"package {folder} has no {MANIFEST_FILE}") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(sums, dict) or not sums:
        raise WeightsError(f"{path}: expected an object of file -> sha256")
    files = _files(folder)
    problems = [f"{name} is missing" for name in sorted(set(sums) - set(files))]
    problems += [f"{name} is not listed" for name in sorted(set(files) - set(sums))]
    for name in sorted(set(files) & set(sums)):
        got = _sha256(files[name])
        if got != sums[name]:
            problems.append(f"{name} is altered (sha256 {got}, expected {sums[name]})")
    if problems:
        raise WeightsError(f"package {folder}: {'; '.join(problems)}")
    return hashlib.sha256(content).hexdigest()
