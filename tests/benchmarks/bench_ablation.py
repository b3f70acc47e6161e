"""What each part of the embedded recipe is worth, on training-side criteria: no reported test image is looked at.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_ablation.py``.
Solar cells of another kind than the quick start's are judged by their true defects; tiles and bottles by defects
drawn on normals that were not trained on, which are another family than the pseudo-anomalies of training.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlm.bench.learners import StlmLearner, night_of, with_passes
from stlm.config import RecipeConfig
from stlm.data.image_files import read_image
from stlm.data.layout import read_train_normals
from stlm.data.probes import draw_probes
from stlm.evaluation import Detector, score_images
from stlm.metrics import auroc, pixel_metrics
from stlm.models.two_stream import TwoStream
from stlm.recipes import lite
from stlm.training.replay import NormalImage
from tests.benchmarks.bench_screening import cells

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(4 * 3600)]

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SEED = 0
NAMES = pytest.mark.parametrize("name", ["solar cells", "mtd/exp1", "mvtec_bottle"])
NUM_CELLS = 120
MAX_JUDGED = 100
MAX_DEFECTIVE = 200


def _model(**changes: Any) -> Callable[[RecipeConfig], RecipeConfig]:
    return lambda config: replace(config, model=replace(config.model, **changes))


def _data(**changes: Any) -> Callable[[RecipeConfig], RecipeConfig]:
    return lambda config: replace(config, data=replace(config.data, **changes))


def _batches_of_eight(config: RecipeConfig) -> RecipeConfig:
    return replace(config, stages=tuple(replace(stage, batch_size=8) for stage in config.stages))


MAPS = ("aggregation", "two_stream", "distribution")
FUSIONS = {
    "lite": (0.2, 0.0, 0.8),
    "aggregation map alone": (1.0, 0.0, 0.0),
    "distance of the students alone": (0.0, 1.0, 0.0),
    "Gaussians alone": (0.0, 0.0, 1.0),
    "all three maps": (0.1, 0.1, 0.8),
    "aggregation and Gaussians alike": (0.5, 0.0, 0.5),
}
"""Weights of the maps of one trained model."""
VARIANTS: Mapping[str, Callable[[RecipeConfig], RecipeConfig]] = {
    "masked reconstruction before": partial(with_passes, masked_reconstruction=(3, 2)),
    "no pixel stage": partial(with_passes, pixel=(0, 0)),
    "textures only": _data(texture_probability=1.0),
    "parts of the image itself only": _data(texture_probability=0.0),
    "every corruption drawn anew": _data(corruptions_per_image=0),
    "batches of eight": _batches_of_eight,
    "no common exposure": _data(exposure=0.0),
    "a finer level (block 2)": _model(distribution_taps=(2,)),
    "320 px": lambda config: _model(score_size=(40, 40))(_data(image_size=(320, 320))(config)),
}
"""Each is trained by itself, its maps weighed as in ``lite``."""
GAUSSIANS: Mapping[str, dict[str, Any]] = {
    "as in lite": {},
    "arithmetic mean of the levels": {"distribution_mean": "arithmetic"},
    "shrinkage 0.1": {"distribution_shrinkage": 0.1},
    "both, as once": {"distribution_mean": "arithmetic", "distribution_shrinkage": 0.1},
    "shrinkage 0.5": {"distribution_shrinkage": 0.5},
    "map not smoothed": {"smoothing": 0},
}
"""The map of Gaussians alone, which no stage trains."""


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
        return list(good[:NUM_CELLS]), list(good[NUM_CELLS:][:MAX_JUDGED]), list(defective[:MAX_DEFECTIVE])
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"benchmark images not found: {name}")
    normals = list(np.random.default_rng(SEED).permutation(np.array(read_train_normals(folder))))
    judged = round(0.25 * len(normals))
    return normals[judged:], normals[:judged], []


def _trained(config: RecipeConfig, night: Sequence[NormalImage]) -> tuple[TwoStream, float]:
    """A first night's model, and the seconds it took."""
    learner = StlmLearner(config=config, seed=SEED)
    started = time.perf_counter()
    learner.learn(night)
    assert isinstance(learner.detector, TwoStream)
    return learner.detector, time.perf_counter() - started


Tell = Callable[[str, TwoStream, float], None]


def _told(name: str) -> tuple[list[NormalImage], Tell]:
    """The night, and what prints a model's row; the table's head is printed."""
    learnt, good, defective = _images(name)
    print(
        f"\n{name}: {len(learnt)} normals learnt, {len(good)} judged, {len(defective)} with true defects, seed {SEED}"
    )
    print(f"{'':32} true: image | drawn: image, pixel AUROC, AP, PRO | training s")

    def tell(label: str, model: TwoStream, seconds: float) -> None:
        print(f"{label:32} {'  '.join(_judged(model, good, defective))}  {seconds:5.0f}", flush=True)

    return night_of(learnt, name), tell


@NAMES
def test_gaussians(name: str) -> None:
    night, tell = _told(name)
    bare = with_passes(_model(maps=("distribution",), map_weights=())(lite()), pixel=(0, 0))
    for label, changes in GAUSSIANS.items():
        tell(label, *_trained(_model(**changes)(bare), night))


@NAMES
def test_ablation(name: str) -> None:
    night, tell = _told(name)
    base, seconds = _trained(_model(maps=MAPS, map_weights=(0.2, 1e-9, 0.8))(lite()), night)
    for label, weights in FUSIONS.items():
        for buffer in (base.map_weights, base.score_weights):
            buffer.copy_(torch.tensor(weights))
        tell(label, base, seconds)
    for label, change in VARIANTS.items():
        tell(label, *_trained(change(lite()), night))
