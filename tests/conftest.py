"""Before anything is imported: a home, a git identity and an Airflow of the tests' own, and no telemetry."""

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

from components.local_stack.airflow_env import airflow_environment, repository_root

pytest_plugins = ["tests.helpers.chaos_table"]

# A busy machine is no failure: pytest-timeout bounds what hangs.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

_HOME = Path(tempfile.mkdtemp(prefix="stlm-tests-home-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

os.environ |= {
    "HOME": str(_HOME),
    "XDG_CACHE_HOME": str(_HOME / ".cache"),
    "XDG_CONFIG_HOME": str(_HOME / ".config"),
    # Matplotlib's font list takes seconds to make; it is the same for every run.
    "MPLCONFIGDIR": str(repository_root() / ".cache" / "matplotlib"),
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Tests",
    "GIT_AUTHOR_EMAIL": "tests@example.com",
    "GIT_COMMITTER_NAME": "Tests",
    "GIT_COMMITTER_EMAIL": "tests@example.com",
}
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each take every core for one tensor wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= airflow_environment(_HOME / "airflow", repository_root() / "infra" / "quickstart.toml", scheduled=False)


@pytest.fixture(autouse=True)
def _our_loggers_are_heard() -> None:
    """Airflow's logging set-up, once a test has run a DAG, silences every logger that was there before."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in ("components", "stlm", "dags"):
            logger.disabled = False
            logger.propagate = True


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's database of this test run."""
    from airflow.utils.db import initdb

    initdb()
