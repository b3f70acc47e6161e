"""Does a package load and predict where nothing else is loaded? Asked before anyone can be served by it."""

import subprocess
import sys
from pathlib import Path

import stlm
from components.errors import InputError

__all__ = ["check_loads"]

_TIMEOUT_S = 120.0


def check_loads(package_dir: Path) -> None:
    """Load and predict in a fresh interpreter, as a server would.

    Args:
        package_dir: A sealed package.

    Raises:
        InputError: It does not load there; the message ends with the reason.
    """
    library = Path(stlm.__file__).parents[1]
    command = [sys.executable, "-m", "stlm.serving.load_check", str(package_dir.resolve())]
    try:
        # The working directory is where "-m" finds the library.
        done = subprocess.run(command, cwd=library, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"package {package_dir} does not load within {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"package {package_dir} does not load in a clean process: {lines[-1]}")
