"""Desks and champions for tests, without the steps that lead to them."""

import datetime as dt
from pathlib import Path
from typing import Any

from components._promotion.desk import Desk, open_desk
from components.adapters.lease import Clock, utc_now
from components.config import MlflowSettings, PromoteSettings
from tests.helpers.model_package import KEY

__all__ = ["ahead", "make_champion", "new_desk"]


def new_desk(
    work_dir: Path, mlflow: MlflowSettings, *, ledger: str = "", endpoint_url: str = "", clock: Clock = utc_now
) -> Desk:
    """The desk of the tests' key."""
    settings = PromoteSettings(ledger=ledger, ledger_endpoint_url=endpoint_url)
    return open_desk(KEY, work_dir=str(work_dir), mlflow=mlflow, settings=settings, clock=clock)


def make_champion(desk: Desk, version: int, *, partition: str = "2026-11-01", **record: Any) -> None:
    """A promotion as the step makes it, of a version that is registered."""
    with desk.held("tests") as held:
        held.move(
            version,
            action="promote",
            anchor=held.standing.anchor or version,
            by="gate",
            reason="verdict PROMOTE",
            record={"partition": partition, **record},
        )


def ahead(seconds: float) -> Clock:
    """A clock that is so far ahead of this machine's."""
    return lambda: utc_now() + dt.timedelta(seconds=seconds)
