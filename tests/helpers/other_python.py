"""A Python with packages that the product does not have, for peers in benchmarks."""

import sys
from pathlib import Path

__all__ = ["python_with"]


def python_with(*packages: str) -> list[str]:
    """The command of a Python in an environment of its own, which uv makes when it is first run."""
    uv = str(Path(sys.executable).with_name("uv"))
    wanted = [word for package in packages for word in ("--with", package)]
    return [uv, "run", "--quiet", "--isolated", "--no-project", "--python", "3.11", *wanted, "python"]
