"""Which night a deadline belongs to, and that nobody watches unless asked to."""

import datetime as dt
import json
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from components.config import ScheduleSettings, load_config
from dags.nightly_retrain import nightly_retrain
from dags.watch_nights import night_before, watch_nights
from tests.helpers.model_package import new_mlflow
from tests.helpers.receivers import web_server
from tests.helpers.tiny_nights import KEY, make_tiny_world

pytestmark = pytest.mark.filterwarnings("default")  # what Airflow deprecates among its own parts is theirs


@pytest.mark.parametrize(
    ("cron", "moment", "night"),
    [
        ("0 2 * * *", "2026-03-10T05:30", "2026-03-10"),
        ("0 22 * * *", "2026-03-10T05:30", "2026-03-09"),  # a night that begins the evening before
        ("0 2 * * 1-5", "2026-03-13T05:30", "2026-03-13"),  # a Friday
        ("0 2 * * 1-5", "2026-03-14T05:30", None),  # a Saturday
        ("0 22 * * 1-5", "2026-03-14T05:30", "2026-03-13"),  # Friday's night
        ("30 5 * * *", "2026-03-10T05:30", "2026-03-09"),
        ("0 1 * * *", "2026-03-29T05:30", "2026-03-29"),  # the clock is set forward that night
    ],
)
def test_a_deadline_belongs_to_the_night_that_was_due_last(cron: str, moment: str, night: str | None) -> None:
    at = dt.datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo("Europe/Berlin"))
    assert night_before(ScheduleSettings(cron=cron, timezone="Europe/Berlin"), at) == night


def test_at_the_hour_set_every_key_is_looked_at_and_the_late_one_is_told(
    tmp_path: Path, airflow_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_tiny_world(tmp_path)
    new_mlflow(tmp_path / "mlflow")
    monkeypatch.setenv("STLM_WEBHOOK_SECRET", "s")
    with web_server() as web:
        told = f'[alerts]\ntraining_deadline = "05:30"\n[notify]\nwebhook_url = "http://127.0.0.1:{web.port}/"\n'
        world.config_path.write_text(world.config_path.read_text() + told)
        monkeypatch.setenv("STLM_CONFIG", str(world.config_path))
        dag = watch_nights(load_config(world.config_path))
        assert dag.timetable.expression == "30 5 * * *"
        run = dag.test(run_conf={"day": "2026-03-10"})
    assert str(run.state) == "success"
    (body,) = web.bodies
    said = json.loads(body)
    assert (said["key"], said["night"], said["outcome"]) == (KEY.slug, "2026-03-10", "NOT BEGUN")


def test_who_is_told_makes_the_last_task_of_a_night(tmp_path: Path) -> None:
    path = make_tiny_world(tmp_path).config_path
    quiet = load_config(path)
    assert "notify" not in nightly_retrain(quiet, quiet.models[0]).task_dict
    path.write_text(path.read_text() + '[notify]\nmail_to = ["ada@example.com"]\n')
    config = load_config(path)
    notify = nightly_retrain(config, config.models[0]).task_dict["notify"]
    assert (notify.upstream_task_ids, notify.downstream_task_ids) == ({"report"}, set())
    assert notify.trigger_rule == "all_done"
