"""Teachers behind one interface: segment-anything's models from a user's checkpoint, and the frozen shared trunk.

Checkpoints are never downloaded by name: the user gives a path or URL and the sha256 it must have.
"""

import hashlib
import shutil
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor, nn

from stlm.errors import WeightsError
from stlm.nn.mask_decoder import SharedDecoder

__all__ = [
    "RandomTrunk",
    "SamName",
    "SamTeacher",
    "Teacher",
    "download_checkpoint",
    "load_sam",
    "load_sam_teacher",
    "read_state",
    "shared_decoder_from_sam",
    "verify_checkpoint",
]

SamName = Literal["sam_vit_h", "sam_vit_l", "sam_vit_b", "mobile_sam"]


class Teacher(Protocol):
    """Frozen source of targets."""

    def levels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Two levels ``(B, D, h, w)`` for ``(B, 3, H, W)`` float32 images in [0, 1]."""
        ...


class RandomTrunk(nn.Module):
    """A frozen, seeded, random trunk with the interface of ``Lite0Trunk``; for tests that must not need weights."""

    channels: ClassVar[dict[int, int]] = {1: 12, 2: 24, 3: 16}

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 12, 5, stride=4, padding=2), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(24, 16, 3, stride=2, padding=1), nn.ReLU())
        self.requires_grad_(False)

    def forward(self, images: Tensor, taps: Sequence[int] = ()) -> dict[int, Tensor]:
        """Features at strides 4, 8 and 16; all, or those at ``taps``."""
        first = self.first(images)
        second = self.second(first)
        levels = {1: first, 2: second, 3: self.third(second)}
        return {tap: level for tap, level in levels.items() if not taps or tap in taps}


class SamTeacher(nn.Module):
    """Level 1 is SAM's image embedding, level 2 the image tokens after SAM's own two-way transformer."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, sam: Sam, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder
        if image_size is not None:
            _fit_positions(self.image_encoder, image_size)
        self.decoder = shared_decoder_from_sam(sam)
        self.register_buffer("mean", sam.pixel_mean.view(1, 3, 1, 1) / 255.0, persistent=False)
        self.register_buffer("std", sam.pixel_std.view(1, 3, 1, 1) / 255.0, persistent=False)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def levels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Targets of a batch.

        Args:
            images: ``(B, 3, H, W)`` float32 in [0, 1], at the image size that was given.

        Returns:
            Two levels ``(B, 256, H/16, W/16)``.
        """
        first = self.image_encoder((images - self.mean) / self.std)
        return first, self.decoder(first)


def _fit_positions(encoder: nn.Module, image_size: tuple[int, int]) -> None:
    """Bring SAM's absolute position embedding to another grid; its relative ones adapt by themselves."""
    positions = getattr(encoder, "pos_embed", None)
    if not isinstance(positions, Tensor):
        return
    height, width = (side // 16 for side in image_size)
    if tuple(positions.shape[1:3]) == (height, width):
        return
    grid = positions.detach().permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    encoder.pos_embed = nn.Parameter(resized.permute(0, 2, 3, 1).contiguous(), requires_grad=False)


def shared_decoder_from_sam(sam: Sam) -> SharedDecoder:
    """SAM's mask-decoder transformer with its output tokens and "no mask" vector.

    Args:
        sam: Any of segment-anything's models.

    Returns:
        A decoder that computes what SAM computes for an image without prompts.
    """
    source = sam.mask_decoder
    first_mlp = source.transformer.layers[0].mlp
    decoder = SharedDecoder(
        embedding_dim=source.transformer_dim,
        depth=len(source.transformer.layers),
        num_heads=source.transformer.num_heads,
        mlp_dim=first_mlp.lin1.out_features,
        num_tokens=1 + source.num_mask_tokens,
    )
    decoder.transformer.load_state_dict(source.transformer.state_dict())
    decoder.position.load_state_dict(sam.prompt_encoder.pe_layer.state_dict())
    with torch.no_grad():
        decoder.tokens.weight.copy_(torch.cat([source.iou_token.weight, source.mask_tokens.weight]))
        decoder.no_mask.weight.copy_(sam.prompt_encoder.no_mask_embed.weight)
    return decoder


def verify_checkpoint(path: Path, sha256: str) -> None:
    """Compare a file with the digest it must have.

    Args:
        path: The file.
        sha256: 64 hex digits.

    Raises:
        WeightsError: The file is missing, no digest was given, or it does not match.
    """
    if not path.is_file():
        raise WeightsError(f"checkpoint {path} does not exist")
    if len(sha256) != 64:
        raise WeightsError(f"checkpoint {path}: give its sha256 (64 hex digits), got {sha256!r}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256.lower():
        raise WeightsError(f"checkpoint {path}: expected sha256 {sha256}, got {digest}")


def download_checkpoint(source: str, sha256: str, cache_dir: Path) -> Path:
    """Fetch a checkpoint once into a cache by content; a local path is only verified.

    Args:
        source: Path, ``file://`` or ``https://`` URL.
        sha256: What the file must hash to.
        cache_dir: Where downloads are kept.

    Returns:
        A verified local path.

    Raises:
        WeightsError: The source cannot be read or does not match.
    """
    if "://" not in source:
        verify_checkpoint(Path(source), sha256)
        return Path(source)
    target = cache_dir / f"{sha256.lower()}.pth"
    if not target.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache_dir, suffix=".part", delete=False) as file:
            partial = Path(file.name)
            try:
                with urllib.request.urlopen(source, timeout=60) as response:
                    shutil.copyfileobj(response, file)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise WeightsError(f"checkpoint {source}: cannot be fetched ({error})") from error
        try:
            verify_checkpoint(partial, sha256)
        except WeightsError:
            partial.unlink()
            raise
        partial.replace(target)
    verify_checkpoint(target, sha256)
    return target


def read_state(path: Path) -> dict[str, Tensor]:
    """Named tensors of a checkpoint: safetensors, or torch's format with nothing but tensors in it.

    Args:
        path: A verified file; its content, not its name, says which format it is.

    Returns:
        The tensors on the CPU; a wrapping ``state_dict`` or ``model`` and the prefix ``module.`` are taken off.

    Raises:
        WeightsError: The file holds something else, for instance a pickle that would run code.
    """
    try:
        with path.open("rb") as file:
            is_torch = file.read(2)[:1] in (b"P", b"\x80")  # a zip archive or a pickle
        state = torch.load(path, map_location="cpu", weights_only=True) if is_torch else load_file(path)
    except Exception as error:  # a damaged file may raise anything in its reader
        reason = (str(error) or repr(error)).splitlines()[0]
        raise WeightsError(f"checkpoint {path}: expected nothing but tensors, got something else ({reason})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"checkpoint {path}: expected named tensors, got {type(state).__name__}")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def load_sam(name: SamName, checkpoint: str, sha256: str, cache_dir: Path) -> Sam:
    """Build segment-anything's model, or MobileSAM's, from a checkpoint in its official layout.

    Args:
        name: Which architecture the checkpoint is of.
        checkpoint: Path or URL.
        sha256: Digest it must have.
        cache_dir: Where downloads are kept.

    Returns:
        The model on the CPU, frozen and in evaluation mode.

    Raises:
        WeightsError: The file is missing, altered, or of another architecture.
    """
    path = download_checkpoint(checkpoint, sha256, cache_dir)
    state = read_state(path)
    if name == "mobile_sam":
        from stlm.nn.mobile_sam import build_mobile_sam, mobile_sam_state

        sam, state = build_mobile_sam(), mobile_sam_state(state)
    else:
        sam = sam_model_registry[name.removeprefix("sam_")](checkpoint=None)
    try:
        sam.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"checkpoint {path} is not a {name}: {str(error).splitlines()[1].strip()}") from error
    frozen: Sam = sam.requires_grad_(False).eval()
    return frozen


def load_sam_teacher(
    name: SamName, checkpoint: str, sha256: str, cache_dir: Path, *, image_size: tuple[int, int] | None = None
) -> SamTeacher:
    """Build a frozen teacher from a checkpoint in segment-anything's official layout.

    Args:
        name: Which architecture the checkpoint is of.
        checkpoint: Path or URL.
        sha256: Digest it must have.
        cache_dir: Where downloads are kept.
        image_size: ``(height, width)`` it is to see, multiples of 16, where that is not 1024 x 1024; its position
            embedding is interpolated.

    Returns:
        The teacher.

    Raises:
        WeightsError: The file is missing, altered, or of another architecture.
    """
    if not checkpoint:
        raise WeightsError(f"teacher {name}: set fine_tune.teacher_checkpoint and fine_tune.teacher_sha256")
    return SamTeacher(sam=load_sam(name, checkpoint, sha256, cache_dir), image_size=image_size)
