"""Pictures are opened by their content, of a few formats, and no program is ever started."""

import ast
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.local_stack.airflow_env import repository_root
from stlm.data.facts import read_facts
from stlm.data.image_files import FORMATS, read_image
from stlm.data.layout import read_golden_set
from stlm.errors import DataError

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
%%EndComments
0 0 32 32 rectfill
showpage
%%EOF
"""


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is there once somebody started ``gs``."""
    started, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin32c"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {started}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("gs") == str(folder / "gs")
    return started


@pytest.mark.parametrize("name", ["part.eps", "part.png"])
def test_postscript_is_refused_whatever_it_is_called_and_nothing_is_started(
    tmp_path: Path, ghostscript: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(EPS)

    with pytest.raises(DataError, match=rf"{name}: cannot be decoded \(no image of the formats BMP, JPEG, PNG, "):
        read_image(path)
    (facts,) = read_facts([path], max_pixels=1_000_000)

    assert not facts.decodes
    assert facts.error == "no image that can be read"
    assert not ghostscript.exists()


def test_postscript_in_a_golden_set_is_a_finding(tmp_path: Path, ghostscript: Path) -> None:
    for folder, content in (("good", None), ("scratch", EPS)):
        (tmp_path / "golden" / "test" / folder).mkdir(parents=True)
        path = tmp_path / "golden" / "test" / folder / "a.png"
        path.write_bytes(content) if content else Image.new("RGB", (32, 32)).save(path)
    (tmp_path / "golden" / "ground_truth" / "scratch").mkdir(parents=True)
    (tmp_path / "golden" / "ground_truth" / "scratch" / "a_mask.png").write_bytes(EPS)

    with pytest.raises(DataError, match=r"test/scratch/a.png cannot be read \(no image of the formats"):
        read_golden_set(tmp_path / "golden")
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_photographs_of_the_known_formats_are_read(tmp_path: Path, kind: str) -> None:
    pixels = np.zeros((16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "part", format=kind)
    assert read_image(tmp_path / "part").shape == (16, 24, 3)


def test_every_picture_is_opened_in_one_place() -> None:
    openers = [
        path.relative_to(repository_root()).as_posix()
        for folder in ("components", "dags", "stlm")
        for path in (repository_root() / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "open"
        and isinstance(node.value, ast.Name) and node.value.id == "Image"
    ]  # fmt: skip
    assert openers == ["stlm/data/image_files.py"]
