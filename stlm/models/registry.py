"""How a detector is built from a recipe, written to a folder, and read back: safetensors and JSON, never pickle."""

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import nn

from stlm.config import RecipeConfig
from stlm.config_isstad import AnyRecipe, IsstadRecipe, read_recipe
from stlm.errors import ConfigError, WeightsError
from stlm.models.isstad import Isstad
from stlm.models.two_stream import TwoStream
from stlm.nn.aggregation import FeatureAggregation
from stlm.nn.distribution import PatchDistribution
from stlm.nn.encoders import PlainProjection, TinyViTStudent, TokenDenoiser, TrunkEmbedding
from stlm.nn.lite0 import LITE0_CHANNELS, Lite0Trunk
from stlm.nn.mask_decoder import SharedDecoder
from stlm.nn.memory import NormalMemory
from stlm.nn.teachers import RandomTrunk, load_sam, shared_decoder_from_sam

__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "AnomalyModel",
    "build_model",
    "carry_on",
    "load_model",
    "save_model",
    "start_students_from_mobile_sam",
]

AnomalyModel = TwoStream | Isstad
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_STRIDES = {"lite0": {2: 4, 4: 8, 7: 16, 10: 16, 15: 32}, "random": {1: 4, 2: 8, 3: 16}}
"""Teacher -> blocks that may be tapped, and their strides."""
_CORE_TAPS = {"lite0": (4, 7, 10), "random": (1, 2)}
"""Teacher -> blocks that the students see."""


@overload
def build_model(config: RecipeConfig, *, seed: int, pretrained: bool = True) -> TwoStream: ...
@overload
def build_model(config: IsstadRecipe, *, seed: int, pretrained: bool = True) -> Isstad: ...
@overload
def build_model(config: AnyRecipe, *, seed: int, pretrained: bool = True) -> AnomalyModel: ...
def build_model(config: AnyRecipe, *, seed: int, pretrained: bool = True) -> AnomalyModel:
    """Build an untrained detector.

    Args:
        config: The recipe.
        seed: Decides every initial weight.
        pretrained: Give the trunk its ImageNet weights; False where a state is loaded anyway.

    Returns:
        The model in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, IsstadRecipe):
            return Isstad(config=config).eval()
        return _build(config, pretrained=pretrained).eval()


def _build(config: RecipeConfig, *, pretrained: bool) -> TwoStream:
    model = config.model
    decoder = SharedDecoder(
        embedding_dim=model.embedding_dim,
        depth=model.decoder_depth,
        num_heads=model.decoder_heads,
        mlp_dim=model.decoder_mlp_dim,
        num_tokens=model.decoder_tokens,
    )
    aggregation = FeatureAggregation(
        in_channels=2 * model.embedding_dim,
        width=model.aggregation.width,
        dilation=model.aggregation.dilation,
        dilated_branches=model.aggregation.dilated_branches,
    )
    memory = None
    if model.memory_size:
        memory = NormalMemory(size=model.memory_size, embedding_dim=model.embedding_dim)
    distribution = None
    trunk: nn.Module | None = None
    embedding: TrunkEmbedding | None = None
    teacher_decoder: SharedDecoder | None = None
    plain: nn.Module
    denoising: nn.Module
    if model.student == "tiny_vit_5m":
        plain, denoising = (TinyViTStudent(embedding_dim=model.embedding_dim) for _ in range(2))
    else:
        core, extra = _CORE_TAPS.get(model.teacher, ()), model.distribution_taps
        trunk, channels = _trunk(model.teacher, (*core, *extra), pretrained=pretrained)
        height, width = config.image_size
        strides = [_STRIDES[model.teacher][tap] for tap in (*core, *extra)]
        all_channels, all_grids = channels, [(height // stride, width // stride) for stride in strides]
        channels, grids = all_channels[: len(core)], all_grids[: len(core)]
        embedding = TrunkEmbedding(
            channels=channels, embedding_dim=model.embedding_dim, extra_channels=all_channels[len(core) :]
        )
        teacher_decoder = copy.deepcopy(decoder)
        plain = PlainProjection(channels=channels, embedding_dim=model.embedding_dim)
        denoising = TokenDenoiser(
            channels=channels,
            grids=grids,
            embedding_dim=model.embedding_dim,
            dim=model.denoiser_dim,
            depth=model.denoiser_depth,
            bottleneck=model.denoiser_bottleneck,
            dropout=model.denoiser_dropout,
        )
        if {"distribution", "deep_distribution"} & {*model.maps, *model.score_maps}:
            distribution = PatchDistribution(
                channels=all_channels,
                grids=all_grids,
                shrinkage=model.distribution_shrinkage,
                max_count=model.distribution_max_count,
            )
    return TwoStream(
        config=config,
        taps=(_CORE_TAPS.get(model.teacher, ()), model.distribution_taps),
        trunk=trunk,
        embedding=embedding,
        teacher_decoder=teacher_decoder,
        plain=plain,
        denoising=denoising,
        decoder=decoder,
        aggregation=aggregation,
        distribution=distribution,
        memory=memory,
    )


def _trunk(teacher: str, taps: Sequence[int], *, pretrained: bool) -> tuple[nn.Module, list[int]]:
    if teacher not in _STRIDES:
        raise WeightsError(f"teacher {teacher!r} has no trunk to share; use student 'tiny_vit_5m' with it")
    unknown = sorted(set(taps) - set(_STRIDES[teacher]))
    if unknown:
        raise ConfigError(f"distribution_taps: teacher {teacher!r} has no block {unknown}")
    if teacher == "random":
        return RandomTrunk(), [RandomTrunk.channels[tap] for tap in taps]
    return Lite0Trunk(blocks=taps, pretrained=pretrained), [LITE0_CHANNELS[tap] for tap in taps]


def save_model(model: AnomalyModel, folder: Path) -> str:
    """Write weights and recipe.

    Args:
        model: The detector.
        folder: Made if missing; both files are replaced.

    Returns:
        Hex sha256 of the weights file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    content = save(state)  # not save_file(): it says of a full disk only in its own words
    (folder / WEIGHTS_NAME).write_bytes(content)
    config = json.dumps(model.config.to_json(), indent=2, sort_keys=True)
    (folder / CONFIG_NAME).write_text(config + "\n", encoding="utf-8")
    return hashlib.sha256(content).hexdigest()


