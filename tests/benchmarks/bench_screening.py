"""How many planted defective cells validation catches, how many good ones it loses, and whether copies are recognised.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_screening.py``; or, for nights that have been run,
``python -m tests.benchmarks.bench_screening data/planted.json <images.parquet of each night>``.
"""

import hashlib
import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor

from components import quickstart
from components.core.contracts import RunRef
from components.steps.collect.step import CollectInputs, collect
from components.steps.validate.step import ValidateInputs, validate
from components.steps.version.step import VersionInputs, version
from stlm.calibration import calibrate_threshold
from stlm.data.facts import image_facts, nearest_hashes, read_facts
from stlm.data.image_files import read_image
from stlm.data.synthesis import embedded_textures
from stlm.data.transforms import preprocess
from stlm.models.registry import build_model
from stlm.nn.lite0 import build_lite0_trunk
from stlm.recipes import lite
from stlm.screening import outlier_limit, outlier_scores, patch_features
from stlm.training.fit import fit
from stlm.training.samples import Normals, load_normals
from tests.helpers.model_package import new_mlflow

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

Score = Callable[[Sequence[Path]], NDArray[np.float64]]

NUM_GOOD = 240
NUM_DEFECTIVE = (4, 6, 8, 12)
SEEDS = 16
NIGHT = (128, 4)
"""Good and defective cells of a night on polycrystalline cells."""
DEVIATIONS = (1.0, 1.3, 1.6, 2.0, 2.5, 3.0)
MTD = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "mtd"


def cells(wanted: str = "mono") -> tuple[list[Path], list[Path]]:
    """Normal and defective cells of ELPV of one kind, ``mono`` or ``poly``."""
    spec = importlib.util.find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    rows = [line.split() for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines()]
    found = [(folder / name, float(probability)) for name, probability, kind in rows if kind == wanted]
    return [p for p, probability in found if probability == 0.0], [p for p, probability in found if probability == 1.0]


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


def test_screening_by_a_champion_on_polycrystalline_elpv() -> None:
    """A first night of 128 good and 4 defective cells makes a champion, which screens 64 second nights like it."""
    torch.set_num_threads(1)
    good, defective = cells("poly")
    rows = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        normals, bad = rng.permutation(np.array(good)), rng.permutation(np.array(defective))
        first = [*normals[: NIGHT[0]], *bad[: NIGHT[1]]]
        outliers = outlier_scores(patch_features(build_lite0_trunk(), first, image_size=(256, 256)))
        limit = outlier_limit(outliers, 1.6)
        out = outliers > limit
        rows.append(("outliers", 1.6, out[NIGHT[0] :].sum(), NIGHT[1], out[: NIGHT[0]].mean()))
        clear = outliers - limit > limit - np.median(outliers)
        doubtful = [path for path, is_out in zip(first, out & ~clear, strict=True) if is_out]
        kept = [path for path, is_out in zip(first, out, strict=True) if not is_out]
        score, threshold = _champion(kept, doubtful, seed)
        scores, bad_scores = score(normals[NIGHT[0] :]), score(bad[NIGHT[1] :])
        for number in range(64):
            draw = np.random.default_rng(1000 + number)
            night = np.concatenate([draw.choice(scores, NIGHT[0], False), draw.choice(bad_scores, NIGHT[1], False)])
            for deviations in DEVIATIONS:
                out = night > max(threshold, outlier_limit(night, deviations))
                rows.append(("champion", deviations, out[NIGHT[0] :].sum(), NIGHT[1], out[: NIGHT[0]].mean()))
    table = pd.DataFrame(rows, columns=["by", "deviations", "caught", "planted", "good lost"])
    grouped = table.groupby(["by", "deviations"])
    result = grouped.agg(caught=("caught", "sum"), planted=("planted", "sum"), lost=("good lost", "mean"))
    result["caught share"] = result["caught"] / result["planted"]
    print(f"\nELPV poly, nights of {NIGHT[0]} good + {NIGHT[1]} defective, 4 champions\n{result.round(3).to_string()}")


def _champion(kept: Sequence[Path], doubtful: Sequence[Path], seed: int) -> tuple[Score, float]:
    """A champion learnt from ``kept``, as its score of files, and its operating threshold."""
    rng = np.random.default_rng(seed)
    order = [kept[i] for i in rng.permutation(len(kept))]
    held_out, training = order[: round(0.15 * len(order))], order[round(0.15 * len(order)) :]
    tail = [doubtful[i] for i in rng.permutation(len(doubtful))[: round(0.15 * len(doubtful))]]
    model = build_model(lite(), seed=seed)

    def load(paths: Sequence[Path]) -> Normals:
        return load_normals(paths, [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths], model.image_size)

    fit(model, new=load(training), replay=load([]), held_out=load(held_out), teacher=None,
        textures=embedded_textures(), has_parent=False, seed=seed)  # fmt: skip

    @torch.inference_mode()
    def score(paths: Sequence[Path]) -> NDArray[np.float64]:
        images = [preprocess(torch.from_numpy(read_image(path).copy())[None], model.image_size) for path in paths]
        return np.array([float(model(image).score) for image in images])

    sure = score(held_out)
    pooled = np.concatenate([sure, score(tail)])
    return score, calibrate_threshold(pooled, 0.05, ceiling=float(sure.max())).threshold


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
