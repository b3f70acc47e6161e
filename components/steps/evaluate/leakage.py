"""Leakage check: golden images among those that the candidate, or a model it descends from, may have learnt from."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from components.config import ValidateSettings
from components.core.contracts import RunRef
from components.core.errors import InputError
from components.image_index import accepted_index, golden_index
from components.steps.evaluate.held_out import TrainingImage
from stlm.data.facts import nearest_hashes, read_facts

__all__ = ["find_leakage"]

_MAX_NAMES = 20


def find_leakage(
    run: RunRef, golden: str, listed: Sequence[TrainingImage], settings: ValidateSettings
) -> dict[str, Any]:
    """Hold the golden set against this night's images and all that earlier nights accepted.

    Args:
        run: The night; only it and earlier ones count.
        golden: The golden set's folder.
        listed: What the candidate learnt from and what was held out, by content.
        settings: How near two pictures are the same.

    Returns:
        ``{"num_golden", "num_images", "max_bits", "same", "near"}``: the latter two list ``golden image = image``, at
        most 20 each, and ``num_same`` and ``num_near`` count them.

    Raises:
        InputError: A listed image cannot be read.
    """
    truth = golden_index(run, golden, max_pixels=settings.max_pixels)
    known = accepted_index(run)
    indexed = set(known["sha256"])
    learnt = _measured([image for image in listed if image.sha256 not in indexed], settings)
    known = pd.concat([known, learnt], ignore_index=True)
    names = dict(zip(known["sha256"], known["image"], strict=True))
    same = {str(row.image): str(names[row.sha256]) for row in truth.itertuples() if row.sha256 in names}
    near: dict[str, str] = {}
    unclear = truth[~truth["image"].isin(list(same))]
    if not known.empty and not unclear.empty:
        nearest, bits = nearest_hashes(list(unclear["hash"]), list(known["hash"]))
        near = {
            str(image): str(known["image"].iloc[index])
            for image, index, apart in zip(unclear["image"], nearest, bits, strict=True)
            if apart <= settings.near_duplicate_bits
        }
    return {
        "num_golden": len(truth),
        "num_images": len(known),
        "max_bits": settings.near_duplicate_bits,
        "num_same": len(same),
        "num_near": len(near),
        "same": [f"{image} = {other}" for image, other in same.items()][:_MAX_NAMES],
        "near": [f"{image} = {other}" for image, other in near.items()][:_MAX_NAMES],
    }


def _measured(images: Sequence[TrainingImage], settings: ValidateSettings) -> pd.DataFrame:
    """Hashes of images that no index knows, as after a move of the work folder."""
    facts = read_facts([image.path for image in images], max_pixels=settings.max_pixels)
    broken = [f"{i.path}: {f.error}" for i, f in zip(images, facts, strict=True) if not f.decodes]
    altered = [str(i.path) for i, f in zip(images, facts, strict=True) if f.decodes and f.sha256 != i.sha256]
    if broken or altered:
        raise InputError(f"images that were learnt from are missing or altered: {'; '.join(broken + altered)}")
    return pd.DataFrame(
        {
            "image": [f"{image.night}/{image.path.name}" for image in images],
            "sha256": [fact.sha256 for fact in facts],
            "hash": [fact.hash for fact in facts],
        },
        dtype=object,
    )
