"""Arrays on disk: equal ones give equal files, and every damage is told in one way."""

from pathlib import Path

import numpy as np
import pytest

from components.core.npz import read_arrays, write_arrays


def test_equal_arrays_give_equal_bytes_and_come_back(tmp_path: Path) -> None:
    arrays = {"scores": np.arange(300, dtype=np.float32), "nights": np.array(["2026-11-01", "2026-11-02"])}
    for name in ("a", "b"):
        write_arrays(tmp_path / f"{name}.npz", arrays)

    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = read_arrays(tmp_path / "a.npz")
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in arrays.items()
    }


def test_no_damaged_byte_and_no_lost_end_escapes_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    write_arrays(path, {"scores": np.arange(300, dtype=np.float32), "nights": np.array(["2026-11-01"] * 40)})
    whole = path.read_bytes()
    flipped = (whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :] for i in range(len(whole)))
    refused = 0
    for content in (*flipped, *(whole[:end] for end in range(0, len(whole), 13))):
        path.write_bytes(content)
        try:
            read_arrays(path)  # some bytes, such as those of a date, carry nothing
        except ValueError:
            refused += 1
    assert refused > 0.9 * len(whole)


def test_a_missing_file_and_a_file_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "arrays.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"single\.npy is damaged"):
        read_arrays(tmp_path / "single.npy")
