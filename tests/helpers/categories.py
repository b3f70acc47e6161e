"""Small folders in MVTec layout."""

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["SIZE", "write_category"]

SIZE = 64


def write_category(root: Path, *, brightness: int = 120, num_normals: int = 12, masks: bool = True) -> Path:
    """Grey noise; defects are white squares."""
    rng = np.random.default_rng(brightness)

    def image(path: Path, square: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(brightness, 6, (SIZE, SIZE)), 0, 255).astype(np.uint8)
        if square:
            pixels[20:36, 24:40] = 255
        Image.fromarray(pixels).convert("RGB").save(path)

    for index in range(num_normals):
        image(root / f"train/good/{brightness}-{index:03d}.png", False)
    for index in range(4):
        image(root / f"test/good/{index:03d}.png", False)
        image(root / f"test/square/{index:03d}.png", True)
        if masks:
            mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
            mask[20:36, 24:40] = 255
            path = root / f"ground_truth/square/{index:03d}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return root
