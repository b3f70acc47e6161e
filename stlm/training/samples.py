"""Training samples: corrupted normals with their masks, made once and kept as trunk features, or made live.

Every sample is a function of (seed, image content, repetition) alone, so a resumed run sees what an undisturbed one
would have seen.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from stlm.config import DataConfig
from stlm.data.image_files import read_image
from stlm.data.synthesis import FloatImage, augment_normal, corrupt, leaves_normals
from stlm.data.transforms import preprocess
from stlm.models.two_stream import TwoStream
from stlm.nn.encoders import Features
from stlm.nn.teachers import Teacher
from stlm.training import world
from stlm.training.batches import Choice, TrainingBatch

__all__ = ["Normals", "Samples", "build_samples", "load_normals", "trunk_features_of"]

logger = logging.getLogger(__name__)
_SHARD = 32
_TEACHER_BATCH = 4


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
    """Trunk features of all images, with the extra levels.

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
        chunks.append(tuple(level.half().cpu() for level in model.trunk_features(images.to(device), extra=True)))
    return tuple(torch.cat(levels) for levels in zip(*chunks, strict=True))


class _Bank:
    """Shards of samples: in memory, or mapped from files where they are images and a large teacher's features."""

    def __init__(self, shards: Sequence[dict[str, Tensor] | Path]) -> None:
        self._shards = [shard if isinstance(shard, dict) else load_file(shard) for shard in shards]
        self.names = frozenset(self._shards[0])

    def rows(self, name: str, rows: NDArray[np.int64]) -> Tensor:
        """Entries of one tensor, in the order asked for."""
        return torch.stack([self._shards[row // _SHARD][name][row % _SHARD] for row in rows.tolist()])

    def levels(self, prefix: str, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """All tensors ``prefix0``, ``prefix1``, ...; none where there is none."""
        count = sum(name.startswith(prefix) and name[len(prefix) :].isdigit() for name in self.names)
        return tuple(self.rows(f"{prefix}{level}", rows) for level in range(count))


_MakeShard = Callable[[Sequence[tuple[int, int]]], dict[str, Tensor]]
"""From (index, repetition) of some samples."""


class Samples:
    """Pairs of clean and corrupted views of normals, made live or taken from a bank.

    Where the trunk is frozen and shared, the bank holds its features; where a teacher is given, it holds both images
    and the teacher's features of both, so that a step never runs the teacher. Live samples keep the teacher's features
    of the clean view, where that is the same in every draw.
    """

    def __init__(
        self,
        *,
        model: TwoStream,
        normals: Normals,
        config: DataConfig,
        repetitions: int,
        keep_clean: bool,
        textures: Sequence[FloatImage],
        seed: int,
        cache_dir: Path | None,
        label: str,
        teacher: Teacher | None = None,
    ) -> None:
        self.normals = normals
        self._teacher = teacher
        self._model = model
        self._config = config
        self._textures = textures
        self._seed = seed
        self._repetitions = repetitions
        self._bank: _Bank | None = None
        self._clean: _Bank | None = None
        if repetitions > 0 and len(normals) > 0:
            self._bank = self._fill(self._shard, repetitions, cache_dir, label)
        elif keep_clean and teacher is not None and len(normals) > 0 and leaves_normals(config):
            self._clean = self._fill(self._clean_shard, 1, cache_dir, f"clean-{label}")

    def _draw(
        self, index: int, repetition: int, *, is_clean: bool = False
    ) -> tuple[FloatImage, FloatImage, NDArray[np.bool_]]:
        text = f"{self._seed}:{self.normals.digests[index]}:{repetition}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        clean = augment_normal(self.normals.float_image(index), self._config, rng)
        if is_clean:
            return clean, clean, np.zeros(clean.shape[:2], dtype=np.bool_)
        other = self.normals.float_image(int(rng.integers(len(self.normals))))
        corrupted, mask = corrupt(clean, self._config, rng, textures=self._textures, others=[other])
        return corrupted, clean, mask

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    @torch.no_grad()
    def _features(
        self, drawn: Sequence[tuple[FloatImage, FloatImage, NDArray[np.bool_]]]
    ) -> tuple[Features, Features, Tensor]:
        both = _to_tensor([d[0] for d in drawn] + [d[1] for d in drawn]).to(self._device)
        features = self._model.trunk_features(both)
        count = len(drawn)
        masks = torch.from_numpy(np.stack([d[2] for d in drawn])).to(self._device, torch.float32)
        return tuple(x[:count] for x in features), tuple(x[count:] for x in features), masks

    @functools.cached_property
    def _identity(self) -> str:
        """What a shard depends on beside its images: another teacher or trunk must not find it."""
        digest = hashlib.sha256(repr((self._config, self._seed, self._repetitions, self.normals.digests)).encode())
        source = self._teacher if isinstance(self._teacher, nn.Module) else self._model.trunk
        if source is not None:
            for name, value in source.state_dict().items():
                digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _fill(self, make_shard: _MakeShard, repetitions: int, cache_dir: Path | None, label: str) -> _Bank:
        pairs = [(i, r) for r in range(repetitions) for i in range(len(self.normals))]
        starts = range(0, len(pairs), _SHARD)
        if cache_dir is not None and world.size() > 1:
            # Each process makes its share, and finds the others' below.
            self._make(make_shard, pairs, starts[world.rank() :: world.size()], cache_dir, label)
            world.wait_for_all()
        return _Bank(self._make(make_shard, pairs, starts, cache_dir, label))

    def _make(
        self,
        make_shard: _MakeShard,
        pairs: Sequence[tuple[int, int]],
        starts: Sequence[int],
        cache_dir: Path | None,
        label: str,
    ) -> list[dict[str, Tensor] | Path]:
        """The shards that begin at ``starts``; those that lie in the cache are not made again."""
        shards: list[dict[str, Tensor] | Path] = []
        identity = "" if cache_dir is None else self._identity
        for start in tqdm(starts, desc=f"prepare {label}", unit="shard", disable=None):
            path = None if cache_dir is None else cache_dir / f"{label}-{start:07d}.safetensors"
            if path is not None and path.exists() and _identity_of(path) == identity:
                shards.append(path)
                continue
            shard = make_shard(pairs[start : start + _SHARD])
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".part")
                # Not save_file(): it says of a full disk only in its own words.
                partial.write_bytes(save(shard, metadata={"identity": identity}))
                partial.replace(path)
            shards.append(shard if path is None or self._teacher is None else path)
            logger.info("preparing %s images: %d of %d", label, min(start + _SHARD, len(pairs)), len(pairs))
        return shards

    def _shard(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        corrupted, clean, masks = self._features([self._draw(*pair) for pair in pairs])
        shard: dict[str, Tensor] = {}
        if self._teacher is None:
            size = corrupted[0].shape[-2:]
            for level, (dirty, fresh) in enumerate(zip(corrupted, clean, strict=True)):
                shard[f"corrupted{level}"] = dirty.half().cpu().contiguous()
                shard[f"clean{level}"] = fresh.half().cpu().contiguous()
        else:
            for view, images in (("corrupted", corrupted[0]), ("clean", clean[0])):
                shard[f"{view}0"] = (images * 255.0).round().to(torch.uint8).cpu().contiguous()
                # The teacher sees what is stored: the image after rounding.
                seen = shard[f"{view}0"].to(images.device).float() / 255.0
                shard |= self._targets(view, seen)
            size = shard["clean_target0"].shape[-2:]
        small = F.interpolate(masks.unsqueeze(1), size=size, mode="bilinear", antialias=True)
        shard["mask"] = (small.squeeze(1) > 0.5).to(torch.uint8).cpu()
        return shard

    def _clean_shard(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        images = _to_tensor([self.normals.float_image(index) for index, _ in pairs])
        return self._targets("clean", self._model.trunk_features(images.to(self._device))[0])

    def _targets(self, view: str, images: Tensor) -> dict[str, Tensor]:
        assert self._teacher is not None
        chunks = [self._teacher.levels(part) for part in torch.split(images, _TEACHER_BATCH)]
        return {
            f"{view}_target{level}": torch.cat(parts).half().cpu().contiguous()
            for level, parts in enumerate(zip(*chunks, strict=True))
        }

    def choose(self, rng: np.random.Generator, count: int) -> Choice:
        """Choose samples with replacement.

        Args:
            rng: The step's own generator.
            count: How many.

        Returns:
            For :meth:`make`.
        """
        indices = rng.integers(len(self.normals), size=count)
        if self._bank is None:
            repetitions = np.array([rng.integers(2**31) for _ in range(count)], dtype=np.int64)
        else:
            repetitions = rng.integers(self._repetitions, size=count)
        return Choice(
            indices=indices, repetitions=repetitions, is_clean=rng.random(count) < self._config.clean_probability
        )

    def make(self, choice: Choice) -> TrainingBatch:
        """Corrupt what was chosen, or take it from the bank.

        Args:
            choice: At least one row.

        Returns:
            A batch on the model's device.
        """
        device = self._device
        is_clean = torch.from_numpy(choice.is_clean)
        selector = is_clean.to(device).view(-1, 1, 1, 1)
        corrupted_targets: tuple[Tensor, ...] = ()
        clean_targets: tuple[Tensor, ...] = ()
        if self._bank is None:
            drawn = [
                self._draw(int(index), int(repetition), is_clean=bool(leave))
                for index, repetition, leave in zip(choice.indices, choice.repetitions, choice.is_clean, strict=True)
            ]
            corrupted, clean, mask = self._features(drawn)
            if self._clean is not None:
                clean_targets = _targets_on(device, self._clean.levels("clean_target", choice.indices))
        else:
            rows = choice.indices + len(self.normals) * choice.repetitions
            corrupted, clean = (
                tuple(_as_float(level.to(device)) for level in self._bank.levels(view, rows))
                for view in ("corrupted", "clean")
            )
            clean_targets = _targets_on(device, self._bank.levels("clean_target", rows))
            corrupted_targets = _clean_where(
                selector, clean_targets, _targets_on(device, self._bank.levels("corrupted_target", rows))
            )
            mask = self._bank.rows("mask", rows).float().to(device) * (~selector).view(-1, 1, 1)
        corrupted = _clean_where(selector, clean, corrupted)
        return TrainingBatch(corrupted, clean, mask, is_clean, corrupted_targets, clean_targets)


def _clean_where(selector: Tensor, clean: Features, corrupted: Features) -> Features:
    return tuple(torch.where(selector, c, d) for c, d in zip(clean, corrupted, strict=True))


def _targets_on(device: torch.device, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(level.to(device).float() for level in levels)


def _as_float(stored: Tensor) -> Tensor:
    return stored.float() / 255.0 if stored.dtype == torch.uint8 else stored.float()


def _identity_of(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("identity", ""))
    except SafetensorError:
        return ""


def build_samples(
    model: TwoStream,
    normals: Normals,
    *,
    repetitions: int,
    keep_clean: bool = True,
    textures: Sequence[FloatImage],
    seed: int,
    cache_dir: Path | None,
    label: str,
    teacher: Teacher | None = None,
) -> Samples | None:
    """Samples of these normals, or ``None`` where there are none.

    Args:
        model: Gives the frozen trunk.
        normals: The images.
        repetitions: Corruptions per image to keep; 0 corrupts live.
        keep_clean: Live samples keep the teacher's features of clean views, where these are the same in every draw.
        textures: Anomaly textures.
        seed: Decides every draw.
        cache_dir: Shards are kept here, so that a killed run does not make them again.
        label: Name of the shards.
        teacher: Gives targets to keep, where nothing is shared.

    Returns:
        The samples.
    """
    if len(normals) == 0:
        return None
    return Samples(
        model=model,
        normals=normals,
        config=model.config.data,
        repetitions=repetitions if model.trunk is not None or teacher is not None else 0,
        keep_clean=keep_clean,
        textures=textures,
        seed=seed,
        cache_dir=cache_dir,
        label=label,
        teacher=None if model.trunk is not None else teacher,
    )
