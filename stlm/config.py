"""Recipes: everything that decides what a model is and how it is trained, frozen and checked."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from stlm.errors import ConfigError
from stlm.strict_json import from_json, to_json

__all__ = [
    "AggregationConfig",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "Recipe",
    "RecipeConfig",
    "StageConfig",
    "check",
]

MapName = Literal["aggregation", "two_stream", "distribution", "deep_distribution", "memory"]


def check(ok: bool, message: str) -> None:
    """Raise ``ConfigError`` with the message, unless ``ok``."""
    if not ok:
        raise ConfigError(message)


class Recipe:
    """Mix-in with nothing but the wire form; the dataclasses below say what is in it."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        value: dict[str, Any] = to_json(self)
        return value

    @classmethod
    def from_json(cls, value: Any, *, where: str = "recipe") -> Self:
        """Strict inverse of :meth:`to_json`.

        Args:
            value: What ``json.loads`` returned.
            where: Prefix for messages, such as a file name.

        Returns:
            The recipe.

        Raises:
            ConfigError: A field is unknown, missing or out of range; the message names it.
        """
        try:
            return from_json(cls, value, where=where)
        except ValueError as error:
            raise ConfigError(str(error)) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregationConfig:
    """Feature aggregation: residual blocks, spatial pyramid, head."""

    width: int = 128
    dilation: int = 3
    dilated_branches: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network."""

    teacher: Literal["lite0", "random", "sam_vit_h", "sam_vit_l", "sam_vit_b", "mobile_sam"]
    """Where the targets come from; ``random`` is for tests."""
    student: Literal["token_denoiser", "tiny_vit_5m"]
    """``token_denoiser``: timm blocks on the frozen trunk's features; ``tiny_vit_5m``: the published encoder."""
    student_init: Literal["random", "mobile_sam"] = "random"
    """Where ``tiny_vit_5m`` students start; the paper leaves it open, its code starts them from random weights."""
    embedding_dim: int
    """Channels of both feature levels."""
    decoder_heads: int = 8
    decoder_depth: int = 2
    decoder_mlp_dim: int = 2048
    decoder_tokens: int = 5
    denoiser_dim: int = 160
    denoiser_depth: int = 3
    denoiser_bottleneck: int = 32
    """Width through which the denoising student must squeeze every token; it cannot copy what it has not learnt."""
    denoiser_dropout: float = 0.2
    aggregation: AggregationConfig = AggregationConfig()
    maps: tuple[MapName, ...] = ("aggregation",)
    """Which maps make the anomaly map; several are standardised on normals and averaged."""
    map_weights: tuple[float, ...] = ()
    """Weight of each map in the average; empty is equal weights."""
    score_maps: tuple[MapName, ...] = ()
    """Which maps make the image score, with the same weights; empty is the same as for the anomaly map."""
    distribution_taps: tuple[int, ...] = ()
    """Further blocks of the trunk for the Gaussians: finer ones sharpen ``distribution``, coarser ones make
    ``deep_distribution``, which judges the image as a whole."""
    memory_size: int = 0
    """Teacher embeddings of normals kept as a constant-size coreset; an extension, 0 in the published design."""
    distribution_shrinkage: float = 0.1
    """Where the maps name ``distribution``: weight of the covariance averaged over all positions; an extension."""
    distribution_mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """How distances of several levels are averaged; the geometric mean is high only where they agree."""
    distribution_max_count: int = 1000
    """Earlier normals weigh as much as this many at most, so that lasting drift is learnt in bounded time."""
    smoothing: int = 0
    """Side of the mean filter over each map, in positions; 0 is none."""
    score_top_k: int = 100
    """The image score is the mean of the top k values of the anomaly map, taken at ``score_size``."""
    score_size: tuple[int, int] = (1024, 1024)

    def __post_init__(self) -> None:
        check(
            self.student_init == "random" or (self.student == "tiny_vit_5m" and self.embedding_dim == 256),
            "student_init 'mobile_sam' is for student 'tiny_vit_5m' with embedding_dim 256",
        )
        check(self.embedding_dim % self.decoder_heads == 0, "embedding_dim must be a multiple of decoder_heads")
        check(bool(self.maps), "maps: at least one map is needed")
        check(not self.map_weights or len(self.map_weights) == len(self.maps), "map_weights: one weight per map")
        check(all(w > 0 for w in self.map_weights), "map_weights must be positive")
        check(0 <= self.distribution_shrinkage <= 1, "distribution_shrinkage must be in [0, 1]")
        check(self.distribution_max_count > 0, "distribution_max_count must be positive")
        check(not self.score_maps or len(self.score_maps) == len(self.maps), "score_maps: as many as maps, or none")
        check("memory" not in self.maps or self.memory_size > 0, "maps names 'memory', but memory_size is 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Images and pseudo-anomalies."""

    image_size: tuple[int, int]
    """``(height, width)`` of the network's input."""
    texture_probability: float = 1.0
    """Share of pseudo-anomalies filled with textures; the rest with transformed parts of normals themselves."""
    texture_jitter: float = 0.0
    """1 scales textures by 0.4 to 1.6 and shifts them by up to 0.3; 0, as published, takes them as they are."""
    clean_probability: float = 0.5
    """Share of training samples left clean, with an empty mask."""
    max_beta: float = 0.8
    """Blend factor is uniform in [0, max_beta): how much of the normal shines through."""
    brightness: float = 0.0
    """Normals are scaled by a factor uniform in 1 +- this, and shifted by up to a quarter of it."""
    exposure: float = 0.0
    """Every image is scaled to this mean grey level before the network sees it; 0 leaves it. An extension."""
    max_rotation_deg: float = 0.0
    quarter_turns: bool = False
    """Normals are also turned by a random multiple of 90 degrees."""
    corruptions_per_image: int = 0
    """Pre-made corruptions whose trunk features are cached; 0 corrupts live."""
    replay_corruptions_per_image: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimisers of the streams (Adam family) and of the aggregation."""

    streams_lr: float
    streams_betas: tuple[float, float] = (0.5, 0.999)
    streams_weight_decay: float = 0.0
    aggregation: Literal["sgd", "adamw"] = "sgd"
    aggregation_lr: float = 0.1
    aggregation_head_lr: float = 0.01
    schedule: Literal["constant", "one_cycle"] = "constant"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """One of the two self-supervised stages of a night."""

    name: Literal["masked_reconstruction", "pixel"]
    passes: float
    """How often each new image is seen on the first night."""
    update_passes: float
    """The same on later nights, when the champion is carried on."""
    batch_size: int
    optim: OptimConfig
    update_lr_scale: float = 1.0
    """Factor on all learning rates on later nights."""
    mask_ratio: float = 0.0
    """Share of hidden cells, for masked reconstruction."""
    distillation: float = 0.0
    """On later nights: weight of the denoising student's distance to the champion's; 0 is off."""

    def __post_init__(self) -> None:
        check(self.passes >= 0 and self.update_passes >= 0, f"stage {self.name}: passes must not be negative")
        check(self.batch_size > 0, f"stage {self.name}: batch_size must be positive, got {self.batch_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig(Recipe):
    """A named, complete choice."""

    name: str
    model: ModelConfig
    data: DataConfig
    stages: tuple[StageConfig, ...]
    replay_share: float = 0.5
    """Share of replayed images in a batch, once there are earlier nights."""
    champion_share: float = 0.0
    """After a later night, weights are this share of the champion's and the rest of the trained ones; 0 is off."""

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` of the network's input."""
        return self.data.image_size
