"""What a night costs when the history is long: 500 images added to 1,000 and to 20,000.

Run: ``python -m pytest -s -m benchmark tests/benchmarks/bench_version.py``
"""

import hashlib
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.adapters.data_repository import DataRepository
from components.core.atomic_files import write_json
from components.core.contracts import BatchRef, ModelKey, RunRef, digest_of

KEY = ModelKey(product="bench", line="line1", camera="cam1")
IMAGES_A_NIGHT = 500
IMAGE_BYTES = 4096
NUM_TIMED = 5


def _bytes(night: int, index: int, num_bytes: int) -> bytes:
    seed = hashlib.sha256(f"{night}:{index}".encode()).digest()
    return seed * (num_bytes // len(seed))


def cheap_nights(
    folder: Path, images_a_night: int = IMAGES_A_NIGHT, image_bytes: int = IMAGE_BYTES
) -> Iterator[tuple[RunRef, BatchRef]]:
    """Night after night, each in two lots, of files that are no pictures."""
    night = 0
    while True:
        partition = f"20{10 + night // 336:02d}-{1 + night // 28 % 12:02d}-{1 + night % 28:02d}"
        images = folder / partition / "images"
        lots = []
        for lot in ("a", "b"):
            (images / lot).mkdir(parents=True)
            entries = []
            for index in range(images_a_night // 2):
                content = _bytes(night, index + (images_a_night // 2) * (lot == "b"), image_bytes)
                (images / lot / f"{index}.png").write_bytes(content)
                digest = hashlib.sha256(content).hexdigest()
                entries.append({"name": f"{index}.png", "bytes": len(content), "sha256": digest})
            lots.append({"lot": lot, "date": partition, "late": False, "images": entries})
        manifest = {"key": KEY.slug, "partition": partition, "lots": lots}
        path = folder / partition / "manifest.json"
        write_json(path, manifest)
        yield (
            RunRef(key=KEY, partition=partition, work_dir=str(folder)),
            BatchRef(
                manifest_path=str(path), image_dir=str(images), digest=digest_of(manifest), num_lots=2,
                num_images=images_a_night,
            ),
        )  # fmt: skip
        night += 1


def _seconds_a_night(folder: Path, history: int) -> list[float]:
    repository = DataRepository(folder / "repo", str(folder / "remote"))
    nights = cheap_nights(folder / "batches")
    for _ in range(history // IMAGES_A_NIGHT):
        repository.add_partition(*next(nights))
    timed = []
    for _ in range(NUM_TIMED):
        run, batch = next(nights)
        start = time.perf_counter()
        repository.add_partition(run, batch)
        timed.append(time.perf_counter() - start)
    return timed


@pytest.mark.benchmark
def test_a_night_on_a_long_history_costs_at_most_twice_a_night_on_a_short_one(tmp_path: Path) -> None:
    logging.disable(logging.INFO)
    short = _seconds_a_night(tmp_path / "short", 1_000)
    long = _seconds_a_night(tmp_path / "long", 20_000)
    ratio = statistics.median(long) / statistics.median(short)
    lines = ["", "history  median s  min s   max s   (add, push, commit, tag of 500 images of 4 KiB)"]
    for history, timed in ((1_000, short), (20_000, long)):
        lines.append(f"{history:7d}  {statistics.median(timed):8.2f}  {min(timed):5.2f}   {max(timed):5.2f}")
    lines.append(f"ratio    {ratio:8.2f}  (at most 2)")
    sys.stdout.write("\n".join(lines) + "\n")
    assert ratio <= 2
