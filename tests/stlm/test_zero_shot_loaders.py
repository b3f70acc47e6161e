"""What is loaded for CLIP-SAM: prompt files, CLIP and SAM checkpoints; each refusal is one clear line."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stlm.errors import ConfigError, WeightsError
from stlm.nn.teachers import load_sam, read_state
from stlm.zero_shot.clip_encoder import build_clip, load_clip
from stlm.zero_shot.prompts import DEFAULT_PROMPTS, PromptSet, load_prompts
from tests.helpers.small_networks import CLIP_CONFIG, sha256_of, tiny_clip, write_clip, write_sam

GOOD: dict[str, Any] = {
    "object": "bottle",
    "templates": ["a photo of a {}."],
    "normal": ["flawless {}"],
    "anomalous": {"crack": ["{} with a crack"]},
}


def test_every_state_stands_in_every_template_with_the_products_name() -> None:
    prompts = PromptSet(
        object="bottle",
        templates=("a photo of a {}.", "the {}"),
        normal=("{}", "flawless {}"),
        anomalous={"crack": ("{} with a crack",)},
    )

    assert prompts.texts(prompts.normal) == (
        "a photo of a bottle.",
        "a photo of a flawless bottle.",
        "the bottle",
        "the flawless bottle",
    )


def test_the_embedded_prompts_are_good_and_a_copy_of_them_in_json_is_the_same(tmp_path: Path) -> None:
    prompts = load_prompts()
    path = tmp_path / "prompts.json"
    path.write_text(
        json.dumps(
            {
                "object": prompts.object,
                "templates": prompts.templates,
                "normal": prompts.normal,
                "anomalous": prompts.anomalous,
            }
        )
    )

    assert load_prompts(path) == prompts
    assert DEFAULT_PROMPTS.read_text().startswith("#")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object": " "}, "object is empty, expected what the product is"),
        ({"templates": []}, "templates is empty, expected at least one text"),
        ({"normal": ["flawless"]}, r"normal\[0\]: expected exactly one {} and no other brace, got 'flawless'"),
        ({"anomalous": {}}, "anomalous has no class, expected at least one"),
        ({"anomalous": {"crack": ["{} {}"]}}, r"anomalous\.crack\[0\]: expected exactly one {}"),
        ({"normal": ["{} of {kind}"]}, r"normal\[0\]: expected exactly one {} and no other brace"),
        ({"normal": "flawless {}"}, "normal: expected a list, got 'flawless {}'"),
        ({"anomalous": {"crack": [1]}}, r"anomalous\.crack\[0\]: expected str, got 1"),
        ({"abnormal": []}, "unknown field 'abnormal'; known fields: anomalous, normal, object, templates"),
    ],
)
def test_a_prompt_file_with_an_error_is_refused_with_place_expected_and_found(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "bottle.json"
    path.write_text(json.dumps(GOOD | change))

    with pytest.raises(ConfigError, match=message) as error:
        load_prompts(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, "does not exist"),
        ("prompts.txt", "object = 1", r"expected a \.toml or \.json file"),
        ("broken.toml", "object = ", "Invalid value"),
        ("broken.json", "{", "Expecting property name"),
    ],
)
def test_a_prompt_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)

    with pytest.raises(ConfigError, match=message):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize("layout", ["plain", "trainer", "safetensors"])
def test_clip_loads_from_open_clips_layouts(tmp_path: Path, layout: str) -> None:
    source = tiny_clip(tmp_path, seed=3)
    state = source.clip.state_dict()
    path = tmp_path / "weights"
    if layout == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    elif layout == "plain":
        torch.save(state, path)
    else:  # what open_clip's own training writes
        wrapped = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 1, "name": "run", "state_dict": wrapped}, path)

    loaded = load_clip(str(tmp_path / "clip.json"), str(path), sha256_of(path), tmp_path)

    assert all(torch.equal(state[name], value) for name, value in loaded.clip.state_dict().items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_clip_from_a_missing_altered_or_other_file_is_refused(tmp_path: Path) -> None:
    model, path, digest = write_clip(tmp_path)

    with pytest.raises(WeightsError, match="does not exist"):
        load_clip(model, str(tmp_path / "nothing.bin"), digest, tmp_path)
    with pytest.raises(WeightsError, match="expected sha256 0000"):
        load_clip(model, path, "0" * 64, tmp_path)
    with pytest.raises(WeightsError, match="give its sha256"):
        load_clip(model, path, "", tmp_path)
    wider = CLIP_CONFIG | {"vision_cfg": CLIP_CONFIG["vision_cfg"] | {"width": 48}}  # type: ignore[operator]
    (tmp_path / "wider.json").write_text(json.dumps(wider))
    with pytest.raises(WeightsError, match=r"is not a .*wider\.json: size mismatch") as error:
        load_clip(str(tmp_path / "wider.json"), path, digest, tmp_path)
    assert "\n" not in str(error.value)


class _Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (print, ("this must never run",))


@pytest.mark.chaos(
    "a teacher's checkpoint that is a pickle with code in it", outcome="refused by every loader; no code runs"
)
def test_a_pickle_that_would_run_code_is_refused_by_every_loader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _, _ = write_clip(tmp_path)
    archive, bare = tmp_path / "archive.pt", tmp_path / "bare.pkl"
    torch.save({"weights": _Harmful()}, archive)
    bare.write_bytes(pickle.dumps({"weights": _Harmful()}, protocol=2))

    for path in (archive, bare):
        for load in (
            lambda path: load_clip(model, str(path), sha256_of(path), tmp_path),
            lambda path: load_sam("mobile_sam", str(path), sha256_of(path), tmp_path),
            read_state,
        ):
            with pytest.raises(WeightsError, match="expected nothing but tensors") as error:
                load(path)
            assert "\n" not in str(error.value)
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK but no archive", b"\x80\x02."])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(content)

    with pytest.raises(WeightsError, match=r"weights\.bin: expected"):
        read_state(path)


def test_a_list_of_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "list.pt"
    torch.save([torch.zeros(1)], path)

    with pytest.raises(WeightsError, match="expected named tensors, got list"):
        read_state(path)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("ViT-L-14-363", ConfigError, "is unknown, expected one of open_clip's, such as ViT-L-14-336"),
        ("xlm-roberta-base-ViT-B-32", WeightsError, "expected CLIP's own text tower"),
        ("ViT-B-16-SigLIP", WeightsError, "expected CLIP's own text tower"),
        ("RN50", WeightsError, "expected a CLIP with a plain vision transformer .* got ModifiedResNet"),
        ("missing.json", ConfigError, "No such file"),
    ],
)
def test_a_clip_that_cannot_give_maps_is_refused(model: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_clip(model)


@pytest.mark.parametrize(
    "text", ['{"embed_dim": 8', "[]", '{"embed_dim": 8, "vision_cfg": {"depth": 2}, "text_cfg": {}}']
)
def test_a_clip_configuration_with_an_error_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "clip.json"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"clip\.json"):
        build_clip(str(path))


def test_sam_loads_frozen_and_a_missing_or_altered_file_is_refused(tmp_path: Path) -> None:
    path, digest = write_sam(tmp_path)

    sam = load_sam("mobile_sam", path, digest, tmp_path)

    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    with pytest.raises(WeightsError, match="does not exist"):
        load_sam("mobile_sam", str(tmp_path / "nothing.pt"), digest, tmp_path)
    with pytest.raises(WeightsError, match="expected sha256 1111"):
        load_sam("mobile_sam", path, "1" * 64, tmp_path)
    with pytest.raises(WeightsError, match="is not a sam_vit_b"):
        load_sam("sam_vit_b", path, digest, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam_vit_b", "sam_vit_l", "sam_vit_h"])
def test_segment_anythings_own_models_load_from_their_layout(tmp_path: Path, name: Any) -> None:
    from segment_anything import sam_model_registry

    source = sam_model_registry[name.removeprefix("sam_")](checkpoint=None)
    path = tmp_path / f"{name}.pth"
    torch.save(source.state_dict(), path)

    loaded = load_sam(name, str(path), sha256_of(path), tmp_path)

    assert all(torch.equal(source.state_dict()[key], value) for key, value in loaded.state_dict().items())
