"""CLIP and SAM, built small with random weights by the real libraries, and checkpoints in their official layouts."""

import hashlib
import json
import re
from functools import partial
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from stlm.nn.mobile_sam import build_mobile_sam
from stlm.zero_shot.clip_encoder import ClipEncoder, build_clip

__all__ = ["CLIP_CONFIG", "official_mobile_sam_layout", "sha256_of", "tiny_clip", "tiny_sam", "write_clip", "write_sam"]

CLIP_CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tiny_sam(seed: int = 0) -> Sam:
    torch.manual_seed(seed)
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=1,
            embed_dim=32,
            img_size=64,
            mlp_ratio=2,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=(0,),
            window_size=0,
            out_chans=32,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4),
            transformer_dim=32,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
    )


def official_mobile_sam_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published checkpoint's names for timm's: the inverse of what the loader does."""
    official = {}
    for name, value in state.items():
        if not name.startswith("image_encoder."):
            official[name] = value
            continue
        inner = name.removeprefix("image_encoder.")
        moved = re.match(r"stages\.(\d+)\.downsample\.(.+)", inner)
        if moved is not None:
            inner = f"layers.{int(moved[1]) - 1}.downsample.{moved[2]}"
        inner = inner.replace("patch_embed.conv1.", "patch_embed.seq.0.").replace(
            "patch_embed.conv2.", "patch_embed.seq.2."
        )
        inner = re.sub(r"^stages\.", "layers.", inner).replace(".conv.weight", ".c.weight")
        official["image_encoder." + inner] = value
    official["image_encoder.head.weight"] = torch.zeros(1000, 320)
    official["image_encoder.layers.1.blocks.0.attn.attention_bias_idxs"] = torch.zeros(49, 49, dtype=torch.int64)
    return official


def write_sam(folder: Path, seed: int = 0) -> tuple[str, str]:
    """A MobileSAM with random weights: path and sha256 of its checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    path = folder / "mobile_sam.pt"
    torch.save(official_mobile_sam_layout(build_mobile_sam().state_dict()), path)
    return str(path), sha256_of(path)


def _config_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "clip.json"
    path.write_text(json.dumps(CLIP_CONFIG), encoding="utf-8")
    return path


def tiny_clip(folder: Path, seed: int = 0) -> ClipEncoder:
    torch.manual_seed(seed)
    encoder = build_clip(str(_config_file(folder)))
    with torch.no_grad():
        # open_clip leaves the biases of attention at zero, where a mistake with them would not show.
        for block in encoder.clip.visual.transformer.resblocks:  # type: ignore[union-attr]
            block.attn.in_proj_bias.normal_(std=0.1)
    return encoder


def write_clip(folder: Path, seed: int = 0) -> tuple[str, str, str]:
    """A CLIP with random weights: its configuration, and path and sha256 of its checkpoint."""
    encoder = tiny_clip(folder, seed)
    path = folder / "open_clip_pytorch_model.bin"
    torch.save(encoder.clip.state_dict(), path)
    return str(folder / "clip.json"), str(path), sha256_of(path)
