"""Command line of the steps: ``python -m components.steps <step> --inputs in.json [--outputs out.json]``.

A step is a folder of ``components/steps/``; its ``step.py`` has a function of the same name, whose argument says which
inputs it takes.
"""

import argparse
import importlib
import pkgutil
import sys
import typing

import components.steps
from components.core.step_runner import main_for

__all__ = ["main"]

_STEPS = tuple(module.name for module in pkgutil.iter_modules(components.steps.__path__) if module.ispkg)


def main(argv: list[str] | None = None) -> int:
    """Run one step on a JSON file of its inputs."""
    parser = argparse.ArgumentParser(prog="python -m components.steps", description=main.__doc__)
    parser.add_argument("step", choices=_STEPS, help="which one; `<step> --help` says more of it")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="--inputs FILE [--outputs FILE]")
    chosen = parser.parse_args(argv)
    function = getattr(importlib.import_module(f"components.steps.{chosen.step}.step"), chosen.step)
    return main_for(chosen.step, typing.get_type_hints(function)["inputs"], function, chosen.arguments)


if __name__ == "__main__":
    sys.exit(main())
