"""Settings of what works without training: CLIP's maps, SAM's masks, and what they are used for.

Only the standard library is imported here.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from stlm.zero_shot.config import CascadeConfig, ClipMapConfig

__all__ = ["ZeroShotSettings"]

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotSettings:
    """Which checkpoints there are; one that is not named is not used, and none is ever looked for."""

    clip_model: str = "ViT-L-14-336-quickgelu"
    """A model of open_clip, or a ``.json`` file with such a configuration. OpenAI's weights want ``-quickgelu``."""
    clip_checkpoint: str = ""
    """Path or URL of its weights in open_clip's layout; empty: no CLIP."""
    clip_sha256: str = ""
    sam_model: Literal["sam_vit_h", "sam_vit_l", "sam_vit_b", "mobile_sam"] = "mobile_sam"
    """MobileSAM, because its encoder is the one that a CPU can bear."""
    sam_checkpoint: str = ""
    """Path or URL of its weights; empty: no SAM, and a mask is the thresholded map."""
    sam_sha256: str = ""
    prompts: dict[str, str] = field(default_factory=dict)
    """Product -> prompt file (TOML or JSON); other products have ``stlm/zero_shot/default_prompts.toml``."""
    intake: str = ""
    """Where lots of products without a model land, to be looked at before their first night; laid out as the landing
    zone; a folder or ``s3://``. Read by the DAG ``screen_landing``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_masks: int = 24
    """Of the most suspicious images of a screening so many get a mask."""
    second_opinion: bool = False
    """Whether validation asks CLIP as well, beside the champion or the outliers of the night."""
    second_opinion_deviations: float = 3.0
    """So many robust standard deviations above the night's median: CLIP's opinion then quarantines. Only the clearest
    cases, because how often it is wrong on your parts is not known."""
    clip: ClipMapConfig = field(default_factory=ClipMapConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)

    def __post_init__(self) -> None:
        for name in ("clip", "sam"):
            checkpoint, digest = getattr(self, f"{name}_checkpoint"), getattr(self, f"{name}_sha256")
            if checkpoint and not _SHA256.fullmatch(digest):
                raise ValueError(f"{name}_checkpoint needs {name}_sha256, 64 hex digits, got {digest!r}")
        if self.second_opinion and not self.clip_checkpoint:
            raise ValueError("second_opinion = true needs clip_checkpoint, which is empty")
        if self.second_opinion_deviations <= 0:
            raise ValueError(f"second_opinion_deviations must be positive, got {self.second_opinion_deviations}")
        if self.max_masks < 0:
            raise ValueError(f"max_masks must not be negative, got {self.max_masks}")
