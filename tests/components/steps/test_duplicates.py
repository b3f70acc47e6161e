"""Duplicates of a night: the same as by asking every image of every other, and fast."""

import time

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from components.steps.validate.duplicates import find_duplicates
from stlm.data.facts import nearest_hashes

NOTHING = pd.DataFrame(columns=["image", "sha256", "hash"], dtype=str)


def table_of(hashes: NDArray[np.uint8], sha256: list[str]) -> pd.DataFrame:
    names = [f"lot/{number:05}.png" for number in range(len(hashes))]
    return pd.DataFrame({"image": names, "sha256": sha256, "hash": [row.tobytes().hex() for row in hashes]})


def one_by_one(images: pd.DataFrame, max_bits: int) -> tuple[list[str | None], list[str | None]]:
    """The rule, asked image by image: the first of two stays, and only what stayed has near duplicates."""
    first: dict[str, str] = {}
    stayed: list[int] = []
    same: list[str | None] = []
    near: list[str | None] = []
    for row, image in enumerate(images.itertuples(index=False)):
        twin = first.setdefault(str(image.sha256), str(image.image))
        exact, double = (twin if twin != image.image else None), None
        if exact is None and stayed:
            nearest, bits = nearest_hashes([str(image.hash)], list(images["hash"].iloc[stayed]))
            double = str(images["image"].iloc[stayed[nearest[0]]]) if bits[0] <= max_bits else None
        if exact is None and double is None:
            stayed.append(row)
        same.append(exact)
        near.append(double)
    return same, near


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_bits", [0, 3, 14])
def test_the_same_doubles_are_found_as_by_asking_one_by_one(seed: int, max_bits: int) -> None:
    rng = np.random.default_rng(seed)
    families = rng.integers(0, 256, size=(12, 32), dtype=np.uint8)
    hashes = families[rng.integers(0, 12, size=150)]
    # Up to 16 bits off, so that chains of neighbours lie on both sides of the limit; ties are common.
    for row in hashes:
        for bit in rng.integers(0, 256, size=rng.integers(0, 17)):
            row[bit // 8] ^= 1 << (bit % 8)
    images = table_of(hashes, [f"{number:064x}" for number in rng.integers(0, 120, size=150)])
    images = images.sample(frac=1.0, random_state=seed)  # labels are not positions

    found = find_duplicates(images, NOTHING, NOTHING, max_bits=max_bits)

    same, near = one_by_one(images, max_bits)
    assert found["same_in_night"].tolist() == same
    assert found["near_in_night"].tolist() == near
    assert list(found.index) == list(images.index)
    assert any(same)
    assert any(near) or max_bits == 0


def test_no_image_has_no_double() -> None:
    assert len(find_duplicates(NOTHING, NOTHING, NOTHING, max_bits=14)) == 0


def test_five_thousand_images_take_no_more_than_a_second_or_two() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, size=(5000, 32), dtype=np.uint8)
    images = table_of(hashes, [f"{number:064x}" for number in range(5000)])

    started = time.process_time()
    found = find_duplicates(images, NOTHING, NOTHING, max_bits=14)

    assert time.process_time() - started < 2
    assert found["near_in_night"].isna().all()
