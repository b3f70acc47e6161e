"""Scoring images, choosing those for pixel metrics, drawing synthetic defects, comparing two models."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stlm.comparison import MeasuredModel, Resamples, compare, decision_flips, score_shift, strata_of
from stlm.data.layout import read_golden_set
from stlm.data.pixel_set import golden_pixels, masks_at
from stlm.data.probes import PROBE_KINDS, draw_probe, draw_probes
from stlm.errors import DataError
from stlm.evaluation import score_images, shrink_maps
from stlm.metrics import ImageMeasurement, PixelMeasurement, auroc, pixel_statistics, resample_counts
from stlm.models.outputs import AnomalyOutput


class Brightness:
    """A detector that anyone can check by eye: bright is anomalous."""

    image_size = (16, 24)

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        maps = images.mean(dim=1)
        return AnomalyOutput(score=maps.amax(dim=(1, 2)), anomaly_map=maps)


def write_image(path, level, *, size=(40, 60), spot=None):
    pixels = np.full((*size, 3), level, dtype=np.uint8)
    if spot is not None:
        y, x = spot
        pixels[y : y + 10, x : x + 10] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_mask(path, *, size=(40, 60), spot, side=10):
    mask = np.zeros(size, dtype=np.uint8)
    mask[spot[0] : spot[0] + side, spot[1] : spot[1] + side] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


@pytest.fixture
def golden(tmp_path):
    """Six good images, three with a bright spot and its mask."""
    for i in range(6):
        write_image(tmp_path / "test/good" / f"{i}.png", 80 + i)
    for i in range(3):
        write_image(tmp_path / "test/spot" / f"{i}.png", 80 + i, spot=(5 * i, 8 * i))
        write_mask(tmp_path / "ground_truth/spot" / f"{i}_mask.png", spot=(5 * i, 8 * i))
    return tmp_path


def test_scores_and_maps_come_in_the_order_of_the_images_whatever_their_sizes(tmp_path):
    for i, size in enumerate([(40, 60), (20, 20), (100, 30), (16, 24), (50, 50)]):
        write_image(tmp_path / f"{i}.png", 10 * (i + 1), size=size)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    model = Brightness()
    found = score_images(model, paths, batch_size=2)
    assert model.batches == [2, 2, 1]
    assert found.scores == pytest.approx(np.arange(1, 6) * 10 / 255, abs=1e-5)
    assert found.maps.shape == (5, 16, 24)
    assert (found.scores.dtype, found.maps.dtype) == (np.float32, np.float32)
    assert found.maps.mean(axis=(1, 2)) == pytest.approx(found.scores, abs=1e-5)


def test_the_batch_size_does_not_change_the_results(golden):
    paths = sorted(golden.glob("test/*/*.png"))
    one, many = (score_images(Brightness(), paths, batch_size=size) for size in (1, 7))
    assert (one.scores == many.scores).all()
    assert (one.maps == many.maps).all()


def test_decoded_images_count_as_files_do(golden):
    path = golden / "test/spot/1.png"
    pixels = np.asarray(Image.open(path))
    assert score_images(Brightness(), [pixels]).scores == score_images(Brightness(), [path]).scores


def test_a_file_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        score_images(Brightness(), [tmp_path / "bad.png"])


def test_no_image_is_an_error():
    with pytest.raises(DataError):
        score_images(Brightness(), [])


def test_nothing_is_drawn_where_nobody_watches(golden, capsys):
    score_images(Brightness(), [golden / "test/good/0.png"])
    assert capsys.readouterr() == ("", "")


def test_small_maps_are_averages():
    maps = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    assert shrink_maps(maps, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    assert np.isfinite(shrink_maps(np.full((1, 4, 4), 1e9, dtype=np.float32), 2)).all()


def test_golden_masks_are_used_where_there_are_some(golden):
    pixels = golden_pixels(read_golden_set(golden), num_synthetic=4, map_sizes=[(16, 24)])
    assert not pixels.synthetic
    assert [image.image_class for image in pixels.images] == ["good"] * 6 + ["spot"] * 3
    masks = masks_at(pixels, (16, 24))
    assert masks.any(axis=(1, 2)).tolist() == [False] * 6 + [True] * 3
    model = Brightness()
    maps = score_images(model, [item.path for item in read_golden_set(golden).items]).maps
    assert auroc(maps, masks) > 0.95


def test_a_mask_that_vanishes_at_a_models_size_is_counted_and_left_out(golden):
    write_mask(golden / "ground_truth/spot/2_mask.png", spot=(10, 16), side=1)
    golden_set = read_golden_set(golden)
    assert golden_pixels(golden_set, num_synthetic=0, map_sizes=[(40, 60)]).num_lost_masks == 0
    pixels = golden_pixels(golden_set, num_synthetic=0, map_sizes=[(40, 60), (4, 6)])
    assert pixels.num_lost_masks == 1
    assert len(pixels.images) == 8


def without_masks(golden):
    for path in sorted((golden / "ground_truth").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return read_golden_set(golden)


def test_without_masks_synthetic_defects_are_drawn_on_golden_normals_only(golden):
    golden_set = without_masks(golden)
    pixels = golden_pixels(golden_set, num_synthetic=4, map_sizes=[(16, 24)])
    assert pixels.synthetic
    assert [image.golden_row for image in pixels.images] == list(range(6))
    altered = [image for image in pixels.images if image.altered is not None]
    assert len(altered) == 4
    assert {image.image_class for image in altered} <= set(PROBE_KINDS)
    assert all(image.mask_at((16, 24)).any() for image in altered)


def test_every_night_sees_the_same_synthetic_defects(golden):
    golden_set = without_masks(golden)
    first, second = (golden_pixels(golden_set, num_synthetic=3, map_sizes=[(16, 24)]) for _ in range(2))
    assert [image.golden_row for image in first.images] == [image.golden_row for image in second.images]
    for one, other in zip(first.images, second.images, strict=True):
        assert (one.altered is None) == (other.altered is None)
        assert one.altered is None or (one.altered == other.altered).all()


def test_more_synthetic_defects_than_normals_take_every_normal(golden):
    pixels = golden_pixels(without_masks(golden), num_synthetic=99, map_sizes=[(16, 24)])
    assert sum(image.altered is not None for image in pixels.images) + pixels.num_lost_masks == 6


@pytest.mark.parametrize("kind", PROBE_KINDS)
@pytest.mark.parametrize("level", [5, 128, 250])
@pytest.mark.parametrize("size", [(300, 300), (64, 64), (120, 500)])
def test_a_probe_can_be_seen_where_its_mask_says_and_nowhere_else(kind, level, size):
    image = np.full((*size, 3), level, dtype=np.uint8)
    for seed in range(5):
        probe = draw_probe(image, kind=kind, rng=np.random.default_rng(seed))
        change = np.abs(probe.image.astype(int) - level).max(axis=2)
        assert probe.mask.any()
        assert probe.mask.mean() < 0.25
        assert change[probe.mask].mean() > 20
        assert change[~probe.mask].mean() < 2
        assert probe.image.shape == image.shape
        assert probe.image.dtype == np.uint8
    assert (image == level).all()


def test_a_probe_depends_on_its_seed_and_place_only():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, size=(48, 48, 3), dtype=np.uint8) for _ in range(4)]
    whole, part = draw_probes(images, seed=5), draw_probes(images[:2], seed=5)
    assert all((a.image == b.image).all() for a, b in zip(whole, part, strict=False))
    digest = hashlib.sha256(b"".join(probe.image.tobytes() for probe in draw_probes(images, seed=5)))
    assert digest.digest() == hashlib.sha256(b"".join(probe.image.tobytes() for probe in whole)).digest()
    assert any((a.mask != b.mask).any() for a, b in zip(whole, draw_probes(images, seed=6), strict=True))


@pytest.mark.parametrize("image", [np.zeros((48, 48), np.uint8), np.zeros((8, 48, 3), np.uint8), np.zeros((48, 48, 3))])
def test_a_probe_needs_an_image(image):
    with pytest.raises(ValueError, match="expected"):
        draw_probe(image, kind="stain", rng=np.random.default_rng(0))


def measured(scores, labels, threshold=0.5):
    images = ImageMeasurement(
        scores=np.array(scores, dtype=np.float32), labels=np.array(labels, dtype=bool), threshold=threshold, recall=0.9
    )
    return MeasuredModel(images=images, pixels=PixelMeasurement(statistics=None, reason="no masks"))


def test_decisions_are_compared_at_each_models_own_threshold():
    now = measured([0.1, 0.6, 0.9, 0.2], [0, 0, 1, 1]).images
    before = measured([1.0, 1.0, 1.0, 3.0], [0, 0, 1, 1], threshold=2.0).images
    assert decision_flips(now, before) == {
        "num_flips": 3,
        "to_anomalous": {"good": 1, "defective": 1},
        "to_good": {"good": 0, "defective": 1},
        "rows": [1, 2, 3],
    }


def test_the_shift_of_the_scores_is_told_apart_for_good_and_defective():
    now, before = measured([0.2, 0.4, 0.9], [0, 0, 1]).images, measured([0.1, 0.2, 0.9], [0, 0, 1]).images
    shift = score_shift(now, before)
    assert shift["good"]["median_difference"] == pytest.approx(0.15)
    assert shift["defective"]["median_difference"] == pytest.approx(0)
    only_good = measured([0.2, 0.4], [0, 0]).images
    assert score_shift(only_good, only_good)["defective"]["median_candidate"] is None


def test_strata_are_classes_against_all_good_and_named_parts():
    found = strata_of(["good", "good", "crack", "stain"], ["a", "b", "a", "b"], ["good", "scratch", "crack"], [0, 1, 2])
    assert [stratum.name for stratum in found] == [
        "defect:crack",
        "defect:stain",
        "stratum:a",
        "stratum:b",
        "synthetic:scratch",
    ]
    assert found[0].images.tolist() == [True, True, True, False]
    assert found[2].pixels.tolist() == [True, False, True]
    assert found[4].images is None


def test_a_stratum_is_measured_on_its_own_images_with_the_same_resamples():
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(30, bool), np.ones(30, bool)]
    defects = ["good"] * 30 + ["easy"] * 15 + ["hard"] * 15
    scores = rng.normal(size=60) + np.r_[np.zeros(30), np.full(15, 4.0), np.full(15, 0.1)]
    masks = np.zeros((4, 8, 8), bool)
    masks[:2, :3, :3] = True
    maps = rng.random((4, 8, 8), dtype=np.float32) + masks
    model = MeasuredModel(
        images=ImageMeasurement(scores=scores, labels=labels, threshold=1.0, recall=0.9),
        pixels=PixelMeasurement(statistics=pixel_statistics(maps, masks)),
    )
    classes = ["easy", "easy", "good", "good"]
    resamples = Resamples(
        images=resample_counts(defects, num_samples=50, seed=0),
        pixels=resample_counts(classes, num_samples=50, seed=0),
        confidence=0.9,
    )
    easy, hard = strata_of(defects, ["all"] * 60, classes, [30, 31, 0, 1])
    whole = compare(model, model, resamples)
    assert whole["candidate"]["image_auroc"]["value"] == pytest.approx(auroc(scores, labels))
    assert whole["difference"]["pro"] == {"value": 0.0, "interval": (0.0, 0.0), "reason": ""}
    part = compare(model, None, resamples, stratum=hard)
    members = np.array(defects) != "easy"
    assert part["candidate"]["image_auroc"]["value"] == pytest.approx(auroc(scores[members], labels[members]))
    assert part["champion"] is None
    assert part["candidate"]["pro"]["value"] is None
    assert "no defect pixel" in part["candidate"]["pro"]["reason"]
    assert compare(model, None, resamples, stratum=easy)["candidate"]["pro"]["value"] is not None


@pytest.mark.gpu
def test_a_model_on_the_gpu_is_fed_there(golden):
    class OnGpu(Brightness):
        def __call__(self, images):
            assert images.is_cuda
            return super().__call__(images)

    paths = sorted(golden.glob("test/*/*.png"))
    found = score_images(OnGpu(), paths, device=torch.device("cuda"))
    assert found.scores == pytest.approx(score_images(Brightness(), paths).scores, abs=1e-5)


@pytest.mark.parametrize("name", ["mtd/exp1", "mtd/exp5", "mvtec_bottle"])
def test_real_masks_survive_at_the_size_of_a_real_model(name):
    root = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / name
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    golden = read_golden_set(root)
    pixels = golden_pixels(golden, num_synthetic=0, map_sizes=[(256, 256)])
    assert (pixels.synthetic, pixels.num_lost_masks, len(pixels.images)) == (False, 0, len(golden.items))
    masks = masks_at(pixels, (256, 256))
    assert masks.any(axis=(1, 2)).tolist() == [item.defect != "good" for item in golden.items]
    rng = np.random.default_rng(0)
    perfect = pixel_statistics(masks + 0.1 * rng.random(masks.shape, dtype=np.float32), masks)
    assert (perfect.exact.auroc, perfect.exact.pro) == pytest.approx((1, 1))
