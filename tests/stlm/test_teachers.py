"""Teachers: what they compute equals segment-anything's own, and no checkpoint is taken on trust."""

import hashlib
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from stlm.errors import WeightsError
from stlm.nn.lite0 import build_lite0_trunk
from stlm.nn.mobile_sam import build_mobile_sam, mobile_sam_state
from stlm.nn.teachers import SamTeacher, download_checkpoint, load_sam_teacher


def tiny_sam() -> Sam:
    torch.manual_seed(0)
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


def test_teacher_levels_are_sams_embedding_and_its_decoded_image_tokens() -> None:
    sam = tiny_sam().eval()
    seen: list[Tensor] = []
    sam.mask_decoder.transformer.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs[1]))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        embedding = sam.image_encoder(sam.preprocess(images[0] * 255.0)[None])
        sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
        sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True)
        first, second = SamTeacher(sam=sam).levels(images)
    torch.testing.assert_close(first, embedding, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second.flatten(2).transpose(1, 2), seen[0], rtol=1e-4, atol=1e-5)


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


def test_mobile_sam_loads_from_its_official_layout(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = build_mobile_sam()
    path = tmp_path / "mobile_sam.pt"
    torch.save(official_mobile_sam_layout(source.state_dict()), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    teacher = load_sam_teacher("mobile_sam", str(path), digest, tmp_path)
    expected = source.image_encoder.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in teacher.image_encoder.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    torch.save({"image_encoder.pos_embed": torch.zeros(1)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="is not a sam_vit_b"):
        load_sam_teacher("sam_vit_b", str(path), digest, tmp_path)
    with pytest.raises(WeightsError, match="not a MobileSAM checkpoint"):
        mobile_sam_state({"image_encoder.pos_embed": torch.zeros(1)})


def test_a_missing_or_altered_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    with pytest.raises(WeightsError, match="does not exist"):
        download_checkpoint(str(path), "0" * 64, tmp_path)
    path.write_bytes(b"weights")
    with pytest.raises(WeightsError, match="expected sha256 0000"):
        download_checkpoint(str(path), "0" * 64, tmp_path)
    with pytest.raises(WeightsError, match="give its sha256"):
        download_checkpoint(str(path), "", tmp_path)


def test_a_url_is_fetched_once_into_a_cache_by_content(tmp_path: Path) -> None:
    source = tmp_path / "source.pth"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    cached = download_checkpoint(source.as_uri(), digest, tmp_path / "cache")
    source.unlink()
    assert download_checkpoint(source.as_uri(), digest, tmp_path / "cache") == cached
    with pytest.raises(WeightsError, match="cannot be fetched"):
        download_checkpoint(source.as_uri(), "1" * 64, tmp_path / "cache")


def test_the_embedded_trunk_is_frozen_and_has_the_documented_levels() -> None:
    trunk = build_lite0_trunk().train()
    assert not trunk.training
    features = trunk(torch.rand(1, 3, 256, 256))
    assert {block: tuple(level.shape[1:]) for block, level in features.items()} == {
        4: (40, 32, 32),
        10: (112, 16, 16),
    }
