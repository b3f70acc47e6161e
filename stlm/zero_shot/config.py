"""Every constant of CLIP-SAM that the public material leaves open, with our choice and the reason for it.

Only the standard library is imported here, so that a configuration file can hold these.
"""

from dataclasses import dataclass

__all__ = ["CascadeConfig", "ClipMapConfig"]


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipMapConfig:
    """How a CLIP model becomes an anomaly map."""

    blocks: tuple[int, ...] = (-1,)
    """Blocks of the image transformer whose patch tokens are compared with the texts; from 0, or from the end with -1.
    The last alone: no block before it was ever trained to lie in the text's space, and nothing is trained here."""
    value_attention: bool = True
    """Patch tokens by attention of the values among themselves, without the block's feed-forward layer (CLIP Surgery,
    Li et al. 2023). False takes the block's own output; trained for the class token alone, it is known to light up the
    background instead of the object."""
    temperature: float = 0.01
    """Divides the cosine similarities: the inverse of 100, at which OpenAI's training clamps the logit scale."""
    smoothing_cells: float = 1.0
    """Standard deviation of the Gaussian over the map, in patches: one odd token must not be a peak; 0 for none."""
    map_weight: float = 0.5
    """Weight of the map's peak in the image's score; the rest is the whole image against the texts. Half and half: a
    small defect shows in the map alone, a wrong part in the whole image alone."""

    def __post_init__(self) -> None:
        _check(bool(self.blocks), "blocks must name at least one block, got none")
        _check(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        _check(self.smoothing_cells >= 0, f"smoothing_cells must not be negative, got {self.smoothing_cells}")
        _check(0 <= self.map_weight <= 1, f"map_weight must be within [0, 1], got {self.map_weight}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeConfig:
    """How a map becomes point prompts and, through SAM's decoder, a mask.

    Lengths are shares of the image's longer side, so that they mean the same for every image and every SAM.
    """

    frame_px: int = 256
    """Longer side of the grid on which regions and points are found: SAM's own resolution for mask prompts."""
    region_level: float = 0.5
    """The region is where the map lies above this share of its way from its median to its peak. The paper's threshold
    is unknown. With STLM's maps, half way fits the true masks of ``mvtec_bottle`` best (IoU 0.57; 0.3: 0.50, 0.7: 0.41,
    Otsu's threshold: 0.47); on magnetic tiles, with an earlier recipe, all did alike
    (0.13). See ``tests/benchmarks/bench_masks.py``."""
    num_positives: int = 5
    """At most so many points inside the region; the paper's k is unknown, re-implementations take 3 to 5."""
    num_negatives: int = 5
    """At most so many points in the ring; as many as inside."""
    positive_spacing: float = 400 / 1024
    """Least distance between positive points: 400 px in the paper, read in SAM's frame of 1024 px. A second point then
    names a second defect, not the same peak again."""
    negative_spacing: float = 16 / 1024
    """Least distance between negative points: one cell of SAM's features; nearer ones would ask the same cell again."""
    ring_kernel: float = 25 / 1024
    """Diameter of the ellipse that dilates the region to its ring: 25 px in the paper, read in SAM's frame."""

    def __post_init__(self) -> None:
        _check(self.frame_px >= 16, f"frame_px must be at least 16, got {self.frame_px}")
        _check(0 < self.region_level < 1, f"region_level must be within (0, 1), got {self.region_level}")
        _check(self.num_positives >= 1, f"num_positives must be at least 1, got {self.num_positives}")
        _check(self.num_negatives >= 0, f"num_negatives must not be negative, got {self.num_negatives}")
        for name in ("positive_spacing", "negative_spacing", "ring_kernel"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"{name} must be within [0, 1], got {value}")