def load_model(folder: Path, *, device: str = "cpu") -> AnomalyModel:
    """Read a detector back.

    Args:
        folder: Holds ``model.safetensors`` and ``config.json``.
        device: Where to put it.

    Returns:
        The model in evaluation mode.

    Raises:
        WeightsError: A file is missing or damaged, or the two do not fit.
        ConfigError: The recipe is not valid.
    """
    folder = Path(folder)
    try:
        raw = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        config = read_recipe(raw, where=str(folder / CONFIG_NAME))
        state = load_file(folder / WEIGHTS_NAME)
        model = build_model(config, seed=0, pretrained=False)
        model.load_state_dict(state)
    except (OSError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{folder}: cannot be read ({error})") from error
    except RuntimeError as error:
        raise WeightsError(f"{folder}: weights and configuration do not fit ({error})") from error
    return model.to(device).eval()


def start_students_from_mobile_sam(model: TwoStream, checkpoint: str, sha256: str, cache_dir: Path) -> None:
    """Give both students MobileSAM's image encoder, and the shared decoder MobileSAM's transformer.

    Args:
        model: Fresh, with students ``tiny_vit_5m``; changed in place.
        checkpoint: Path or URL, in MobileSAM's official layout.
        sha256: Digest it must have.
        cache_dir: Where downloads are kept.

    Raises:
        WeightsError: The file is missing, altered, or no MobileSAM.
    """
    if not checkpoint:
        raise WeightsError("student_init 'mobile_sam': set fine_tune.student_checkpoint and fine_tune.student_sha256")
    sam = load_sam("mobile_sam", checkpoint, sha256, cache_dir)
    for student in (model.plain, model.denoising):
        student.load_state_dict(sam.image_encoder.state_dict())
    model.decoder.load_state_dict(shared_decoder_from_sam(sam).state_dict())


def carry_on(model: AnomalyModel, wanted: AnyRecipe, *, where: str) -> AnomalyModel:
    """Give a trained model the recipe of its next night.

    Args:
        model: Changed in place.
        wanted: May differ in everything but the network and its input's size.
        where: The model's configuration file, for messages.

    Returns:
        The model.

    Raises:
        ConfigError: The recipe is of another network.
    """
    if (model.config.model, model.image_size) == (wanted.model, wanted.image_size):
        if isinstance(model, TwoStream) and isinstance(wanted, RecipeConfig):
            model.config = wanted
            return model
        if isinstance(model, Isstad) and isinstance(wanted, IsstadRecipe):
            model.config = wanted
            return model
    raise ConfigError(
        f"recipe {wanted.name!r} is another network than the champion's ({where}); "
        "retire the champion or use a new model key"
    )
