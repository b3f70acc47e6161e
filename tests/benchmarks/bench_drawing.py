"""How long a device waits for corruptions of 1024 px: drawn in its step, and drawn ahead by threads.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_drawing.py`` on an idle machine.
The device is a stand-in that works without the CPU, for so long at a step as ``BUSY_S`` says.
"""

import os
import time

import numpy as np
import pytest
import torch
from torch import nn

from stlm.data.synthesis import embedded_textures
from stlm.models.registry import build_model
from stlm.recipes import paper
from stlm.training.batches import TrainingBatch
from stlm.training.samples import Normals, build_samples
from stlm.training.steps import Shares, StageLoop, draws_ahead, run_steps

STEPS = 20
BUSY_S = 0.3


@pytest.mark.benchmark
def test_a_device_does_not_wait_for_what_is_drawn_ahead() -> None:
    config = paper()
    pictures = np.random.default_rng(0).integers(0, 255, (4, *config.image_size, 3), dtype=np.uint8)
    samples = build_samples(
        build_model(config, seed=0), Normals(images=pictures, digests=tuple("abcd")), repetitions=0,
        textures=embedded_textures(), seed=0, cache_dir=None, label="live",
    )  # fmt: skip
    assert samples is not None
    batch_size = config.stages[0].batch_size
    model = nn.Linear(1, 1)

    def losses(batch: TrainingBatch) -> Shares:
        time.sleep(BUSY_S)
        yield 1.0, {"none": 0.0 * batch.mask.mean() * model.weight.sum()}

    seconds = {}
    for ahead in (0, draws_ahead(torch.device("cuda"))):
        loop = StageLoop(
            model=model, name="fit", index=0, steps=STEPS, seed=0, optimizers=[torch.optim.SGD(model.parameters())],
            draw=lambda rng: samples.make(samples.choose(rng, batch_size)), losses=losses, rate=lambda step: 1.0,
            ahead=ahead,
        )  # fmt: skip
        started = time.perf_counter()
        run_steps(loop, None)
        seconds[ahead] = (time.perf_counter() - started) / STEPS
    print(f"\na step of {BUSY_S} s on the device, {batch_size} images of 1024 px, {os.cpu_count()} cores")
    for ahead, each in seconds.items():
        print(f"{ahead} batches ahead: {each:.2f} s a step, the device is busy {BUSY_S / each:.0%} of the time")
    assert seconds[max(seconds)] < seconds[0]
