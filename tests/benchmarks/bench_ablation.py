"""What each part of the embedded recipe is worth, on training-side criteria: no reported test image is looked at.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_ablation.py``.
Solar cells of another kind than the quick start's are judged by their true defects; tiles and bottles by defects
drawn on normals that were not trained on, which are another family than the pseudo-anomalies of training.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlm.bench.learners import StlmLearner, night_of
from stlm.config import RecipeConfig
from stlm.data.layout import read_train_normals
from stlm.data.probes import draw_probes
from stlm.data.transforms import read_image
from stlm.evaluation import Detector, score_images
from stlm.metrics import auroc, pixel_metrics
from stlm.recipes import lite
from tests.benchmarks.bench_screening import cells

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(4 * 3600)]

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SEED = 0
NUM_CELLS = 200
MAX_JUDGED = 100


def _model(**changes: Any) -> Callable[[RecipeConfig], RecipeConfig]:
    return lambda config: replace(config, model=replace(config.model, **changes))


def _data(**changes: Any) -> Callable[[RecipeConfig], RecipeConfig]:
    return lambda config: replace(config, data=replace(config.data, **changes))


def _without(stage: str) -> Callable[[RecipeConfig], RecipeConfig]:
    return lambda config: replace(
        config, stages=tuple(replace(each, passes=0.0) if each.name == stage else each for each in config.stages)
    )


VARIANTS: Mapping[str, Callable[[RecipeConfig], RecipeConfig]] = {
    "lite": lambda config: config,
    "aggregation map alone, as published": _model(maps=("aggregation",), map_weights=()),
    "distance of both students alone": _model(maps=("two_stream",), map_weights=()),
    "Gaussians alone": _model(maps=("distribution",), map_weights=()),
    "all three maps": _model(maps=("aggregation", "two_stream", "distribution"), map_weights=(0.1, 0.1, 0.8)),
    "maps weighed alike": _model(map_weights=(0.5, 0.5)),
    "no masked reconstruction": _without("masked_reconstruction"),
    "no pixel stage": _without("pixel"),
    "textures only": _data(texture_probability=1.0),
    "parts of the image only": _data(texture_probability=0.0),
    "no common exposure": _data(exposure=0.0),
    "a finer level (block 2)": _model(distribution_taps=(2,)),
    "320 px": lambda config: _model(score_size=(40, 40))(_data(image_size=(320, 320))(config)),
}


def _judged(detector: Detector, good: Sequence[Path], defective: Sequence[Path]) -> list[str]:
    """True defects: image AUROC. Drawn ones: image AUROC, pixel AUROC, pixel AP, PRO."""
    clean = [read_image(path) for path in good]
    probes = draw_probes(clean, seed=SEED)
    scored = score_images(detector, [*clean, *(probe.image for probe in probes)])
    size = (scored.maps.shape[1], scored.maps.shape[2])
    drawn = [torch.from_numpy(probe.mask)[None].float() for probe in probes]
    masks = np.zeros(scored.maps.shape, dtype=np.bool_)
    for row, mask in enumerate(drawn, start=len(clean)):
        masks[row] = torch.nn.functional.adaptive_max_pool2d(mask, size)[0].numpy() > 0
    pixels = pixel_metrics(scored.maps, masks)
    values = [auroc(scored.scores, masks.any(axis=(1, 2))), pixels.auroc, pixels.average_precision, pixels.pro]
    true = "-"
    if defective:
        scores = np.concatenate([scored.scores[: len(clean)], score_images(detector, defective).scores])
        true = f"{auroc(scores, np.arange(len(scores)) >= len(clean)):.3f}"
    return [true, *(f"{value:.3f}" for value in values)]


def _images(name: str) -> tuple[list[Path], list[Path], list[Path]]:
    """Learnt normals, judged normals, defective images."""
    if name == "solar cells":
        good, defective = (np.random.default_rng(SEED).permutation(np.array(paths)) for paths in cells("poly"))
        return list(good[:NUM_CELLS]), list(good[NUM_CELLS:][:MAX_JUDGED]), list(defective)
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"benchmark images not found: {name}")
    normals = list(np.random.default_rng(SEED).permutation(np.array(read_train_normals(folder))))
    judged = round(0.25 * len(normals))
    return normals[judged:], normals[:judged], []


@pytest.mark.parametrize("name", ["solar cells", "mtd/exp1", "mvtec_bottle"])
def test_ablation(name: str) -> None:
    learnt, good, defective = _images(name)
    print(
        f"\n{name}: {len(learnt)} normals learnt, {len(good)} judged, {len(defective)} with true defects, seed {SEED}"
    )
    print(f"{'':36} true: image | drawn: image, pixel AUROC, AP, PRO | training s")
    for label, change in VARIANTS.items():
        learner = StlmLearner(config=change(lite()), seed=SEED)
        started = time.perf_counter()
        learner.learn(night_of(learnt, name))
        seconds = time.perf_counter() - started
        cells_of_row = "  ".join(_judged(learner.detector, good, defective))
        print(f"{label:36} {cells_of_row}  {seconds:5.0f}")
        sys.stdout.flush()
