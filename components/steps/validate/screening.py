"""Screening for defective parts among the normals: by the champion or, without one, as outliers of their night."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from components.config import ValidateSettings
from components.core.contracts import ModelRef
from components.core.errors import InputError
from stlm.errors import WeightsError
from stlm.nn.lite0 import build_lite0_trunk
from stlm.screening import MIN_IMAGES, outlier_limit, outlier_scores, patch_features
from stlm.serving.predictor import TorchPredictor, predict_files

__all__ = ["screen"]

logger = logging.getLogger(__name__)

_TRUNK_SIZE = (256, 256)


def screen(images: pd.DataFrame, folder: Path, champion: ModelRef | None, settings: ValidateSettings) -> pd.DataFrame:
    """Score images that have passed everything else.

    An image must be anomalous to the champion *and* stand out from its own night: the first alone would lose the
    champion's share of false alarms every night, and more as the light drifts.

    Args:
        images: Columns ``lot`` and ``name``.
        folder: ``<folder>/<lot>/<name>`` are the files.
        champion: The model that screens; ``None`` before there is one.
        settings: The limits.

    Returns:
        Columns ``screened_by`` (``champion``, ``outliers``, ``outliers (drift)`` or ``nothing: too few images``),
        ``screen_score``, ``screen_limit``, ``champion_excess`` and ``outlier_excess`` (positive where above the
        limit) and ``screen_clear`` (true where twice as far from the night's median as the limit); rows as in
        ``images``.

    Raises:
        InputError: The champion's package, or the trunk's weights, cannot be loaded.
    """
    paths = [folder / lot / name for lot, name in zip(images["lot"], images["name"], strict=True)]
    if len(paths) < MIN_IMAGES:
        logger.warning("screening: %d images are too few to tell an outlier", len(paths))
        nothing = np.full(len(paths), np.nan)
        return _table(images, "nothing: too few images", nothing, np.nan)
    try:
        with _one_thread():
            return _screen(images, paths, champion, settings)
    except WeightsError as error:
        raise InputError(f"screening: {error}") from error


def _screen(
    images: pd.DataFrame, paths: list[Path], champion: ModelRef | None, settings: ValidateSettings
) -> pd.DataFrame:
    if champion is None:
        return _outliers(images, paths, settings, "outliers")
    predictor = TorchPredictor(champion.package_dir)
    scores = np.array([found.score for found in predict_files(predictor, paths)], dtype=np.float64)
    share = float(np.mean(scores > predictor.threshold))
    if share > settings.screen_drift_share:
        logger.warning("screening: champion alarms on %.0f %% of the night: drift, not defects", 100 * share)
        return _outliers(images, paths, settings, "outliers (drift)")
    limit = max(predictor.threshold, outlier_limit(scores, settings.screen_champion_deviations))
    return _table(images, "champion", scores, limit)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # Small networks gain little from a second thread and lose much where another process wants the processor: 240
    # images took 7 s of processor time on one thread, and 26 s on two of a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _outliers(images: pd.DataFrame, paths: list[Path], settings: ValidateSettings, who: str) -> pd.DataFrame:
    scores = outlier_scores(patch_features(build_lite0_trunk(), paths, image_size=_TRUNK_SIZE))
    return _table(images, who, scores, outlier_limit(scores, settings.screen_deviations))


def _table(images: pd.DataFrame, who: str, scores: NDArray[np.float64], limit: float) -> pd.DataFrame:
    nothing = np.full(len(scores), np.nan)
    excess = scores - limit
    return pd.DataFrame(
        {
            "screened_by": who,
            "screen_score": scores,
            "screen_limit": limit,
            "champion_excess": excess if who == "champion" else nothing,
            "outlier_excess": excess if who.startswith("outliers") else nothing,
            "screen_clear": excess > limit - (np.median(scores) if len(scores) else np.nan),
        },
        index=images.index,
    )
