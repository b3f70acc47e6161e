"""Does a package load and predict where nothing else is loaded? ``python -m stlm.serving.load_check PACKAGE``.

Exit status 0 says yes; anything else comes with the reason as the last line of standard error.
"""

import sys
from pathlib import Path

import numpy as np

from stlm.serving.predictor import OnnxPredictor

__all__ = ["check_package", "main"]

_SIZES = ((64, 96), (301, 200))


def check_package(package_dir: Path) -> None:
    """Load the package as a server would and predict on made-up images of two sizes.

    Args:
        package_dir: A sealed package.

    Raises:
        WeightsError: It does not load, or its output is not finite.
    """
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _SIZES]
    OnnxPredictor(package_dir).predict(images)


def main(argv: list[str] | None = None) -> int:
    """Command line: one argument, the package's folder."""
    (package_dir,) = sys.argv[1:] if argv is None else argv
    check_package(Path(package_dir))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
