"""STLM's embedded recipe and ISSTAD's small one beside PatchCore, on the same split, in one run.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_accuracy.py``.
One seed, last step, nothing chosen on test.
"""

import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from components.quickstart import materialise
from stlm.bench.figures import judge
from stlm.bench.patchcore import PatchCore
from stlm.data.image_files import read_image
from stlm.data.layout import GoldenSet, read_golden_set, read_train_normals
from stlm.data.probes import draw_probes
from stlm.data.synthesis import embedded_textures
from stlm.evaluation import Detector, score_images
from stlm.metrics import auroc
from stlm.models.isstad import Isstad
from stlm.models.registry import AnomalyModel, build_model
from stlm.models.two_stream import TwoStream
from stlm.recipes import isstad, lite
from stlm.training.fit import fit
from stlm.training.samples import Normals, load_normals

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SEED = 0
HELD_OUT_SHARE = 0.15
HEADINGS = (
    "method",
    "image AUROC",
    "pixel AUROC",
    "pixel AP",
    "PRO(0.3)",
    "probe AUROC (training side)",
    "stored values",
    "training s",
    "ms an image",
)


def _table(title: str, rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    sys.stdout.write(f"\n{title}\n" + "\n".join(lines) + "\n")
    sys.stdout.flush()


def _normals(paths: Sequence[Path], image_size: tuple[int, int]) -> Normals:
    return load_normals(paths, [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths], image_size)


def _figures(detector: Detector, golden: GoldenSet) -> list[str]:
    found = judge(detector, golden).figures
    values = (found.image_auroc, found.pixel_auroc, found.pixel_ap, found.pro)
    return ["-" if value is None else f"{value:.3f}" for value in values]


def _train(model: AnomalyModel, fit_paths: Sequence[Path], held_paths: Sequence[Path]) -> float:
    new, held_out = _normals(fit_paths, model.image_size), _normals(held_paths, model.image_size)
    empty = Normals(images=new.images[:0], digests=())
    started = time.perf_counter()
    fit(
        model,
        new=new,
        replay=empty,
        held_out=held_out,
        teacher=None,
        textures=embedded_textures(),
        has_parent=False,
        seed=SEED,
    )
    return time.perf_counter() - started


def _cost(detector: Detector, num_values: int, seconds: float) -> list[str]:
    """Stored values, training seconds, and the median time of a forward pass on one image, already resized."""
    image = torch.rand(1, 3, *detector.image_size, generator=torch.Generator().manual_seed(SEED))
    times = []
    with torch.inference_mode():
        for _ in range(20):
            started = time.perf_counter()
            detector(image)
            times.append(1000 * (time.perf_counter() - started))
    return [f"{num_values / 1e6:.2f} M", f"{seconds:.0f}", f"{np.median(times):.0f}"]


def _num_values(model: torch.nn.Module) -> int:
    """Everything that is stored: parameters, and what is fitted without gradients."""
    return sum(value.numel() for value in model.state_dict().values())


def _variants(model: TwoStream) -> dict[str, TwoStream]:
    """The fused detector, and each of its maps alone; the last name of a map is the one behind the image score."""
    variants = {"STLM lite": model}
    config = model.config.model
    for name, score_name in zip(config.maps, config.score_maps or config.maps, strict=True):
        alone = build_model(
            dataclasses.replace(
                model.config,
                model=dataclasses.replace(config, maps=(name,), score_maps=(score_name,), map_weights=()),
            ),
            seed=SEED,
        )
        state = model.state_dict()
        rows = [model.map_names.index(each) for each in alone.map_names]
        state["map_centre"], state["map_scale"] = state["map_centre"][rows], state["map_scale"][rows]
        alone.load_state_dict({key: state[key] for key in alone.state_dict()})
        variants[f"  {name} map alone"] = alone
    return variants


def _probe_auroc(detector: Detector, paths: Sequence[Path]) -> str:
    """Training-side criterion: held-out normals against the same with drawn defects."""
    clean = [read_image(path) for path in paths]
    probes = [probe.image for probe in draw_probes(clean, seed=SEED)]
    scores = score_images(detector, [*clean, *probes]).scores
    return f"{auroc(scores, np.repeat([False, True], [len(clean), len(probes)])):.3f}"


def _compare(name: str, train: Sequence[Path], golden: GoldenSet) -> None:
    order = sorted(train, key=lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
    held_paths = order[: round(HELD_OUT_SHARE * len(order))]
    fit_paths = order[len(held_paths) :]
    rows = [list(HEADINGS)]
    peer = PatchCore(seed=SEED)
    pixels = torch.from_numpy(_normals([*fit_paths, *held_paths], (256, 256)).images).permute(0, 3, 1, 2) / 255.0
    started = time.perf_counter()
    peer.fit(pixels)
    seconds = time.perf_counter() - started
    size = _num_values(peer.trunk) + peer.bank.numel()
    rows.append(["PatchCore", *_figures(peer, golden), "-", *_cost(peer, size, seconds)])
    model = build_model(lite(), seed=SEED)
    seconds = _train(model, fit_paths, held_paths)
    for label, variant in _variants(model).items():
        figures = _figures(variant, golden)
        cost = _cost(variant, _num_values(variant), seconds)
        rows.append([label, *figures, _probe_auroc(variant, held_paths), *cost])
    rows += _isstad_rows(fit_paths, held_paths, golden)
    counts = f"{len(train)} normals, {len(golden.items)} test images, seed {SEED}, {torch.get_num_threads()} threads"
    _table(f"{name}: {counts}", rows)


def _isstad_rows(fit_paths: Sequence[Path], held_paths: Sequence[Path], golden: GoldenSet) -> list[list[str]]:
    """ISSTAD as it is, and one trained model with the published scale of its map."""
    model = build_model(isstad(), seed=SEED)
    seconds = _train(model, fit_paths, held_paths)
    rows = []
    for label, network in {"ISSTAD (small)": model, "  map scaled per image": _per_image(model)}.items():
        figures = _figures(network, golden)
        cost = _cost(network, _num_values(network), seconds)
        rows.append([label, *figures, _probe_auroc(network, held_paths), *cost])
    return rows


def _per_image(model: Isstad) -> Isstad:
    recipe = dataclasses.replace(model.config, model=dataclasses.replace(model.config.model, map_scale="per_image"))
    other = build_model(recipe, seed=SEED)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["mtd/exp1", "mtd/exp5", "mvtec_bottle"])
def test_accuracy_beside_patchcore(name: str) -> None:
    root = SHARED / name
    if not root.exists():
        pytest.skip(f"benchmark images not found: {name}")
    logging.basicConfig(level=logging.WARNING)
    _compare(name, read_train_normals(root), read_golden_set(root))


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_accuracy_on_solar_cells_without_planted_trouble(tmp_path: Path) -> None:
    materialise(tmp_path / "data")
    _compare("ELPV mono", _planned_normals(tmp_path / "data"), read_golden_set(tmp_path / "data" / "golden"))


def _planned_normals(data: Path) -> list[Path]:
    truth = json.loads((data / "planted.json").read_text(encoding="utf-8"))["images"]
    return [
        path
        for path in sorted((data / "landing").rglob("*.png"))
        if truth[f"{path.parent.name}/{path.name}"]["kind"] == "normal"
    ]
