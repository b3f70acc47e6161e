"""The bootstrap over images: what it draws, how well the histograms stand in for the pixels, what it covers."""

import numpy as np
import pytest
from scipy import stats

from stlm.errors import MetricUndefinedError
from stlm.metrics import (
    ImageMeasurement,
    PixelMeasurement,
    PixelStatistics,
    difference,
    estimate,
    one_sided_bounds,
    paired_bounds,
    percentile_interval,
    pixel_metrics,
    pixel_statistics,
    resample_counts,
    units_of,
)

FIELDS = ("auroc", "average_precision", "pro")


def random_pixels(*, num_images=12, side=40, seed=0, rectified=False):
    rng = np.random.default_rng(seed)
    masks = np.zeros((num_images, side, side), dtype=bool)
    for image in range(num_images // 2):
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, side - 8, size=2)
            masks[image, y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = True
    maps = rng.normal(size=masks.shape) + masks * rng.normal(1.5, 0.5, size=(num_images, 1, 1))
    if rectified:
        maps = np.maximum(maps, 0) ** 3
    return maps.astype(np.float32), masks


def test_each_stratum_keeps_its_number_of_images():
    strata = ["good"] * 5 + ["crack"] * 3 + ["stain"]
    counts = resample_counts(strata, num_samples=200, seed=1)
    assert counts.shape == (200, 9)
    assert (counts[:, :5].sum(axis=1) == 5).all()
    assert (counts[:, 5:8].sum(axis=1) == 3).all()
    assert (counts[:, 8] == 1).all()
    assert counts[:, :5].mean(axis=0) == pytest.approx(np.ones(5), abs=0.2)


def test_the_same_seed_draws_the_same_resamples():
    strata = ["good", "bad"] * 10
    first, second, other = (resample_counts(strata, num_samples=20, seed=seed) for seed in (7, 7, 8))
    assert (first == second).all()
    assert (first != other).any()


def test_images_of_one_lot_are_drawn_together():
    units = units_of(["all"] * 14, ["good"] * 8 + ["crack"] * 6, ["a", "a", "b", "b", "c", "d", "e", "", *"fghijj"])
    counts = resample_counts(units.groups, num_samples=50, seed=1, units=units.numbers)
    assert (counts[:, [0, 2, 12]] == counts[:, [1, 3, 13]]).all()
    assert (counts[:, 0] != counts[:, 2]).any()
    good = counts[:, [0, 2, 4, 5, 6, 7]].sum(axis=1)
    assert (good == 6).all()  # six units, whatever their size
    assert units.smaller_class(np.arange(14) >= 8) == 5


def test_a_lot_of_several_classes_is_one_unit_and_both_classes_are_always_drawn():
    units = units_of(["all"] * 12, ["good", "crack"] * 6, [f"lot{i // 2}" for i in range(12)])
    assert set(units.groups) == {"all/crack+all/good"}
    counts = resample_counts(units.groups, num_samples=50, seed=1, units=units.numbers)
    assert (counts[:, ::2] == counts[:, 1::2]).all()
    assert (counts.sum(axis=1) == 12).all()


def test_classes_of_few_images_are_drawn_with_their_like():
    units = units_of(["all"] * 12, ["good"] * 6 + ["a", "b", "c", "d", "e", "f"])
    counts = resample_counts(units.groups, num_samples=100, seed=1, units=units.numbers)
    # Each alone would be the same in every resample, and none of it would seem uncertain.
    assert counts[:, 6:].std(axis=0).min() > 0.5
    assert (counts[:, 6:].sum(axis=1) == 6).all()


def test_bounds_of_a_difference_are_never_narrower_than_students():
    samples = np.random.default_rng(0).normal(0.01, 0.005, size=20_000)
    found = paired_bounds(0.01, samples, alpha=0.05, num_units=30)
    error = 0.005 * np.sqrt(30 / 29)
    assert found.standard_error == pytest.approx(error, rel=0.02)
    assert found.low == pytest.approx(0.01 - stats.t.ppf(0.95, 29) * error, abs=1e-4)
    assert found.high == pytest.approx(0.01 + stats.t.ppf(0.95, 29) * error, abs=1e-4)
    skewed = np.r_[np.full(900, 0.0), np.full(100, -1.0)]
    assert paired_bounds(0.0, skewed, alpha=0.05, num_units=1000).low == -1.0


def test_the_smallest_difference_seen_is_found_in_four_of_five_samples():
    detectable = paired_bounds(0.0, np.random.default_rng(0).normal(size=50_000), alpha=0.05, num_units=5000).detectable
    found = np.random.default_rng(1).normal(detectable, 1.0, size=20_000) > stats.norm.ppf(0.95)
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_one_unit_shows_nothing():
    found = paired_bounds(0.0, np.zeros(10), alpha=0.05, num_units=1)
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_bounds_are_quantiles_of_the_samples():
    samples = np.arange(101.0)
    assert percentile_interval(samples, confidence=0.9) == pytest.approx((5, 95))
    assert one_sided_bounds(samples, alpha=0.05) == pytest.approx((5, 95))


@pytest.mark.parametrize("rectified", [False, True])
def test_point_estimates_are_exact(rectified):
    maps, masks = random_pixels(rectified=rectified)
    assert pixel_statistics(maps, masks).exact == pixel_metrics(maps, masks)


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("metric", FIELDS)
def test_a_resample_from_histograms_is_close_to_one_of_the_pixels(metric, rectified):
    maps, masks = random_pixels(rectified=rectified)
    statistics = pixel_statistics(maps, masks)
    counts = resample_counts(["bad"] * 6 + ["good"] * 6, num_samples=25, seed=2)
    rows = [np.repeat(np.arange(12), drawn) for drawn in counts]
    exact = np.array([getattr(pixel_metrics(maps[row], masks[row]), metric) for row in rows])
    # The spread of these samples is ten times as large or more.
    assert np.abs(statistics.samples(metric, counts) - exact).max() < 4e-3
    assert exact.std() > 0.03


def test_the_image_itself_as_a_resample_gives_the_exact_figure():
    maps, masks = random_pixels()
    statistics = pixel_statistics(maps, masks)
    for metric in FIELDS:
        assert statistics.samples(metric, np.ones((1, 12)))[0] == pytest.approx(getattr(statistics.exact, metric))


def test_a_constant_map_can_be_resampled():
    _, masks = random_pixels()
    statistics = pixel_statistics(np.zeros(masks.shape, dtype=np.float32), masks)
    counts = resample_counts(["bad"] * 6 + ["good"] * 6, num_samples=10, seed=2)
    assert statistics.samples("auroc", counts) == pytest.approx(np.full(10, 0.5))
    assert statistics.samples("pro", counts) == pytest.approx(np.full(10, 0.15))


def test_a_subset_is_measured_by_its_histograms():
    maps, masks = random_pixels()
    members = np.arange(12) % 2 == 0
    part = pixel_statistics(maps, masks).subset(members)
    expected = pixel_metrics(maps[members], masks[members])
    for metric in FIELDS:
        assert getattr(part.exact, metric) == pytest.approx(getattr(expected, metric), abs=4e-3)
    with pytest.raises(MetricUndefinedError):
        pixel_statistics(maps, masks).subset(np.arange(12) >= 6)


def test_statistics_survive_the_way_through_plain_arrays():
    maps, masks = random_pixels()
    before = pixel_statistics(maps, masks, fpr_limit=0.2)
    after = PixelStatistics.from_arrays(before.to_arrays())
    counts = np.ones((1, 12))
    assert after.exact == before.exact
    assert after.fpr_limit == 0.2
    assert after.samples("pro", counts) == pytest.approx(before.samples("pro", counts))


def binormal(rng, num_good, num_bad, *, shift=2.66, rho=0.0):
    labels = np.r_[np.zeros(num_good, dtype=bool), np.ones(num_bad, dtype=bool)]
    common = rng.normal(size=labels.size)
    pair = [np.sqrt(rho) * common + np.sqrt(1 - rho) * rng.normal(size=labels.size) + shift * labels for _ in range(2)]
    return labels, pair[0], pair[1]


def measured(scores, labels):
    return ImageMeasurement(scores=scores, labels=labels, threshold=1.645, recall=0.9)


def test_the_interval_of_the_auroc_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(11)
    truth = 0.85  # Phi(shift / sqrt 2)
    covered = 0
    for trial in range(150):
        labels, scores, _ = binormal(rng, 60, 60, shift=1.4657)
        counts = resample_counts([str(label) for label in labels], num_samples=300, seed=trial)
        low, high = estimate(measured(scores, labels), "image_auroc", counts, confidence=0.9).interval
        covered += low <= truth <= high
    assert 0.82 <= covered / 150 <= 0.96


def test_pairing_narrows_the_interval_of_a_difference():
    labels, ours, theirs = binormal(np.random.default_rng(1), 150, 150, rho=0.85)
    counts = resample_counts([str(label) for label in labels], num_samples=500, seed=0)
    paired = difference(measured(ours, labels), measured(theirs, labels), "image_auroc", counts, confidence=0.95)
    single = estimate(measured(ours, labels), "image_auroc", counts, confidence=0.95)
    assert paired.value == pytest.approx(
        measured(ours, labels).value("image_auroc") - measured(theirs, labels).value("image_auroc")
    )
    assert np.ptp(paired.interval) < np.ptp(single.interval)


def test_a_model_compared_with_itself_differs_by_nothing():
    labels, ours, _ = binormal(np.random.default_rng(1), 30, 30)
    counts = resample_counts([str(label) for label in labels], num_samples=50, seed=0)
    for metric in ("image_auroc", "false_alarm_rate_at_recall", "false_alarm_rate", "recall"):
        same = difference(measured(ours, labels), measured(ours, labels), metric, counts, confidence=0.95)
        assert (same.value, same.interval) == (0.0, (0.0, 0.0))


def test_what_does_not_exist_is_null_with_a_reason():
    labels = np.zeros(4, dtype=bool)
    counts = np.ones((3, 4))
    found = estimate(measured(np.arange(4.0), labels), "image_auroc", counts, confidence=0.95)
    assert (found.value, found.interval) == (None, None)
    assert "no anomalous" in found.reason
    pixels = PixelMeasurement(statistics=None, reason="no masks")
    assert estimate(pixels, "pro", counts, confidence=0.95).reason == "no masks"
    assert difference(pixels, pixels, "pro", counts, confidence=0.95).value is None
