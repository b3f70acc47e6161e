"""One MLflow run a night, and logging that may be repeated."""

import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.adapters.mlflow.tracking import (
    artifact_uri,
    close_run,
    log_artifacts,
    log_curves,
    log_metrics,
    open_run,
    set_tags,
)
from components.config import MlflowSettings
from components.core.errors import TransientError
from tests.helpers.model_package import new_mlflow, night


@pytest.fixture
def mlflow(tmp_path: Path) -> MlflowSettings:
    return new_mlflow(tmp_path / "mlflow")


@pytest.fixture
def client(mlflow: MlflowSettings) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow.tracking_uri)


def test_every_step_of_a_night_finds_the_same_run(mlflow: MlflowSettings, client: MlflowClient, tmp_path: Path) -> None:
    first = open_run(mlflow, night(tmp_path))
    again = open_run(mlflow, night(tmp_path))
    next_night = open_run(mlflow, night(tmp_path, "2026-11-02"))

    assert first == again != next_night
    run = client.get_run(first)
    assert run.info.run_name == "2026-11-01"
    assert run.data.tags["stlm.key"] == "cells.line1.cam1"
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "stlm.cells.line1.cam1"
    assert run.info.artifact_uri.startswith(f"{mlflow.artifact_root}/stlm.cells.line1.cam1/")


def test_steps_that_open_a_night_at_once_get_one_run(mlflow: MlflowSettings, tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(open_run(mlflow, night(tmp_path)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 6
    assert len(set(found)) == 1


def test_metrics_logged_again_are_the_same_rows(mlflow: MlflowSettings, client: MlflowClient, tmp_path: Path) -> None:
    run_id = open_run(mlflow, night(tmp_path))
    curves = {"pixel": [{"step": step, "loss": 1.0 / (step + 1), "focal": 0.5} for step in range(1200)]}

    for _ in range(2):
        log_metrics(mlflow, run_id, {"image_auroc": 0.97, "pro": None})
        log_curves(mlflow, run_id, curves)

    assert [m.value for m in client.get_metric_history(run_id, "image_auroc")] == [0.97]
    history = client.get_metric_history(run_id, "pixel/loss")
    assert [(m.step, m.value) for m in history] == [(row["step"], row["loss"]) for row in curves["pixel"]]
    assert "pro" not in client.get_run(run_id).data.metrics


def test_artifacts_and_tags_are_replaced_in_place(mlflow: MlflowSettings, client: MlflowClient, tmp_path: Path) -> None:
    run_id = open_run(mlflow, night(tmp_path))
    page = tmp_path / "page" / "report.html"
    page.parent.mkdir()
    for content in ("draft", "final"):
        page.write_text(content)
        uri = log_artifacts(mlflow, run_id, page, "report")
        folder_uri = log_artifacts(mlflow, run_id, page.parent, "folder")
        set_tags(mlflow, run_id, {"stlm.verdict": content})

    assert uri == f"{artifact_uri(mlflow, run_id)}/report/report.html"
    assert Path(uri).read_text() == "final"
    assert (Path(folder_uri) / "report.html").read_text() == "final"
    assert client.get_run(run_id).data.tags["stlm.verdict"] == "final"


def test_a_closed_run_still_takes_what_a_later_step_logs(
    mlflow: MlflowSettings, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = open_run(mlflow, night(tmp_path))

    close_run(mlflow, run_id, failed=True)
    assert client.get_run(run_id).info.status == "FAILED"
    log_metrics(mlflow, run_id, {"late": 1.0})
    close_run(mlflow, run_id)

    assert client.get_run(run_id).info.status == "FINISHED"
    assert open_run(mlflow, night(tmp_path)) == run_id


@pytest.mark.chaos("MLflow does not answer", outcome="tried again; named without its password")
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql+psycopg2://user:hidden@127.0.0.1:9/mlflow"])
def test_unreachable_server_is_worth_a_retry_and_named_without_its_password(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"MLflow at .*127\.0\.0\.1:9.* cannot be reached") as raised:
        open_run(MlflowSettings(tracking_uri=uri, artifact_root=str(tmp_path)), night(tmp_path))

    assert "hidden" not in str(raised.value)
