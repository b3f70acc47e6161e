"""How many planted defective cells validation catches, how many good ones it loses, and whether copies are recognised.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_screening.py``; or, for nights that have been run,
``python -m tests.benchmarks.bench_screening data/planted.json <images.parquet of each night>``.
"""

import importlib.util
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from components import quickstart
from components.collect import CollectInputs, collect
from components.contracts import RunRef
from components.validate import ValidateInputs, validate
from components.version import VersionInputs, version
from stlm.data.facts import image_facts, nearest_hashes, read_facts
from stlm.nn.lite0 import build_lite0_trunk
from stlm.screening import outlier_limit, outlier_scores, patch_features
from tests.helpers.model_package import new_mlflow

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

NUM_GOOD = 240
NUM_DEFECTIVE = (4, 6, 8, 12)
SEEDS = 16
DEVIATIONS = (1.0, 1.3, 1.6, 2.0, 2.5, 3.0)
MTD = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "mtd"


def cells() -> tuple[list[Path], list[Path]]:
    """Normal and defective mono cells of ELPV."""
    spec = importlib.util.find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    rows = [line.split() for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines()]
    mono = [(folder / name, float(probability)) for name, probability, kind in rows if kind == "mono"]
    return [p for p, probability in mono if probability == 0.0], [p for p, probability in mono if probability == 1.0]


def caught_and_lost(planted: Path, tables: Sequence[Path]) -> pd.DataFrame:
    """Per kind of planted image: how many there were, how many were kept from training, and for which reasons.

    Args:
        planted: The truth that the quick start wrote.
        tables: ``images.parquet`` of the nights.
    """
    truth = json.loads(planted.read_text(encoding="utf-8"))["images"]
    images = pd.concat([pd.read_parquet(table).assign(night=number) for number, table in enumerate(tables, start=1)])
    images["kind"] = [truth[name]["kind"] for name in images["image"]]
    images["kept_out"] = ~images["accepted"]
    grouped = images.groupby(["night", "kind"])
    result = grouped.agg(images=("image", "size"), kept_out=("kept_out", "sum"))
    result["reasons"] = grouped["reasons"].agg(lambda texts: ", ".join(sorted({t for t in texts if t})))
    return result


def outlier_table(features: Tensor, num_good: int, num_defective: Sequence[int]) -> tuple[pd.DataFrame, float]:
    """Caught and lost shares per limit over many contaminated batches, and the mean AUROC."""
    rows, aurocs = [], []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        bad = num_defective[seed % len(num_defective)]
        chosen = np.concatenate(
            [
                rng.choice(num_good, min(NUM_GOOD, num_good), replace=False),
                num_good + rng.choice(len(features) - num_good, bad, replace=False),
            ]
        )
        scores, defective = outlier_scores(features[chosen]), chosen >= num_good
        aurocs.append(float((scores[defective][:, None] > scores[~defective][None]).mean()))
        for deviations in DEVIATIONS:
            out = scores > outlier_limit(scores, deviations)
            rows.append((deviations, out[defective].sum(), bad, out[~defective].mean()))
    table = pd.DataFrame(rows, columns=["deviations", "caught", "planted", "good lost"])
    result = table.groupby("deviations").agg(
        caught=("caught", "sum"),
        planted=("planted", "sum"),
        good_lost=("good lost", "mean"),
        worst=("good lost", "max"),
    )
    result["caught share"] = result["caught"] / result["planted"]
    return result.round(3), float(np.mean(aurocs))


def test_first_night_outliers_on_elpv() -> None:
    torch.set_num_threads(1)
    good, defective = cells()
    began = time.process_time()
    features = patch_features(build_lite0_trunk(), [*good, *defective], image_size=(256, 256))
    trunk_ms = 1000 * (time.process_time() - began) / len(features)
    began = time.process_time()
    outlier_scores(features[:250])
    table, auroc = outlier_table(features, len(good), NUM_DEFECTIVE)

    print(f"\nELPV mono, {NUM_GOOD} good + {NUM_DEFECTIVE} defective, {SEEDS} seeds: image AUROC {auroc:.3f}")
    print(f"{trunk_ms:.0f} ms of processor time an image for the trunk, {time.process_time() - began:.1f} s for all")
    print(table.to_string())
    assert auroc > 0.9


@pytest.mark.skipif(not MTD.is_dir(), reason=f"{MTD} is not here")
def test_first_night_outliers_on_magnetic_tiles() -> None:
    torch.set_num_threads(1)
    for exposure in ("exp1", "exp5"):
        good = sorted((MTD / exposure / "train" / "good").iterdir())
        folders = sorted(path for path in (MTD / exposure / "test").iterdir() if path.name != "good")
        defective = [path for folder in folders for path in sorted(folder.iterdir())]
        features = patch_features(build_lite0_trunk(), [*good, *defective], image_size=(256, 256))
        table, auroc = outlier_table(features, len(good), (2, 4, 6))
        print(f"\n{exposure}, {len(good)} good, which lie anyhow: image AUROC {auroc:.3f}\n{table.to_string()}")


def test_copies_are_recognised_and_look_alikes_are_not(tmp_path: Path) -> None:
    good, _ = cells()
    hashes = [str(fact.hash) for fact in read_facts(good, max_pixels=10**7)]
    others = [nearest_hashes([value], [*hashes[:i], *hashes[i + 1 :]])[1][0] for i, value in enumerate(hashes)]
    copied = []
    for path, own in zip(good, hashes, strict=True):
        buffer = io.BytesIO()
        with Image.open(path) as image:
            ImageEnhance.Brightness(image.convert("L")).enhance(1.05).save(buffer, "JPEG", quality=85)
        (tmp_path / "copy.jpg").write_bytes(buffer.getvalue())
        copy = str(image_facts(tmp_path / "copy.jpg", max_pixels=10**7).hash)
        copied.append((int(own, 16) ^ int(copy, 16)).bit_count())
    rows = [(bits, np.mean(np.array(others) <= bits), np.mean(np.array(copied) <= bits)) for bits in range(8, 25, 2)]
    table = pd.DataFrame(rows, columns=["bits", "other cells called copies", "brighter JPEG copies recognised"])
    print(f"\n{len(good)} normal mono cells\n{table.round(4).to_string(index=False)}")


def test_three_nights_of_the_quick_start_without_a_champion(tmp_path: Path) -> None:
    quickstart.materialise(tmp_path / "data")
    mlflow = new_mlflow(tmp_path / "mlflow")
    tables = []
    for night in quickstart.NIGHTS:
        run = RunRef(key=quickstart.KEY, partition=night, work_dir=str(tmp_path / "work"))
        landing, remote = str(tmp_path / "landing"), str(tmp_path / "remote")
        quickstart.feed_landing(tmp_path / "data" / "landing", landing, quickstart.KEY, night)
        batch = collect(CollectInputs(run=run, landing=landing)).batch
        assert batch is not None
        repo = str(tmp_path / "repo")
        dataset = version(VersionInputs(run=run, batch=batch, data_repo=repo, dvc_remote=remote))
        golden = str(tmp_path / "data" / "golden")
        began = time.monotonic()
        ref = validate(ValidateInputs(run=run, dataset=dataset, dvc_remote=remote, golden=golden, mlflow=mlflow))
        print(f"\n{night}: {dataset.num_images} images validated in {time.monotonic() - began:.1f} s")
        tables.append(Path(ref.table_path))
    with pd.option_context("display.width", 200, "display.max_colwidth", 80):
        print(caught_and_lost(tmp_path / "data" / "planted.json", tables).to_string())


if __name__ == "__main__":
    print(caught_and_lost(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]).to_string())
