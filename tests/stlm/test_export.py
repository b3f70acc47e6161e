"""The exported file is the model, from raw pixels on."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from stlm.data.image_files import read_image
from stlm.data.transforms import preprocess
from stlm.errors import ExportError
from stlm.export.onnx import _resize_weights, export_onnx, parity
from stlm.models.registry import build_model
from stlm.nn.onnx_session import open_session
from stlm.recipes import recipe
from tests.helpers.model_package import tiny_model

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def random_images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(tiny_model(), path)
    return path


@settings(max_examples=60, deadline=None)
@given(num_in=st.integers(1, 400), num_out=st.integers(1, 300))
def test_resize_weights_are_those_of_torchs_antialiased_resize(num_in: int, num_out: int) -> None:
    line = torch.rand((1, 1, 1, num_in), generator=torch.Generator().manual_seed(num_in))

    expected = F.interpolate(line, size=(1, num_out), mode="bilinear", antialias=True, align_corners=False)

    torch.testing.assert_close(line @ _resize_weights(num_in, num_out).T, expected, atol=1e-5, rtol=0.0)


def test_halving_averages_neighbours_with_the_triangle_filter() -> None:
    # Centre of the second output pixel lies at 3; inputs at 1.5, 2.5, 3.5, 4.5 are 1.5 and 0.5 away, support 2.
    weights = _resize_weights(6, 3)[1]

    torch.testing.assert_close(weights, torch.tensor([0.0, 0.125, 0.375, 0.375, 0.125, 0.0]))


def test_exported_file_follows_the_model_at_any_size(exported: Path) -> None:
    images = random_images((64, 64), (33, 47), (300, 200), (64, 640), (1, 1), (127, 128))

    report = parity(tiny_model(), exported, images, threshold=0.0)

    assert report.num_images == 6
    assert report.max_score_difference < 1e-4
    assert report.max_map_difference < 1e-4
    assert report.num_decision_flips == 0
    assert report.ms_per_image > 0


def test_exported_file_follows_the_model_at_any_batch_size(exported: Path) -> None:
    session = open_session(exported, num_threads=1)
    for batch in (1, 2, 5):
        images = np.stack(random_images(*[(50, 70)] * batch))
        with torch.no_grad():
            expected = tiny_model()(preprocess(torch.from_numpy(images), (64, 64)))
        score, anomaly_map = session.run(None, {"images": images})
        np.testing.assert_allclose(score, expected.score.numpy(), atol=1e-4)
        np.testing.assert_allclose(anomaly_map, expected.anomaly_map.numpy(), atol=1e-4)
        assert anomaly_map.shape == (batch, 64, 64)


@pytest.mark.parametrize("data", ["mtd/exp1", "mvtec_bottle"])
def test_embedded_recipe_agrees_on_real_photographs(tmp_path: Path, data: str) -> None:
    files = sorted((DATA / data / "test").glob("*/*.png")) + sorted((DATA / data / "test").glob("*/*.jpg"))
    if not files:
        pytest.skip(f"{DATA / data} is not there")
    model = build_model(recipe("lite"), seed=0)
    images = [read_image(path) for path in files[:: max(1, len(files) // 5)]]

    export_onnx(model, tmp_path / "model.onnx")
    report = parity(model, tmp_path / "model.onnx", images, threshold=0.0)

    assert report.max_score_difference <= 1e-4
    assert report.num_decision_flips == 0


def test_same_model_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    export_onnx(tiny_model(), tmp_path / "again.onnx")

    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_export_is_silent_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in tiny_model().state_dict().items()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(tiny_model(), tmp_path / "model.onnx")

    assert not tiny_model().training
    assert all(torch.equal(value, before[name]) for name, value in tiny_model().state_dict().items())


def test_parity_sees_another_model_and_its_flipped_decisions(exported: Path) -> None:
    images = random_images((64, 64), (80, 90))
    other = tiny_model(1)
    with torch.no_grad():
        scores = [float(other(preprocess(torch.from_numpy(i[None]), (64, 64))).score) for i in images]
        own = [float(tiny_model()(preprocess(torch.from_numpy(i[None]), (64, 64))).score) for i in images]
    threshold = (scores[0] + own[0]) / 2

    report = parity(other, exported, images, threshold=threshold)

    assert report.max_score_difference == pytest.approx(
        max(abs(a - b) for a, b in zip(scores, own, strict=True)), rel=1e-3
    )
    flips = sum((a > threshold) != (b > threshold) for a, b in zip(scores, own, strict=True))
    assert flips >= 1
    assert report.num_decision_flips == flips


class Counting(torch.nn.Module):
    """Bakes the batch size of the example into the graph, which tracing cannot see."""

    image_size = (16, 16)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = images.mean(dim=1)
        return maps.amax(dim=(1, 2)) * int(images.shape[0]), maps


def test_a_graph_that_froze_the_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model.onnx: (scores|fails)"):
        export_onnx(Counting(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def _noisy_where_large(maps: torch.Tensor) -> torch.Tensor:
    if maps.shape[0] > 1000:
        maps = maps + torch.randn_like(maps)
    return maps


class Drawing(torch.nn.Module):
    """Draws where no comparison of scores ever comes."""

    image_size = (16, 16)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = _noisy_where_large(images.mean(dim=1))
        return maps.amax(dim=(1, 2)), maps


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_model_that_draws_random_numbers_is_refused_wherever_it_does(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"draws random numbers \(RandomNormalLike\)"):
        export_onnx(Drawing(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


class Unexportable(torch.nn.Module):
    image_size = (16, 16)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = F.interpolate(images, size=(8, 8), mode="bilinear", antialias=True).mean(dim=1)
        return maps.amax(dim=(1, 2)), maps


def test_a_model_that_cannot_be_translated_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot be exported.*upsample_bilinear2d_aa"):
        export_onnx(Unexportable(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_parity_without_images_is_an_error(exported: Path) -> None:
    with pytest.raises(ExportError, match="no images"):
        parity(tiny_model(), exported, [], threshold=0.0)
