"""Per-region overlap, against hand-computed answers, a slow threshold loop, and invariants."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from stlm.errors import MetricUndefinedError
from stlm.metrics import per_region_overlap, pixel_metrics
from stlm.metrics.regions import label_regions


def slow_pro(maps, masks, limit):
    """Every distinct threshold in turn, every region by itself, the trapezoid rule up to the limit."""
    regions = []
    for index, mask in enumerate(masks):
        labelled, found = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(index, labelled == label) for label in range(1, found + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        called = maps >= threshold
        overlap = np.mean([called[index][region].mean() for index, region in regions])
        points.append((float(called[~masks].mean()), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        else:
            y_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + y_limit) / 2
            break
    return area / limit


maps_and_masks = st.tuples(
    arrays.arrays(np.float32, (2, 5, 6), elements=st.integers(0, 8).map(float)),
    arrays.arrays(np.bool_, (2, 5, 6)).filter(lambda mask: mask.any() and not mask.all()),
)


def test_pro_of_a_curve_drawn_by_hand():
    # Two regions of 1 and 2 pixels, ten normal pixels. Falling scores: region A, one normal, half of B, one normal ...
    masks = np.zeros((1, 1, 13), dtype=bool)
    masks[0, 0, [0, 5, 6]] = True
    maps = np.zeros((1, 1, 13), dtype=np.float32)
    maps[0, 0, 0] = 9  # overlap 1/2 at rate 0
    maps[0, 0, 2] = 8  # normal: rate 0.1
    maps[0, 0, 5] = 7  # overlap 3/4
    maps[0, 0, 9] = 6  # normal: rate 0.2
    maps[0, 0, 6] = 5  # overlap 1, then level up to the limit
    assert per_region_overlap(maps, masks, fpr_limit=0.3) == pytest.approx((0.05 + 0.075 + 0.1) / 0.3)


def test_the_curve_is_cut_by_interpolation_inside_a_tie():
    # One defect pixel tied with half of the normal ones: the curve is straight from (0, 0) to (0.5, 1).
    masks = np.zeros((1, 1, 5), dtype=bool)
    masks[0, 0, 0] = True
    maps = np.array([[[1, 1, 1, 0, 0]]], dtype=np.float32)
    assert per_region_overlap(maps, masks, fpr_limit=0.3) == pytest.approx(0.3 * 0.6 / 2 / 0.3)


def test_regions_touch_over_corners_but_not_over_images():
    masks = np.zeros((2, 3, 3), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True
    masks[1, 1, 1] = True
    regions = label_regions(masks)
    assert regions.size_px.tolist() == [2, 1]
    assert regions.image.tolist() == [0, 1]
    assert regions.pixel_region.tolist() == [0, 0, 1]


def test_a_small_defect_weighs_as_much_as_a_large_one():
    masks = np.zeros((2, 20, 20), dtype=bool)
    masks[0, 2:12, 2:12] = True
    masks[1, 5, 5] = True
    only_large, only_small = (masks * np.array(w, dtype=np.float32)[:, None, None] for w in ([1, 0], [0, 1]))
    rng = np.random.default_rng(0)
    noise = rng.random(masks.shape, dtype=np.float32) * 0.5 * ~masks
    assert per_region_overlap(only_large + noise, masks) == pytest.approx(
        per_region_overlap(only_small + noise, masks), abs=1e-9
    )


@given(maps_and_masks, st.sampled_from([0.05, 0.3, 1.0]))
@settings(deadline=None)
def test_pro_equals_the_slow_loop_with_ties(case, limit):
    maps, masks = case
    assert per_region_overlap(maps, masks, fpr_limit=limit) == pytest.approx(slow_pro(maps, masks, limit), abs=1e-9)


@pytest.mark.parametrize("skewed", [False, True])
def test_pro_equals_the_slow_loop_on_random_maps(skewed):
    rng = np.random.default_rng(5)
    masks = ndimage.binary_dilation(rng.random((3, 24, 24)) < 0.02, structure=np.ones((1, 3, 3)))
    maps = (rng.normal(size=masks.shape) + 1.5 * masks).astype(np.float32)
    if skewed:
        maps = np.maximum(np.exp(3 * maps) - 1, 0).astype(np.float32)
    assert per_region_overlap(maps, masks) == pytest.approx(slow_pro(maps, masks, 0.3), abs=1e-9)


@given(maps_and_masks)
@settings(deadline=None)
def test_pro_lies_within_the_unit_interval(case):
    assert 0 <= per_region_overlap(*case) <= 1 + 1e-12


@given(maps_and_masks)
@settings(deadline=None)
def test_pixel_metrics_do_not_change_under_a_monotone_transform(case):
    maps, masks = case
    before, after = pixel_metrics(maps, masks), pixel_metrics(np.exp(maps), masks)
    assert after.pro == pytest.approx(before.pro, abs=1e-12)
    assert after.auroc == pytest.approx(before.auroc, abs=1e-12)
    assert after.average_precision == pytest.approx(before.average_precision, abs=1e-12)


@given(maps_and_masks)
@settings(deadline=None)
def test_a_perfect_map_gets_one(case):
    _, masks = case
    perfect = pixel_metrics(masks.astype(np.float32), masks)
    assert (perfect.auroc, perfect.average_precision, perfect.pro) == pytest.approx((1, 1, 1))


@given(maps_and_masks, st.sampled_from([0.1, 0.3, 1.0]))
@settings(deadline=None)
def test_a_constant_map_gets_what_chance_gets(case, limit):
    _, masks = case
    constant = pixel_metrics(np.full(masks.shape, 0.25, dtype=np.float32), masks, fpr_limit=limit)
    assert constant.auroc == pytest.approx(0.5)
    assert constant.average_precision == pytest.approx(masks.mean())
    assert constant.pro == pytest.approx(limit / 2)


def test_a_map_with_two_values_works():
    masks = np.zeros((1, 4, 4), dtype=bool)
    masks[0, 0, :2] = True
    maps = np.zeros((1, 4, 4), dtype=np.float32)
    maps[0, 0] = 1
    assert per_region_overlap(maps, masks) == pytest.approx(slow_pro(maps, masks, 0.3))


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (np.zeros((1, 2, 2)), np.zeros((1, 2, 2), dtype=bool), "no defect pixel"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 2), dtype=bool), "no normal pixel"),
        (np.full((1, 2, 2), np.nan), np.eye(2, dtype=bool)[None], "not finite"),
        (np.zeros((1, 2, 2)), np.zeros((1, 4, 4), dtype=bool), r"masks are \(1, 4, 4\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), dtype=bool), r"\(N, H, W\)"),
        (np.zeros((0, 2, 2)), np.zeros((0, 2, 2), dtype=bool), "no defect pixel"),
    ],
)
def test_a_figure_that_does_not_exist_is_an_error(maps, masks, message):
    with pytest.raises(MetricUndefinedError, match=message):
        pixel_metrics(maps, masks)
    with pytest.raises(MetricUndefinedError, match=message):
        per_region_overlap(maps, masks)
