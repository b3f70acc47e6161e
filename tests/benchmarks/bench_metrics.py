"""Time, memory and exactness of the pixel metrics beside the usual libraries, on the same maps in one run.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_metrics.py`` (some minutes at 1024 px, most of them the
peers'). Each method runs in a process of its own, on one thread, so that its memory can be told apart; anomalib also in
an environment of its own, which uv makes for the run.

The maps are drawn: 83 as in the bottle set, 63 of them with defects, noise over cells of two sizes; "skewed" is their
16th power, as of products of distances.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.other_python import python_with

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
NUM_GOOD, NUM_MAPS = 20, 83


def _maps(side: int, power: int):
    rng = np.random.default_rng(SEED)
    rows, columns = np.mgrid[:side, :side]
    coarse = rng.random((NUM_MAPS, 32, 32), dtype=np.float32)
    maps = np.empty((NUM_MAPS, side, side), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    for index in range(NUM_MAPS):
        for _ in range(rng.integers(1, 4) if index >= NUM_GOOD else 0):
            row, column = rng.integers(0, side, 2)
            masks[index] |= (rows - row) ** 2 + (columns - column) ** 2 < (side * rng.uniform(0.02, 0.12)) ** 2
        cells = np.kron(coarse[index], np.ones((side // 32, side // 32), dtype=np.float32))
        noise = rng.random((side, side), dtype=np.float32)
        maps[index] = 0.3 * (cells + 0.3 * noise) + 0.35 * rng.uniform(0.3, 1.0) * masks[index]
    return maps**power, masks


def _ours(maps, masks):
    from stlm.metrics import pixel_metrics

    found = pixel_metrics(maps, masks)
    return {"auroc": found.auroc, "ap": found.average_precision, "pro": found.pro}


def _stream(maps, masks):
    from stlm.metrics import PixelStream

    stream = PixelStream()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        stream.update(anomaly_map, mask)
    result = stream.result()
    found = result.metrics
    return {"auroc": found.auroc, "ap": found.average_precision, "pro": found.pro, "bound": max(
        result.bound.auroc, result.bound.average_precision, result.bound.pro
    )}  # fmt: skip


def _sklearn(maps, masks):
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth, scores = masks.ravel(), maps.ravel()
    return {"auroc": roc_auc_score(truth, scores), "ap": average_precision_score(truth, scores)}


def _torchmetrics(maps, masks):
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    # Scores outside [0, 1] would be squashed, and with them lose ties and order in float32; these lie inside.
    scores, truth = torch.from_numpy(maps).flatten(), torch.from_numpy(masks).flatten().int()
    return {"auroc": float(binary_auroc(scores, truth)), "ap": float(binary_average_precision(scores, truth))}


def _anomalib(maps, masks):
    import torch
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO(fpr_limit=0.3)
    metric.update(torch.from_numpy(maps), torch.from_numpy(masks).int())
    return {"pro": float(metric.compute())}


def _slow_pro(maps, masks):
    """PRO as it is defined, region by region, in float64; independent of the product's code."""
    from scipy import ndimage

    normal = np.sort(maps[~masks])
    thresholds = np.unique(maps[masks])
    total = np.zeros((2, thresholds.size))
    regions = 0
    for anomaly_map, mask in zip(maps, masks, strict=True):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        for label in range(1, count + 1):
            inside = np.sort(anomaly_map[labelled == label])
            for row, side in enumerate(("left", "right")):
                total[row] += 1.0 - np.searchsorted(inside, thresholds, side=side) / inside.size
            regions += 1
    overlap_from, overlap_above = total / regions
    rate_from, rate_above = (1.0 - np.searchsorted(normal, thresholds, side=s) / normal.size for s in ("left", "right"))
    x = np.r_[0.0, np.stack([rate_above[::-1], rate_from[::-1]], axis=1).ravel(), 1.0]
    y = np.r_[0.0, np.stack([overlap_above[::-1], overlap_from[::-1]], axis=1).ravel(), 1.0]
    inside_limit = x <= 0.3
    at_limit = np.interp(0.3, x, y)
    return {"pro": float(np.trapezoid(np.r_[y[inside_limit], at_limit], np.r_[x[inside_limit], 0.3]) / 0.3)}


METHODS = {
    "stlm.metrics": _ours,
    "stlm.metrics, stream": _stream,
    "scikit-learn": _sklearn,
    "torchmetrics": _torchmetrics,
    "anomalib": _anomalib,
    "PRO by definition": _slow_pro,
}


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(method: str, side: int, power: int) -> None:
    """Print one measurement as JSON; runs in a process of its own."""
    maps, masks = _maps(side, power)
    small = maps[:2, :64, :64]
    METHODS[method](small, small > np.median(small))  # import and warm up
    before = _megabytes()
    started = time.perf_counter()
    found = METHODS[method](maps, masks)
    seconds = time.perf_counter() - started
    print(json.dumps({**found, "seconds": seconds, "megabytes": max(0.0, _megabytes() - before)}))


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("side", [256, 1024])
@pytest.mark.parametrize("power", [1, 16])
def test_exact_fast_and_small_beside_the_usual_libraries(side: int, power: int) -> None:
    print(f"\n{NUM_MAPS} maps of {side} x {side}, {'skewed' if power > 1 else 'plain'}, seed {SEED}, one thread")
    print(f"{'method':22} {'AUROC':>10} {'AP':>10} {'PRO':>10} {'seconds':>8} {'extra MB':>9}")
    results = {}
    for method in METHODS:
        code = f"from tests.benchmarks.bench_metrics import measure; measure({method!r}, {side}, {power})"
        python = python_with("anomalib==2.7.0", "pytest") if method == "anomalib" else [sys.executable]
        done = subprocess.run([*python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        result = results[method] = json.loads(done.stdout)
        cells = [f"{result[name]:10.7f}" if name in result else f"{'-':>10}" for name in ("auroc", "ap", "pro")]
        print(f"{method:22} {' '.join(cells)} {result['seconds']:8.2f} {result['megabytes']:9.0f}", flush=True)
    ours, stream = results["stlm.metrics"], results["stlm.metrics, stream"]
    assert ours["auroc"] == pytest.approx(results["scikit-learn"]["auroc"], abs=1e-6)
    assert ours["ap"] == pytest.approx(results["scikit-learn"]["ap"], abs=1e-6)
    assert ours["pro"] == pytest.approx(results["PRO by definition"]["pro"], abs=1e-6)
    assert max(abs(ours[name] - stream[name]) for name in ("auroc", "ap", "pro")) <= stream["bound"]
    print(f"the stream is off by at most {stream['bound']:.1e}")
