"""Six nights of real lighting drift: magnetic tiles under six exposures, with masks, through the DAG, on real S3.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_mtd_nights.py`` (about a quarter of an hour on two cores)

Each night brings the normals of one exposure; landing zone, DVC remote and MLflow artifacts lie on S3. The golden set
holds every exposure whose masks are all sound, each as a stratum, so that forgetting and drift show.
"""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.config import PipelineConfig, load_config
from components.core.contracts import ModelKey, RunRef
from components.core.run_records import read_night
from stlm.data.layout import read_golden_set, read_train_normals
from stlm.errors import DataError
from tests.helpers.landing import feed_from_folder
from tests.helpers.s3_server import S3Server, s3_server

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mtd"
KEY = ModelKey(product="tiles", line="line1", camera="cam1")
NIGHTS = tuple(f"2026-03-{day:02d}" for day in range(1, 7))

_CONFIG = """
[paths]
work_dir = "work"
landing = "s3://{bucket}/landing"
data_repo = "data-repo"
dvc_remote = "s3://{bucket}/dvc"
s3_endpoint_url = "{endpoint}"

[mlflow]
tracking_uri = "sqlite:///mlflow.db"
artifact_root = "s3://{bucket}/mlflow"

[[models]]
product = "tiles"
line = "line1"
camera = "cam1"
golden = "golden"
recipe = "lite"

[schedule]
retries = 0

# The same tiles come every night under other light and in their own sizes: here that is no duplicate.
[validate]
any_size = true
near_duplicate_bits = 0
mean_brightness = [0.02, 0.98]

[gate.margins]
image_auroc = 0.05
"""


def _golden(target: Path) -> list[str]:
    """Copy the sound exposures into one golden set with exposures as strata; returns them."""
    exposures, rows = [], []
    for exposure in sorted(path.name for path in SHARED.iterdir() if path.is_dir()):
        try:
            items = read_golden_set(SHARED / exposure).items
        except DataError:
            continue
        exposures.append(exposure)
        for item in items:
            relative = f"test/{item.defect}/{item.path.name}"
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(item.path, target / relative)
            if item.mask_path is not None:
                mask = target / "ground_truth" / item.defect / item.mask_path.name
                mask.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(item.mask_path, mask)
            rows.append((relative, exposure))
    with (target / "strata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "stratum"), *rows])
    return exposures


def _tiles(exposure: str) -> dict[str, str]:
    """Name of a photograph -> its tile; every tile comes back under every exposure."""
    with (SHARED / "tiles.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["exposure"] == exposure]
    return {Path(row["path"]).name: f"{row['class']}-{row['tile_id']}" for row in rows}


def _run_night(config: PipelineConfig, night: str) -> str:
    from dags.nightly_retrain import nightly_retrain

    dag_run = nightly_retrain(config, config.models[0]).test(run_conf={"partition": night})
    return str(dag_run.state)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _tell(config: PipelineConfig, night: str, state: str) -> None:
    records = read_night(RunRef(key=KEY, partition=night, work_dir=config.paths.work_dir))
    outputs = {step: record.outputs for step, record in records.items() if record.outputs is not None}
    validation, evaluation = outputs.get("validate", {}), outputs.get("evaluate", {})
    seconds = sum(record.seconds for record in records.values())
    _say(
        f"{night} {state}: accepted {validation.get('num_accepted')} quarantined {validation.get('num_quarantined')} "
        f"{validation.get('reasons')}; "
        f"trained {outputs.get('fine_tune', {}).get('training_seconds')} s of {seconds:.0f} s"
    )
    _say(f"    candidate {json.dumps(evaluation.get('metrics'))}")
    _say(f"    champion  {json.dumps(evaluation.get('champion_metrics'))}")
    decision = outputs.get("gate", {})
    reasons = [reason["detail"] for reason in decision.get("reasons", []) if reason["verdict"] != "PROMOTE"]
    _say(f"    {decision.get('verdict')} -> {outputs.get('promote', {}).get('outcome')} {'; '.join(reasons)}")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Skips where the images are missing."""
    if not SHARED.exists():
        pytest.skip("benchmark images not found: mtd")
    with s3_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("default")
def test_six_nights_of_drift_on_s3(
    tmp_path: Path, s3: S3Server, airflow_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3.environment(), "MLFLOW_S3_ENDPOINT_URL": s3.endpoint_url}.items():
        monkeypatch.setenv(name, value)
    exposures = _golden(tmp_path / "golden")
    path = tmp_path / "pipeline.toml"
    path.write_text(_CONFIG.format(bucket=s3.ready_bucket, endpoint=s3.endpoint_url), encoding="utf-8")
    config = load_config(path)
    monkeypatch.setenv("STLM_CONFIG", str(path))
    _say(f"\ngolden strata: {', '.join(exposures)}")
    verdicts = []
    for number, night in enumerate(NIGHTS, start=1):
        lot = f"exp{number}"
        normals = read_train_normals(SHARED / lot)
        feed_from_folder(
            normals, config.paths.landing, KEY, lot, night, parts=_tiles(lot), s3_endpoint_url=s3.endpoint_url
        )
        state = _run_night(config, night)
        _tell(config, night, state)
        assert state == "success"
        gate = read_night(RunRef(key=KEY, partition=night, work_dir=config.paths.work_dir))["gate"].outputs
        assert gate is not None
        verdicts.append(gate["verdict"])
    assert verdicts[0] == "PROMOTE"
