"""A product's first day: intake, page, a person's decisions, and the first night on what was accepted."""

import json
from pathlib import Path

import pytest
from airflow.sdk import DAG

from components.cli import main as console
from components.config import load_config
from components.core.contracts import RunRef
from components.core.run_records import StepRecord, write_record
from tests.components.annotation.test_screen import write_images
from tests.helpers.landing import feed_from_folder
from tests.helpers.model_package import new_mlflow
from tests.helpers.small_networks import write_clip
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world

# What Airflow and the libraries it runs deprecate among themselves is theirs; each step's own tests are strict.
pytestmark = pytest.mark.filterwarnings("default")

NIGHT = NIGHTS[0]


def _with_clip(root: Path) -> TinyWorld:
    new_mlflow(root / "mlflow")
    world = make_tiny_world(root)
    model, path, digest = write_clip(root / "clip")
    world.config_path.write_text(
        f'{world.config_path.read_text()}\n[zero_shot]\nclip_model = "{model}"\nclip_checkpoint = "{path}"\n'
        f'clip_sha256 = "{digest}"\nintake = "intake"\ndevice = "cpu"\nmax_masks = 2\n'
    )
    return TinyWorld(root=root, config_path=world.config_path, config=load_config(world.config_path))


def _run(dag: DAG) -> dict[str, str]:
    dag_run = dag.test(run_conf={"partition": NIGHT})
    return {ti.task_id: str(ti.state) for ti in dag_run.get_task_instances()}


@pytest.mark.slow
def test_what_a_person_accepts_is_what_the_first_night_takes(
    tmp_path: Path, airflow_database: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from components.steps.collect.step import CollectInputs, collect
    from dags.screen_landing import screen_landing

    world = _with_clip(tmp_path)
    monkeypatch.setenv("STLM_CONFIG", str(world.config_path))
    write_record(world.run(NIGHT), StepRecord(step="collect", outcome="SUCCEEDED", seconds=1.0))
    dag = screen_landing(world.config, world.config.models[0])
    (tmp_path / "intake").mkdir()

    assert _run(dag) == {"collect": "success", "screen": "skipped"}
    write_images(tmp_path / "camera", 6)
    feed_from_folder(sorted((tmp_path / "camera").iterdir()), world.config.zero_shot.intake, KEY, "raw", NIGHT)
    assert _run(dag) == {"collect": "success", "screen": "success"}

    (review,) = (Path(world.config.paths.work_dir) / "reviews" / KEY.slug).glob("screen-*/review.json")
    digest = json.loads(review.read_text())["digest"]
    decisions = {f"raw/{number:03d}.png": "reject" if number % 3 == 0 else "accept" for number in range(6)}
    said = tmp_path / "decisions.json"
    said.write_text(json.dumps({"kind": "screen", "key": KEY.slug, "review": digest, "decisions": decisions}))
    assert console(["--config", str(world.config_path), "screen", "--accept", str(said)]) == 0
    assert "4 images accepted" in capsys.readouterr().out

    night = RunRef(key=KEY, partition=NIGHT, work_dir=world.config.paths.work_dir)
    batch = collect(CollectInputs(run=night, landing=world.config.paths.landing)).batch
    assert batch is not None
    lot = Path(batch.image_dir) / "20260301-screened"
    assert sorted(path.name for path in lot.iterdir()) == [f"raw-{number:03d}.png" for number in (1, 2, 4, 5)]
    assert (world.run(NIGHT).run_dir / "records" / "collect.json").exists()


def test_without_an_intake_the_dag_says_what_to_set(
    tmp_path: Path, airflow_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dags.screen_landing import screen_landing

    world = make_tiny_world(tmp_path)
    monkeypatch.setenv("STLM_CONFIG", str(world.config_path))

    assert _run(screen_landing(world.config, world.config.models[0]))["collect"] == "failed"

    record = Path(world.config.paths.work_dir) / "screening" / "runs" / KEY.slug / NIGHT / "records" / "collect.json"
    detail = StepRecord.from_json(json.loads(record.read_text())).detail
    assert detail == "no intake is configured: set zero_shot.intake to a folder or s3:// address"
