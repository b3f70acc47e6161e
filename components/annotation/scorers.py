"""Scorers: the key's champion, or CLIP."""

import hashlib
from pathlib import Path
from typing import Literal

from components.adapters.mlflow.registry import ModelRegistry
from components.config import MlflowSettings
from components.config.zero_shot import ZeroShotSettings
from components.core.contracts import ModelKey, ModelRef
from components.core.errors import InputError
from components.zero_shot import MaskProposer, Scorer, champion_judge, clip_judge, mask_artist
from stlm.zero_shot.prompts import DEFAULT_PROMPTS

__all__ = ["MapOf", "find_champion", "open_judge", "texts_digest"]

MapOf = Literal["auto", "clip", "champion"]
"""``auto``: the champion where there is one, else CLIP."""


def find_champion(map_of: MapOf, key: ModelKey, work_dir: str, mlflow: MlflowSettings) -> ModelRef | None:
    """The champion that shall judge.

    Args:
        map_of: Who shall.
        key: Whose champion.
        work_dir: Below it lies the cache of packages that all steps share.
        mlflow: Where the registry is; not asked for CLIP.

    Returns:
        The version; ``None`` where CLIP shall judge.

    Raises:
        InputError: A champion is asked for, and there is none.
        TransientError: MLflow cannot be reached.
    """
    if map_of == "clip":
        return None
    champion = ModelRegistry(mlflow.tracking_uri, Path(work_dir) / "models").champion(key)
    if champion is None and map_of == "champion":
        raise InputError(f"{key.slug} has no champion whose map could be used; use --map clip")
    return champion


def texts_digest(settings: ZeroShotSettings, product: str) -> str:
    """What CLIP would be asked: sha256 of the product's prompt file, which people edit.

    Args:
        settings: Names the file.
        product: Whose prompts.

    Returns:
        Hex digest; that of nothing where the file is missing, which :func:`open_judge` refuses.
    """
    path = Path(settings.prompts[product]) if product in settings.prompts else DEFAULT_PROMPTS
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()


def open_judge(
    champion: ModelRef | None, settings: ZeroShotSettings, product: str, work_dir: str
) -> tuple[Scorer, MaskProposer]:
    """Load who judges, and who draws masks.

    Args:
        champion: Of :func:`find_champion`.
        settings: Names CLIP's and SAM's checkpoints.
        product: Whose prompts.
        work_dir: Below it downloads are kept.

    Returns:
        The judge and the artist.

    Raises:
        InputError: Nothing is configured that could judge, or a checkpoint does not fit.
    """
    cache = Path(work_dir) / "checkpoints"
    judge = clip_judge(settings, product, cache) if champion is None else champion_judge(champion)
    return judge, mask_artist(settings, cache)
