"""Duplicates: within the night, of what earlier nights accepted, and of the golden set (leakage)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stlm.data.facts import hash_words, nearest_hashes

__all__ = ["find_duplicates"]

_PLACES = ("night", "history", "golden")


def find_duplicates(
    images: pd.DataFrame, history: pd.DataFrame, golden: pd.DataFrame, *, max_bits: int
) -> pd.DataFrame:
    """Say of whom each image is a double; the first of two in the night stays.

    Args:
        images: Columns ``image``, ``sha256`` and ``hash``, in the order in which they count.
        history: The same columns: earlier nights.
        golden: The same columns: the golden set.
        max_bits: Hashes this far apart are still near duplicates.

    Returns:
        Columns ``same_in_*`` and ``near_in_*`` for night, history and golden, with the double's name or null; rows
        as in ``images``. An exact double is not called a near one as well.
    """
    found = pd.DataFrame(
        {f"{how}_in_{place}": pd.Series(None, index=images.index, dtype=object)
         for how in ("same", "near") for place in _PLACES}
    )  # fmt: skip
    for place, known in (("history", history), ("golden", golden)):
        names = dict(zip(known["sha256"], known["image"], strict=True))
        found[f"same_in_{place}"] = _objects(images, [names.get(sha256) for sha256 in images["sha256"]])
        unclear = images[found[f"same_in_{place}"].isna()]
        found.loc[unclear.index, f"near_in_{place}"] = _objects(unclear, _nearest(unclear, known, max_bits))
    same, near = _in_night(images, max_bits)
    found["same_in_night"], found["near_in_night"] = _objects(images, same), _objects(images, near)
    return found


def _in_night(images: pd.DataFrame, max_bits: int) -> tuple[list[str | None], list[str | None]]:
    """Of which image before it each one is an exact and a near duplicate; near ones are sought among those that stay.

    Every image meets all that stayed, but in one array operation: 5,000 images take a second.
    """
    words = hash_words(list(images["hash"]))
    stayed = np.empty_like(words)
    names: list[str] = []
    first: dict[str, str] = {}
    same: list[str | None] = [None] * len(images)
    near: list[str | None] = [None] * len(images)
    for row, (name, sha256) in enumerate(zip(images["image"].astype(str), images["sha256"].astype(str), strict=True)):
        twin = first.setdefault(sha256, name)
        if twin != name:
            same[row] = twin
            continue
        if names:
            bits = np.bitwise_count(stayed[: len(names)] ^ words[row]).sum(axis=1, dtype=np.int64)
            closest = int(bits.argmin())
            if bits[closest] <= max_bits:
                near[row] = names[closest]
                continue
        stayed[len(names)] = words[row]
        names.append(name)
    return same, near


def _objects(images: pd.DataFrame, values: Sequence[str | None]) -> pd.Series:
    return pd.Series(list(values), index=images.index, dtype=object)


def _nearest(images: pd.DataFrame, known: pd.DataFrame, max_bits: int) -> list[str | None]:
    if images.empty or known.empty:
        return [None] * len(images)
    nearest, bits = nearest_hashes(list(images["hash"]), list(known["hash"]))
    return [
        str(known["image"].iloc[index]) if apart <= max_bits else None
        for index, apart in zip(nearest, bits, strict=True)
    ]
