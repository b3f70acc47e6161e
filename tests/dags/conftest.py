"""Airflow's database, once per test run."""

import pytest


@pytest.fixture(scope="session")
def airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()
