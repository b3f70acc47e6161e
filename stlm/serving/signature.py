"""What a served model takes and gives, written down in the package so that nobody has to load it to know."""

import json
from pathlib import Path
from typing import Any

from stlm.errors import WeightsError

__all__ = ["SIGNATURE", "SIGNATURE_FILE", "read_signature", "write_signature"]

SIGNATURE_FILE = "signature.json"
SIGNATURE: dict[str, list[dict[str, Any]]] = {
    "inputs": [{"type": "any", "name": "image"}],
    "outputs": [
        {"type": "double", "name": "score"},
        {"type": "long", "name": "label"},
        {"type": "any", "name": "anomaly_map"},
    ],
}
"""In MLflow's words. A cell of ``image`` may be bytes, base64 or an array, for which MLflow has "any"."""


def write_signature(folder: Path) -> None:
    """Write the signature into a package that is not sealed yet.

    Args:
        folder: The package.
    """
    (folder / SIGNATURE_FILE).write_text(json.dumps(SIGNATURE, indent=1), encoding="utf-8")


def read_signature(folder: Path) -> dict[str, list[dict[str, Any]]] | None:
    """The signature of a package.

    Args:
        folder: The package.

    Returns:
        Inputs and outputs; ``None`` for a package from before signatures were written.

    Raises:
        WeightsError: The file is no JSON object.
    """
    path = folder / SIGNATURE_FILE
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: expected an object, got {value!r}")
    return value
