"""``stlm``: the command line for people.

It starts Airflow on this machine, asks it for nights and tells what came of them.
"""

from components.console._main import main

__all__ = ["main"]
