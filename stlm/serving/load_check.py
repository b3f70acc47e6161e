"""Does a package load where nothing else is, and say again what it said when it was judged?

Started by :func:`check_command` in an interpreter of its own, in which no pickle can be loaded and only the library
and what serving needs can be imported. Exit status 0 says yes, with one line of JSON; anything else comes with the
reason as the last line of standard error.
"""

import json
import sys
from pathlib import Path
from typing import Any

from stlm.serving.clean_process import RUNTIME, allow_only, forbid_pickle

__all__ = ["check_command", "check_package", "main"]

_SIZES = ((64, 96), (301, 200))
_TYPES: dict[str, type] = {"double": float, "long": int}
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from stlm.serving.load_check import main; sys.exit(main())"


def check_command(package_dir: Path) -> list[str]:
    """The command that checks a package in an interpreter that reads no environment and no user's packages.

    Args:
        package_dir: A sealed package.

    Returns:
        The command.
    """
    library = Path(__file__).resolve().parents[2]
    return [sys.executable, "-I", "-c", _START, str(library), str(package_dir.resolve())]


def check_package(package_dir: Path) -> int:
    """Load the package as a server would, predict, and compare with its signature and with the recorded scores.

    Args:
        package_dir: A sealed package.

    Returns:
        On how many golden images it said what it had said before; 0 for a package from before those were kept.

    Raises:
        WeightsError: It does not load, its output is not finite or not what its signature says, or a score is
            another one.
    """
    import numpy as np

    from stlm.serving.predictor import OnnxPredictor
    from stlm.serving.probe import compare_scores, read_probe

    predictor = OnnxPredictor(package_dir)
    random = np.random.default_rng(0)
    made_up = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _SIZES]
    _check_signature(package_dir, predictor.predict(made_up))
    images, tolerance = read_probe(package_dir)
    # One by one, as a camera sends them.
    scores = [predictor.predict([image.pixels])[0].score for image in images]
    compare_scores(images, scores, tolerance=tolerance)
    return len(images)


def _check_signature(package_dir: Path, predictions: list[Any]) -> None:
    from stlm.errors import WeightsError
    from stlm.serving.signature import read_signature

    signature = read_signature(package_dir)
    for column in (signature or {}).get("outputs", []):
        name, kind = column["name"], column["type"]
        value = getattr(predictions[0], name, None)
        if value is None or type(value) is not _TYPES.get(kind, type(value)):
            raise WeightsError(f"package {package_dir}: its signature promises {name} ({kind}), it gives {value!r:.40}")


def main(argv: list[str] | None = None) -> int:
    """Command line: one argument, the package's folder."""
    (package_dir,) = sys.argv[1:] if argv is None else argv
    forbid_pickle()
    allow_only(RUNTIME, packages=("stlm",))
    num_images = check_package(Path(package_dir))
    sys.stdout.write(json.dumps({"num_images": num_images}) + "\n")
    return 0
