"""Teachers: what they compute equals segment-anything's own, and no checkpoint is taken on trust."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stlm.errors import WeightsError
from stlm.nn.lite0 import build_lite0_trunk
from stlm.nn.mobile_sam import build_mobile_sam, mobile_sam_state
from stlm.nn.teachers import SamTeacher, download_checkpoint, load_sam_teacher
from tests.helpers.small_networks import official_mobile_sam_layout, tiny_sam


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
