"""Training samples: corrupted normals with their masks, made once and kept as trunk features, or made live.

Every sample is a function of (seed, image content, repetition) alone, so a resumed run sees what an undisturbed one
would have seen.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from stlm.config import DataConfig
from stlm.data.synthesis import FloatImage, augment_normal, corrupt
from stlm.data.transforms import preprocess, read_image
from stlm.models.two_stream import TwoStream
from stlm.nn.encoders import Features

__all__ = ["Normals", "Samples", "TrainingBatch", "build_samples", "load_normals", "trunk_features_of"]

logger = logging.getLogger(__name__)
_SHARD = 32


class TrainingBatch(NamedTuple):
    """One step's input."""

    corrupted: Features
    clean: Features
    mask: Tensor
    """``(B, H, W)`` float32, 1 on pseudo-anomalous pixels (or positions, where cached)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Normals:
    """Normal images at the network's size, in memory."""

    images: NDArray[np.uint8]
    """``(N, H, W, 3)``."""
    digests: tuple[str, ...]
    """sha256 of each source file."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.digests)

    def float_image(self, index: int) -> FloatImage:
        """``(H, W, 3)`` float32 in [0, 1]."""
        image: FloatImage = self.images[index].astype(np.float32) / np.float32(255.0)
        return image


def load_normals(paths: Sequence[Path], digests: Sequence[str], image_size: tuple[int, int]) -> Normals:
    """Decode and resize.

    Args:
        paths: Image files.
        digests: Their sha256, in the same order.
        image_size: ``(height, width)`` of the network's input.

    Returns:
        The images; 196 KB each at 256 px.

    Raises:
        DataError: A file cannot be decoded.
    """
    images = np.empty((len(paths), *image_size, 3), dtype=np.uint8)
    for index, path in enumerate(paths):
        resized = preprocess(torch.from_numpy(read_image(path)[None].copy()), image_size)[0]
        images[index] = (resized.permute(1, 2, 0) * 255.0).round().to(torch.uint8).numpy()
    return Normals(images=images, digests=tuple(digests))


def _to_tensor(images: Sequence[FloatImage]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def trunk_features_of(model: TwoStream, normals: Normals, *, batch_size: int = 16) -> Features:
    """Trunk features of all images.

    Args:
        model: Gives the frozen trunk.
        normals: The images.
        batch_size: Images at a time.

    Returns:
        Levels ``(N, C_i, h_i, w_i)`` float16 on the CPU.
    """
    device = next(model.parameters()).device
    chunks: list[Features] = []
    for start in range(0, len(normals), batch_size):
        images = _to_tensor([normals.float_image(i) for i in range(start, min(start + batch_size, len(normals)))])
        chunks.append(tuple(level.half().cpu() for level in model.trunk_features(images.to(device))))
    return tuple(torch.cat(levels) for levels in zip(*chunks, strict=True))


class Samples:
    """Pairs of clean and corrupted views of normals; features are cached where the trunk is frozen and shared."""

    def __init__(
        self,
        *,
        model: TwoStream,
        normals: Normals,
        config: DataConfig,
        repetitions: int,
        textures: Sequence[FloatImage],
        seed: int,
        cache_dir: Path | None,
        label: str,
    ) -> None:
        self.normals = normals
        self._model = model
        self._config = config
        self._textures = textures
        self._seed = seed
        self._repetitions = repetitions
        self._cache: dict[str, Tensor] | None = None
        if repetitions > 0 and len(normals) > 0:
            self._cache = self._fill(cache_dir, label)

    def _draw(self, index: int, repetition: int) -> tuple[FloatImage, FloatImage, NDArray[np.bool_]]:
        text = f"{self._seed}:{self.normals.digests[index]}:{repetition}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        clean = augment_normal(self.normals.float_image(index), self._config, rng)
        other = self.normals.float_image(int(rng.integers(len(self.normals))))
        corrupted, mask = corrupt(clean, self._config, rng, textures=self._textures, others=[other])
        return corrupted, clean, mask

    @torch.no_grad()
    def _features(self, pairs: Sequence[tuple[int, int]]) -> tuple[Features, Features, Tensor]:
        drawn = [self._draw(index, repetition) for index, repetition in pairs]
        device = next(self._model.parameters()).device
        both = _to_tensor([d[0] for d in drawn] + [d[1] for d in drawn]).to(device)
        features = self._model.trunk_features(both)
        count = len(pairs)
        masks = torch.from_numpy(np.stack([d[2] for d in drawn])).to(device, torch.float32)
        return tuple(x[:count] for x in features), tuple(x[count:] for x in features), masks

    def _fill(self, cache_dir: Path | None, label: str) -> dict[str, Tensor]:
        pairs = [(i, r) for r in range(self._repetitions) for i in range(len(self.normals))]
        shards = []
        for start in tqdm(range(0, len(pairs), _SHARD), desc=f"corrupt {label}", unit="shard", disable=None):
            path = None if cache_dir is None else cache_dir / f"{label}-{start:07d}.safetensors"
            if path is not None and path.exists():
                shards.append(load_file(path))
                continue
            corrupted, clean, masks = self._features(pairs[start : start + _SHARD])
            small = F.interpolate(masks.unsqueeze(1), size=corrupted[0].shape[-2:], mode="bilinear", antialias=True)
            shard = {"mask": (small.squeeze(1) > 0.5).to(torch.uint8).cpu()}
            for level, (dirty, fresh) in enumerate(zip(corrupted, clean, strict=True)):
                shard[f"corrupted{level}"] = dirty.half().cpu().contiguous()
                shard[f"clean{level}"] = fresh.half().cpu().contiguous()
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".part")
                save_file(shard, partial)
                partial.replace(path)
            shards.append(shard)
            logger.info("corrupting %s images: %d of %d", label, min(start + _SHARD, len(pairs)), len(pairs))
        return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}

    def batch(self, rng: np.random.Generator, count: int) -> TrainingBatch:
        """Draw samples with replacement.

        Args:
            rng: The step's own generator.
            count: How many.

        Returns:
            A batch on the model's device.
        """
        device = next(self._model.parameters()).device
        chosen = rng.integers(len(self.normals), size=count)
        if self._cache is None:
            pairs = [(int(i), int(rng.integers(2**31))) for i in chosen]
            corrupted, clean, mask = self._features(pairs)
        else:
            rows = torch.from_numpy(chosen + len(self.normals) * rng.integers(self._repetitions, size=count))
            levels = sum(name.startswith("clean") for name in self._cache)
            corrupted, clean = (
                tuple(self._cache[f"{kind}{level}"][rows].float().to(device) for level in range(levels))
                for kind in ("corrupted", "clean")
            )
            mask = self._cache["mask"][rows].float().to(device)
        keep_clean = torch.from_numpy(rng.random(count) < self._config.clean_probability).to(device)
        selector = keep_clean.view(-1, 1, 1, 1)
        corrupted = tuple(torch.where(selector, c, d) for d, c in zip(corrupted, clean, strict=True))
        return TrainingBatch(corrupted, clean, mask * (~keep_clean).view(-1, 1, 1))


def build_samples(
    model: TwoStream,
    normals: Normals,
    *,
    repetitions: int,
    textures: Sequence[FloatImage],
    seed: int,
    cache_dir: Path | None,
    label: str,
) -> Samples | None:
    """Samples of these normals, or ``None`` where there are none.

    Args:
        model: Gives the frozen trunk.
        normals: The images.
        repetitions: Corruptions per image to keep; 0 corrupts live.
        textures: Anomaly textures.
        seed: Decides every draw.
        cache_dir: Shards are kept here, so that a killed run does not make them again.
        label: Name of the shards.

    Returns:
        The samples.
    """
    if len(normals) == 0:
        return None
    return Samples(
        model=model,
        normals=normals,
        config=model.config.data,
        repetitions=repetitions if model.trunk is not None else 0,
        textures=textures,
        seed=seed,
        cache_dir=cache_dir,
        label=label,
    )
