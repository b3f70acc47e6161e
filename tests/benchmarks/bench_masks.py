"""Masks from STLM's maps against the true ones, bare and refined by SAM, and what the cascade costs.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_masks.py``. Refining is measured only with a real SAM
checkpoint, named by the environment variables ``STLM_SAM_CHECKPOINT`` and ``STLM_SAM_SHA256`` (and ``STLM_SAM_MODEL``,
by default ``mobile_sam``). The cost does not depend on what the weights are, and is measured with random ones.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from stlm.data.image_files import read_image
from stlm.data.layout import GoldenItem, read_golden_set, read_train_normals
from stlm.data.transforms import read_mask
from stlm.evaluation import score_images
from stlm.nn.mobile_sam import build_mobile_sam
from stlm.nn.teachers import load_sam
from stlm.recipes import lite
from stlm.zero_shot.cascade import image_features, refine_mask, region_mask
from stlm.zero_shot.config import CascadeConfig
from stlm.zero_shot.points import find_region, map_on_grid, negative_points, positive_points, ring_around
from stlm.zero_shot.segmenter import Embedding, Prompts, SamSegmenter
from tests.benchmarks.bench_accuracy import HELD_OUT_SHARE, SHARED, _normals, _table, _train

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]

NAMES = ("mvtec_bottle", "mtd/exp1")
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7)
Cases = list[tuple[GoldenItem, NDArray[np.float32]]]


@pytest.fixture(scope="module", params=NAMES)
def cases(request: pytest.FixtureRequest) -> tuple[str, Cases]:
    """The defective test images with masks, and the maps of an STLM trained on the normals: seed 0, last step."""
    root = SHARED / request.param
    if not root.exists():
        pytest.skip(f"benchmark images not found: {request.param}")
    order = sorted(read_train_normals(root), key=lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
    held = round(HELD_OUT_SHARE * len(order))
    model, _ = _train(lite(), _normals(order[held:]), _normals(order[:held]))
    items = [item for item in read_golden_set(root).items if item.mask_path is not None]
    maps = score_images(model, [item.path for item in items]).maps
    return request.param, list(zip(items, maps, strict=True))


def _agreement(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    both, either = int((mask & truth).sum()), int((mask | truth).sum())
    return both / max(1, either), 2 * both / max(1, both + either)


def _row(name: str, found: Sequence[tuple[float, float]]) -> list[str]:
    iou, f1 = np.mean(found, axis=0)
    return [name, f"{iou:.3f}", f"{f1:.3f}", str(len(found))]


def _truth(item: GoldenItem) -> NDArray[np.bool_]:
    assert item.mask_path is not None
    height, width = read_image(item.path).shape[:2]
    return read_mask(item.mask_path, (height, width))


def test_where_to_cut_the_raw_map(cases: tuple[str, Cases]) -> None:
    name, found = cases
    rules: dict[str, Callable[[NDArray[np.float32], tuple[int, int]], NDArray[np.bool_]]] = {}
    for level in LEVELS:
        config = replace(CascadeConfig(), region_level=level)
        rules[f"{level:.0%} of the way from median to peak"] = lambda values, size, config=config: (
            region_mask(  # type: ignore[misc]
                values, size, config
            ).mask
        )
    rules["Otsu"] = lambda values, size: (
        region_mask(values, size, CascadeConfig(), threshold=float(threshold_otsu(values))).mask
    )
    rows = [["raw map cut at", "IoU", "F1", "images"]]
    for rule, cut in rules.items():
        rows.append(_row(rule, [_agreement(cut(m, _truth(item).shape), _truth(item)) for item, m in found]))  # type: ignore[arg-type]
    _table(f"{name}: mean over the defective test images", rows)


def test_refined_masks_beside_the_raw_map(cases: tuple[str, Cases], tmp_path: Path) -> None:
    checkpoint, digest = os.environ.get("STLM_SAM_CHECKPOINT", ""), os.environ.get("STLM_SAM_SHA256", "")
    if not checkpoint:
        pytest.skip("refined masks: not measured, no SAM checkpoint (STLM_SAM_CHECKPOINT, STLM_SAM_SHA256)")
    model: Any = os.environ.get("STLM_SAM_MODEL", "mobile_sam")
    segmenter = SamSegmenter(sam=load_sam(model, checkpoint, digest, tmp_path))
    name, found = cases
    raw, refined = [], []
    for item, anomaly_map in found:
        image, truth = read_image(item.path), _truth(item)
        result = refine_mask(anomaly_map, segmenter, segmenter.embed(image), CascadeConfig())
        raw.append(_agreement(result.region, truth))
        refined.append(_agreement(result.mask, truth))
    rows = [["mask", "IoU", "F1", "images"], _row("raw map", raw), _row(f"refined by {model}", refined)]
    _table(f"{name}: mean over the defective test images", rows)


def _median_ms(function: Callable[[], object], device: str, repeats: int = 15) -> float:
    # Processor time of the one thread: others may be using the machine.
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 2):
        started = clock()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (clock() - started))
    return float(np.median(times[2:]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cost_of_the_cascade_beyond_the_encoder(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("on a GPU: not measured, torch sees none")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Every SAM has the same prompt encoder and decoder: 256 channels on 64 x 64.
    segmenter = SamSegmenter(sam=build_mobile_sam().to(device).eval())
    size, config = (1024, 1024), CascadeConfig()
    embedding = Embedding(
        features=torch.randn(256, 64, 64, device=device), image_size=size, input_size=size, square_px=1024
    )
    rows, columns = np.mgrid[:256, :256]
    anomaly_map = np.exp(-((rows - 90) ** 2 + (columns - 170) ** 2) / 800).astype(np.float32)
    prompts = Prompts(points=np.array([[680.0, 360.0]] * 6), labels=np.array([1] + [0] * 5))

    def points() -> None:
        values = map_on_grid(anomaly_map, size, config.frame_px)
        region = find_region(values, config.region_level)
        ring = ring_around(region, round(config.ring_kernel * 256))
        positive_points(values, region, number=5, spacing=config.positive_spacing * 256)
        negative_points(image_features(embedding), region, ring, number=5, spacing=config.negative_spacing * 256)

    image = np.zeros((1024, 1024, 3), np.uint8)
    figures = {
        "points": _median_ms(points, device),
        "one pass of the decoder": _median_ms(lambda: segmenter.decode(embedding, prompts), device),
        "whole cascade": _median_ms(lambda: refine_mask(anomaly_map, segmenter, embedding, config), device),
        "beside it, MobileSAM's encoder": _median_ms(lambda: segmenter.embed(image), device, repeats=3),
    }
    _table(
        f"{device}, 1 thread, 1024 x 1024 image, random weights",
        [["part", "ms an image"], *([name, f"{value:.1f}"] for name, value in figures.items())],
    )
