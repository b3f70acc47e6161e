"""MobileSAM from its official checkpoint: segment-anything's prompt encoder and decoder on a TinyViT-5M encoder."""

import re

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from stlm.errors import WeightsError
from stlm.nn.encoders import TinyViTStudent

__all__ = ["build_mobile_sam", "mobile_sam_state"]

_RENAMED = (
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.c\.weight$", ".conv.weight"),
)
_UNUSED = re.compile(r"^(norm_head|head)\.|\.attention_bias_idxs$")


def build_mobile_sam() -> Sam:
    """MobileSAM's network with random weights.

    Returns:
        A ``Sam`` whose image encoder is the TinyViT of ``stlm.nn.encoders``, 1024 px.
    """
    return Sam(
        image_encoder=TinyViTStudent(embedding_dim=256, normalise=False),
        prompt_encoder=PromptEncoder(
            embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )


def mobile_sam_state(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the encoder's tensors from MobileSAM's layout to timm's.

    In MobileSAM a stage ends with the down-sampling that timm puts at the start of the next one. The unused
    classification head and the index buffers are left out.

    Args:
        official: State of the published checkpoint.

    Returns:
        A state for :func:`build_mobile_sam`.

    Raises:
        WeightsError: The state has no image encoder.
    """
    prefix = "image_encoder."
    if not any(name.startswith(prefix + "layers.") for name in official):
        raise WeightsError("not a MobileSAM checkpoint: it has no image_encoder.layers.*")
    state: dict[str, Tensor] = {}
    for name, value in official.items():
        if not name.startswith(prefix):
            state[name] = value
            continue
        inner = name.removeprefix(prefix)
        if _UNUSED.search(inner):
            continue
        moved = re.match(r"^layers\.(\d+)\.downsample\.(.+)$", inner)
        if moved is not None:
            inner = f"stages.{int(moved[1]) + 1}.downsample.{moved[2]}"
        for pattern, replacement in _RENAMED:
            inner = re.sub(pattern, replacement, inner)
        state[prefix + inner] = value
    return state
