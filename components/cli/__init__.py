"""``stlm``: the command line for people.

It starts Airflow on this machine, asks it for nights and tells what came of them.
"""

from components.cli.main import main

__all__ = ["main"]
