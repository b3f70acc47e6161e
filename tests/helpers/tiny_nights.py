"""A product that trains in seconds: 64x64 textures with bright scratches as defects, laid out like the real thing."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.config import PipelineConfig, load_config
from components.core.contracts import ModelKey, RunRef
from tests.helpers.landing import feed_from_folder

__all__ = ["KEY", "NIGHTS", "TinyWorld", "make_tiny_world", "texture"]

KEY = ModelKey(product="tiles", line="line1", camera="cam1")
NIGHTS = ("2026-03-01", "2026-03-02", "2026-03-03")
SIDE_PX = 64

_CONFIG = """
[paths]
work_dir = "work"
landing = "landing"
data_repo = "data-repo"
dvc_remote = "dvc-remote"

[mlflow]
tracking_uri = "sqlite:///mlflow/mlflow.db"
artifact_root = "mlflow/artifacts"

[[models]]
product = "tiles"
line = "line1"
camera = "cam1"
golden = "golden"
recipe = "tiny"

[schedule]
retries = 1
retry_delay_s = 0.5

[validate]
min_images = 4

[fine_tune]
device = "cpu"
num_threads = 1
replay_images = 8

[evaluate]
bootstrap_samples = 50
num_synthetic = 4

[export]
parity_images = 4
max_score_difference = 1.0

[gate]
bootstrap_samples = 200
min_per_class = 4
max_false_alarm_rise = 1.0
max_forgetting = 1.0
max_old_shift = 1.0
max_flip_rate = 1.0
max_latency_ratio = 50.0

[gate.floors]
image_auroc = 0.0

[gate.margins]
image_auroc = 0.9

[gate.anchor_margins]
image_auroc = 0.9

[report]
max_pictures = 2
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyWorld:
    """A configuration whose landing zone can be fed."""

    root: Path
    config_path: Path
    config: PipelineConfig

    def run(self, night: str) -> RunRef:
        """The night of the tiny key."""
        return RunRef(key=KEY, partition=night, work_dir=self.config.paths.work_dir)

    def feed(self, night: str, *, num_images: int = 16, dark: bool = False) -> None:
        """Deliver one lot of good textures, or of black frames."""
        folder = self.root / "produced" / night
        folder.mkdir(parents=True, exist_ok=True)
        seed = int(night.replace("-", ""))
        for i in range(num_images):
            image = np.zeros((SIDE_PX, SIDE_PX), np.uint8) if dark else texture(seed * 1000 + i)
            Image.fromarray(image).save(folder / f"{i:03d}.png")
        feed_from_folder(sorted(folder.iterdir()), self.config.paths.landing, KEY, f"{night.replace('-', '')}-a", night)


def texture(seed: int) -> NDArray[np.uint8]:
    """``(64, 64)`` uint8: a smooth random pattern with grain, so that no two are near duplicates."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 190, (8, 8)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC), np.float32)
    return np.asarray(np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255), np.uint8)


def _scratched(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    image, mask = texture(seed), np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    top, left = rng.integers(8, SIDE_PX - 24, 2)
    mask[top : top + 6, left : left + 16] = 255
    return np.where(mask > 0, np.uint8(250), image).astype(np.uint8), mask


def make_tiny_world(root: Path, *, num_good: int = 8, num_defective: int = 8, recipe: str = "tiny") -> TinyWorld:
    """Write the golden set and the configuration below ``root``; the landing zone is empty."""
    golden = root / "golden"
    for folder in ("test/good", "test/scratch", "ground_truth/scratch"):
        (golden / folder).mkdir(parents=True)
    for i in range(num_good):
        Image.fromarray(texture(10_000 + i)).save(golden / "test" / "good" / f"{i:03d}.png")
    for i in range(num_defective):
        image, mask = _scratched(20_000 + i)
        Image.fromarray(image).save(golden / "test" / "scratch" / f"{i:03d}.png")
        Image.fromarray(mask).save(golden / "ground_truth" / "scratch" / f"{i:03d}_mask.png")
    config_path = root / "pipeline.toml"
    config_path.write_text(_CONFIG.replace('recipe = "tiny"', f'recipe = "{recipe}"'), encoding="utf-8")
    (root / "landing").mkdir()
    return TinyWorld(root=root, config_path=config_path, config=load_config(config_path))
