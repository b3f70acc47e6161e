"""Zero-shot models, as the configuration says: CLIP or a champion for scores, SAM or the bare map for masks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from components.config.zero_shot import ZeroShotSettings
from components.core.contracts import ModelRef
from components.core.errors import InputError
from stlm.errors import StlmError
from stlm.nn.teachers import load_sam
from stlm.serving.predictor import OnnxPredictor
from stlm.zero_shot.cascade import Refinement, refine_mask, region_mask
from stlm.zero_shot.clip_encoder import load_clip
from stlm.zero_shot.clip_map import ClipMapper
from stlm.zero_shot.prompts import DEFAULT_PROMPTS, load_prompts
from stlm.zero_shot.segmenter import SamSegmenter

__all__ = ["MaskProposer", "Score", "Scorer", "champion_judge", "clip_judge", "mask_artist"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Score:
    """What a judge makes of one image."""

    score: float
    """Larger is more anomalous."""
    anomaly_map: NDArray[np.float32]
    """``(h, w)`` float32 over the whole image."""
    remark: str = ""
    """What it looks like, where the judge has words for it."""


class Scorer(Protocol):
    """Scores images and says where."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def threshold(self) -> float | None:
        """Scores above it are anomalous, where that is known."""
        ...

    @property
    def min_side_px(self) -> int:
        """No image may be smaller."""
        ...

    def judge(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        """Judge ``(H, W, 3)`` uint8 RGB images of any sizes, in order."""
        ...


class _ClipJudge:
    threshold: float | None = None

    def __init__(self, mapper: ClipMapper, name: str, min_side_px: int) -> None:
        self._mapper = mapper
        self.name = name
        self.min_side_px = min_side_px

    def judge(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        words = len(self._mapper.classes) > 1
        return [
            Score(score=found.score, anomaly_map=found.anomaly_map, remark=found.likeliest if words else "")
            for found in self._mapper.judge(images)
        ]


class _ChampionJudge:
    min_side_px = 16

    def __init__(self, predictor: OnnxPredictor, name: str) -> None:
        self._predictor = predictor
        self.name = name

    @property
    def threshold(self) -> float | None:
        return self._predictor.threshold

    def judge(self, images: Sequence[NDArray[np.uint8]]) -> list[Score]:
        return [Score(score=found.score, anomaly_map=found.anomaly_map) for found in self._predictor.predict(images)]


def clip_judge(settings: ZeroShotSettings, product: str, cache_dir: Path) -> Scorer:
    """CLIP with a product's prompts.

    Args:
        settings: Names the checkpoint; a URL is fetched once into ``cache_dir``, and the log says so.
        product: Whose prompts.
        cache_dir: Where downloads are kept.

    Returns:
        The judge.

    Raises:
        InputError: No CLIP is configured, or checkpoint or prompts do not fit.
    """
    if not settings.clip_checkpoint:
        raise InputError(
            "no CLIP is configured: set zero_shot.clip_checkpoint (a path or URL) and zero_shot.clip_sha256; "
            "a model key with a champion does without (--map champion)"
        )
    try:
        prompts = load_prompts(Path(settings.prompts[product]) if product in settings.prompts else DEFAULT_PROMPTS)
        _say_fetch(settings.clip_checkpoint, cache_dir)
        encoder = load_clip(settings.clip_model, settings.clip_checkpoint, settings.clip_sha256, cache_dir)
        mapper = ClipMapper(encoder=encoder.to(_device(settings)), prompts=prompts, config=settings.clip)
    except StlmError as error:
        raise InputError(f"zero_shot: {error}") from error
    if product not in settings.prompts:
        logger.warning("no prompts for %s in zero_shot.prompts: asking for a good or damaged 'object'", product)
    return _ClipJudge(
        mapper, f"CLIP ({Path(settings.clip_model).stem}, prompts for {prompts.object!r})", encoder.patch_px
    )


def champion_judge(champion: ModelRef) -> Scorer:
    """A champion's own scores and maps.

    Args:
        champion: The version.

    Returns:
        The judge.

    Raises:
        InputError: The package cannot be loaded.
    """
    try:
        return _ChampionJudge(OnnxPredictor(champion.package_dir), f"champion version {champion.version}")
    except StlmError as error:
        raise InputError(f"champion version {champion.version}: {error}") from error


class MaskProposer:
    """Draws masks from maps: through SAM where there is one, else the thresholded map.

    Args:
        segmenter: SAM, or None.
        settings: The constants.
    """

    def __init__(self, segmenter: SamSegmenter | None, settings: ZeroShotSettings) -> None:
        self._segmenter = segmenter
        self._settings = settings
        self.name = (
            f"{settings.sam_model}, cascaded prompts" if segmenter else "the thresholded map (no SAM configured)"
        )

    def draw(self, image: NDArray[np.uint8], anomaly_map: NDArray[np.float32]) -> Refinement:
        """The mask of an ``(H, W, 3)`` uint8 RGB image, from an ``(h, w)`` map over the whole of it."""
        cascade = self._settings.cascade
        if self._segmenter is None:
            return region_mask(anomaly_map, image.shape[:2], cascade)
        return refine_mask(anomaly_map, self._segmenter, self._segmenter.embed(image), cascade)


def mask_artist(settings: ZeroShotSettings, cache_dir: Path) -> MaskProposer:
    """SAM as configured.

    Args:
        settings: Names the checkpoint; empty for none.
        cache_dir: Where downloads are kept.

    Returns:
        The artist.

    Raises:
        InputError: The checkpoint does not fit.
    """
    if not settings.sam_checkpoint:
        return MaskProposer(None, settings)
    try:
        _say_fetch(settings.sam_checkpoint, cache_dir)
        sam = load_sam(settings.sam_model, settings.sam_checkpoint, settings.sam_sha256, cache_dir)
    except StlmError as error:
        raise InputError(f"zero_shot: {error}") from error
    return MaskProposer(SamSegmenter(sam=sam.to(_device(settings))), settings)


def _device(settings: ZeroShotSettings) -> str:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("zero_shot.device is cuda, but torch sees no GPU")
    return "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"


def _say_fetch(checkpoint: str, cache_dir: Path) -> None:
    if "://" in checkpoint:
        logger.info("checkpoint %s is kept in %s, fetched if it is not there", checkpoint, cache_dir)
