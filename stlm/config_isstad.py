"""Recipes of ISSTAD (arXiv 2303.17354): network, images, self-corruption, and the two stages of training.

Each known defect of the publication's code is corrected by default, and an option here brings it back. Two have none:
the model is that of the last step, because training never sees test images, and masks are paired with images by name.
"""

from dataclasses import dataclass
from typing import Any, Literal

from stlm.config import Recipe, RecipeConfig, check

__all__ = [
    "AnyRecipe",
    "IsstadConfig",
    "IsstadDataConfig",
    "IsstadRecipe",
    "IsstadStageConfig",
    "RepairConfig",
    "ShapesConfig",
    "read_recipe",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class IsstadConfig:
    """The network, and how its two outputs become a score and a map."""

    patch_size: int
    dim: int
    """Width of the encoder."""
    depth: int
    num_heads: int
    decoder_dim: int
    decoder_heads: int
    first_decoder_depth: int
    """Blocks of the decoder in the first stage."""
    decoder_depth: int
    """Blocks of the second stage's decoder, of which the first come from the first stage."""
    start: Literal["random", "mae_checkpoint"] = "random"
    """What a first night starts from; ``mae_checkpoint`` is a file in the layout of ``mae_visualize_vit_large``."""
    normalisation: Literal["imagenet", "half", "published"] = "imagenet"
    """Of the pixels: ImageNet's, mean and deviation 0.5, or, as published, the first in stage one and then the
    second."""
    unshuffle: bool = True
    """Patches reach the second stage's decoder in their own order. As published they come in a random one, at test
    too: such a model gives other scores every time and cannot be exported."""
    smoothing_px: float = 4.0
    """Deviation of the Gaussian over probability, residual and map."""
    map_scale: Literal["held_out", "per_image"] = "held_out"
    """What the residual is divided by in the map: one figure for all images, from held-out normals, or, as published,
    each image's own range. That lifts the largest residual of a flawless image to that of a defect, so that values of
    two images cannot be compared; pixel metrics over a set, and thresholds, do just that."""
    score_top_share: float = 1.0
    """The image score is the mean over this share of the positions, the largest; published: all."""

    def __post_init__(self) -> None:
        for dim, heads in ((self.dim, self.num_heads), (self.decoder_dim, self.decoder_heads)):
            check(dim % 4 == 0 and dim % heads == 0, f"width {dim} must be a multiple of 4 and of its {heads} heads")
        check(
            0 < self.first_decoder_depth <= self.decoder_depth,
            f"first_decoder_depth must be in [1, {self.decoder_depth}], got {self.first_decoder_depth}",
        )
        check(0 < self.score_top_share <= 1, f"score_top_share must be in (0, 1], got {self.score_top_share}")
        check(self.smoothing_px > 0, f"smoothing_px must be positive, got {self.smoothing_px}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesConfig:
    """Shapes inside which an image is replaced by a changed copy of itself."""

    probability: float = 2 / 3
    """Share of training images that are corrupted at all."""
    max_shapes: int = 3
    """Published: 3, but 1 for two kinds of product."""
    sides: tuple[float, float] = (0.04, 0.35)
    """Least and largest side of a shape, as a share of the region's; the publication leaves it open."""
    confine: bool = False
    """Keep shapes to the box around the largest region that Otsu's threshold finds. Published: on for most products;
    off here, for a surface that fills the image has no such region."""
    padding: float = 0.1
    """That box is widened by this share of its sides."""
    min_change: float = 0.02
    """A copy that differs less than this in the mean, such as the grey version of a grey image, is drawn again; 0
    takes it, as published, and teaches the classifier that a flawless region is anomalous."""

    def __post_init__(self) -> None:
        check(0 <= self.probability <= 1, f"probability must be in [0, 1], got {self.probability}")
        check(self.max_shapes > 0, f"max_shapes must be positive, got {self.max_shapes}")
        check(0 < self.sides[0] <= self.sides[1] <= 1, f"sides must rise within (0, 1], got {self.sides}")


@dataclass(frozen=True, kw_only=True, slots=True)
class IsstadDataConfig:
    """Images."""

    image_size: tuple[int, int]
    """``(height, width)`` of the network's input."""
    exposure: float = 0.0
    """Every image is scaled to this mean grey level; 0 leaves it. An extension."""
    brightness: float = 0.0
    """In stage two image and target are scaled by one factor uniform in 1 +- this. An extension."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the image's area that stage one sees, resized."""
    flip: bool = True
    """Whether stage one mirrors half of the images."""
    shapes: ShapesConfig = ShapesConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairConfig:
    """Loss of the second stage."""

    normal_weight: float = 3.0
    anomalous_weight: float = 1.0
    mse_weight: float = 0.5
    ssim_weight: float = 0.1
    ssim_window: int = 11
    clean_target: bool = True
    """Reconstruct the image before corruption; False, as in the published code, the corrupted one."""
    clear_gradients: bool = True
    """Before every step; False, as in the published code, once a pass, so that gradients pile up."""

    def __post_init__(self) -> None:
        check(self.ssim_window % 2 == 1, f"ssim_window must be odd, got {self.ssim_window}")


@dataclass(frozen=True, kw_only=True, slots=True)
class IsstadStageConfig:
    """One of the two stages of a night."""

    name: Literal["masked_autoencoder", "repair"]
    passes: float
    """How often each new image is seen on the first night."""
    update_passes: float
    """The same on later nights, when the champion is carried on."""
    batch_size: int
    lr: float
    min_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    decay_vectors: bool = False
    """Whether biases and norms decay too."""
    warmup_share: float = 0.1
    """Share of the stage in which the rate rises in a line."""
    cosine_passes: float = 0.0
    """The rate falls along a cosine of this many passes, and rises again, and so on; 0: one fall to the stage's end."""
    update_lr_scale: float = 1.0
    """Factor on the learning rate on later nights."""
    mask_ratio: float = 0.75
    """Share of hidden patches in stage one."""

    def __post_init__(self) -> None:
        check(self.passes >= 0 and self.update_passes >= 0, f"stage {self.name}: passes must not be negative")
        check(self.batch_size > 0, f"stage {self.name}: batch_size must be positive, got {self.batch_size}")
        check(0 < self.mask_ratio < 1, f"stage {self.name}: mask_ratio must be in (0, 1), got {self.mask_ratio}")


@dataclass(frozen=True, kw_only=True, slots=True)
class IsstadRecipe(Recipe):
    """A named, complete choice; the counterpart of ``RecipeConfig``."""

    kind: Literal["isstad"] = "isstad"
    name: str
    model: IsstadConfig
    data: IsstadDataConfig
    stages: tuple[IsstadStageConfig, ...]
    repair: RepairConfig = RepairConfig()
    replay_share: float = 0.5
    """Share of replayed images in a batch, once there are earlier nights."""

    def __post_init__(self) -> None:
        size = self.model.patch_size
        check(
            all(side % size == 0 for side in self.data.image_size),
            f"image_size {self.data.image_size} must be a multiple of patch_size {size}",
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` of the network's input."""
        return self.data.image_size


AnyRecipe = RecipeConfig | IsstadRecipe


def read_recipe(value: Any, *, where: str = "recipe") -> AnyRecipe:
    """Read a recipe of either system; without a field ``kind`` it is STLM's, as in every package before ISSTAD.

    Args:
        value: What ``json.loads`` returned.
        where: Prefix for messages, such as a file name.

    Returns:
        The recipe.

    Raises:
        ConfigError: A field is unknown, missing or out of range; the message names it.
    """
    if isinstance(value, dict) and "kind" in value:
        return IsstadRecipe.from_json(value, where=where)
    return RecipeConfig.from_json(value, where=where)
