"""The quick start's three nights under Airflow's own scheduler: figures of each, and their cost beside the work.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_nights.py``. Seed 0, last step, nothing chosen on test.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.config import load_config
from components.core.contracts import RunRef
from components.core.run_records import read_night
from components.local_stack.airflow_env import repository_root
from components.quickstart import KEY, NIGHTS, materialise

_ENDED = re.compile(r"^Night (\S+): success after (\d+):(\d+)$", re.MULTILINE)
_MIN_AUROC = 0.95
_MAX_OVERHEAD_S = 60.0


def _row(run: RunRef, wall_s: float) -> tuple[str, float, float]:
    """A line of the table, the image AUROC, and the seconds that are neither training nor scoring."""
    records = read_night(run)
    evaluation, candidate, decision = (records[step].outputs or {} for step in ("evaluate", "fine_tune", "gate"))
    metrics = json.loads(Path(evaluation["report_path"]).read_text(encoding="utf-8"))["candidate"]["metrics"]
    value = {name: estimate["value"] for name, estimate in metrics.items()}
    low, high = metrics["image_auroc"]["interval"]
    training_s, scoring_s = candidate["training_seconds"], records["evaluate"].seconds
    overhead_s = wall_s - training_s - scoring_s
    pixels = f"{value['pixel_auroc']:.3f} / {value['pixel_ap']:.3f} / {value['pro']:.3f}"
    line = (
        f"{run.partition}  {value['image_auroc']:.3f} [{low:.3f}, {high:.3f}]  {pixels}  {decision['verdict']:<12} "
        f"{training_s:8.0f} s {scoring_s:7.0f} s {overhead_s:8.0f} s {wall_s:8.0f} s"
    )
    return line, value["image_auroc"], overhead_s


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_three_nights_gain_and_cost_little_beside_training_and_scoring(tmp_path: Path) -> None:
    root = repository_root()
    materialise(root / "data")
    (tmp_path / "infra").mkdir()
    config_path = tmp_path / "infra" / "quickstart.toml"
    shutil.copy(root / "infra" / "quickstart.toml", config_path)
    (tmp_path / "data").symlink_to(root / "data")
    command = [sys.executable, "-m", "components.cli", "--config", str(config_path)]
    command += ["--state", str(tmp_path / "var"), "nightly", "--nights", str(len(NIGHTS))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=dict(os.environ), cwd=root)
    assert done.returncode == 0, done.stdout
    wall_s = {night: 60.0 * int(minutes) + int(seconds) for night, minutes, seconds in _ENDED.findall(done.stdout)}
    work_dir = load_config(config_path).paths.work_dir
    rows = [_row(RunRef(key=KEY, partition=night, work_dir=work_dir), wall_s[night]) for night in NIGHTS]
    print(f"\nThree nights, {os.cpu_count()} CPUs; pixel figures are of synthetic defects")
    print("night       image AUROC           pixel AUROC / AP / PRO  verdict     training  scoring overhead    whole")
    print("\n".join(line for line, _, _ in rows))
    aurocs = [auroc for _, auroc, _ in rows]
    assert aurocs[-1] >= max(_MIN_AUROC, aurocs[0])
    assert max(overhead for _, _, overhead in rows) <= _MAX_OVERHEAD_S
