"""CLIP check of the night's images, beside the champion's: only what stands out far from its night counts."""

from pathlib import Path

import numpy as np
import pandas as pd

from components.config.zero_shot import ZeroShotSettings
from components.core.contracts import RunRef
from components.core.errors import InputError
from components.zero_shot import clip_judge
from stlm.data.image_files import read_image
from stlm.errors import StlmError
from stlm.screening import MIN_IMAGES, outlier_limit

__all__ = ["clip_check"]

_CHUNK = 8


def clip_check(images: pd.DataFrame, folder: Path, run: RunRef, settings: ZeroShotSettings) -> pd.DataFrame:
    """Score images that have passed everything else by text prompts.

    Args:
        images: Columns ``lot`` and ``name``.
        folder: ``<folder>/<lot>/<name>`` are the files.
        run: Whose prompts.
        settings: Names CLIP's checkpoint, and the limit.

    Returns:
        Columns ``second_score``, ``second_limit`` and ``second_excess`` (positive above the limit); not a number where
        there are too few images to tell what is usual. Rows as in ``images``.

    Raises:
        InputError: The checkpoint or the prompts do not fit, or an image cannot be judged.
    """
    paths = [folder / lot / name for lot, name in zip(images["lot"], images["name"], strict=True)]
    scores = np.full(len(paths), np.nan)
    limit = np.nan
    if len(paths) >= MIN_IMAGES:
        judge = clip_judge(settings, run.key.product, Path(run.work_dir) / "checkpoints")
        found: list[float] = []
        try:
            for start in range(0, len(paths), _CHUNK):
                pictures = [read_image(path) for path in paths[start : start + _CHUNK]]
                found += [judgement.score for judgement in judge.judge(pictures)]
        except StlmError as error:
            raise InputError(f"second opinion: {error}") from error
        scores = np.asarray(found, dtype=np.float64)
        limit = outlier_limit(scores, settings.second_opinion_deviations)
    return pd.DataFrame(
        {"second_score": scores, "second_limit": limit, "second_excess": scores - limit}, index=images.index
    )
