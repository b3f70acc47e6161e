"""The operating threshold."""

import logging
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm.calibration import Calibration, calibrate_threshold
from stlm.errors import DataError, MetricUndefinedError


def test_the_threshold_is_the_conformal_order_statistic():
    # 99 normals, 5 %: the ceil(100 * 0.95) = 95th smallest.
    found = calibrate_threshold(np.arange(1, 100), 0.05)
    assert found.threshold == 95
    assert found.promised_false_alarm_rate == pytest.approx(0.05)
    assert found.num_normals == 99
    assert found.interval[0] <= 95 <= found.interval[1]


def test_rounding_does_not_push_the_rank_up():
    assert calibrate_threshold(np.arange(1, 20), 0.05).threshold == 19  # ceil(20 * 0.95) = 19
    assert calibrate_threshold(np.arange(1, 10), 0.3).threshold == 7  # ceil(10 * 0.7) = 7


def test_too_few_normals_take_the_largest_score_and_say_what_it_promises(caplog):
    with caplog.at_level(logging.WARNING):
        found = calibrate_threshold([3.0, 1.0, 2.0, 4.0], 0.05)
    assert found.threshold == 4.0
    assert found.promised_false_alarm_rate == pytest.approx(1 / 5)
    assert "too few" in caplog.text


@pytest.mark.parametrize("num_normals", [19, 40, 100])
def test_new_normals_raise_alarms_at_most_at_the_promised_rate(num_normals):
    rng = np.random.default_rng(num_normals)
    rates = [
        1 - math.exp(-calibrate_threshold(rng.exponential(size=num_normals), 0.05, bootstrap_samples=1).threshold)
        for _ in range(2000)
    ]
    # Above the threshold t lies exp(-t) of an exponential; its mean is at most 5 %.
    assert 0.03 <= 1 - np.mean(rates) <= 0.05 + 0.003


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.01, 0.5))
@settings(deadline=None)
def test_at_most_the_target_share_of_the_held_out_normals_lies_above(scores, target):
    found = calibrate_threshold(scores, target, bootstrap_samples=10)
    assert found.is_anomalous(scores).mean() <= target
    assert found.threshold in scores


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
@settings(deadline=None)
def test_json_gives_the_same_calibration_back(scores):
    found = calibrate_threshold(scores, 0.1, bootstrap_samples=10)
    assert Calibration.from_json(found.to_json()) == found


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(0).normal(size=50)
    assert calibrate_threshold(scores, 0.1, seed=3) == calibrate_threshold(scores, 0.1, seed=3)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf]])
def test_scores_that_cannot_be_ordered_are_an_error(scores):
    with pytest.raises(MetricUndefinedError):
        calibrate_threshold(scores, 0.05)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"threshold": 1}', '{"interval": [1, 2], "threshold": 1, "x": 2}'])
def test_a_file_that_is_no_calibration_is_refused(text):
    with pytest.raises(DataError, match="not a calibration"):
        Calibration.from_json(text)


def test_a_threshold_that_is_not_finite_is_refused():
    text = calibrate_threshold([1.0, 2.0], 0.4).to_json().replace('"threshold": 2.0', '"threshold": NaN')
    with pytest.raises(DataError, match="finite"):
        Calibration.from_json(text)


def test_scores_that_may_be_defects_count_but_never_set_the_threshold() -> None:
    sure, doubtful = np.arange(18.0), [40.0, 50.0]
    pooled = np.r_[sure, doubtful]
    free = calibrate_threshold(pooled, 0.05)
    bounded = calibrate_threshold(pooled, 0.05, ceiling=17.0)
    assert free.threshold == 50.0
    assert bounded.threshold == 17.0
    assert bounded.promised_false_alarm_rate == pytest.approx(3 / 21)
    # Where the quantile lies among the sure ones, the bound changes nothing; the doubtful ones raise it.
    assert calibrate_threshold(pooled, 0.3, ceiling=17.0).threshold == 14.0
    assert calibrate_threshold(sure, 0.3).threshold == 13.0


def test_pictures_of_one_part_count_as_one_part():
    """Ten parts were photographed thirty times each, thirty parts once; a new part comes once."""
    rng = np.random.default_rng(5)
    parts = [f"often {i}" for i in range(10) for _ in range(30)] + [f"once {i}" for i in range(30)]
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(500):
        of_part = dict(zip(dict.fromkeys(parts), rng.exponential(size=40), strict=True))
        scores = [of_part[part] for part in parts]
        for known, found_rates in rates.items():
            found = calibrate_threshold(scores, 0.05, parts=parts if known else None, bootstrap_samples=1)
            found_rates.append(math.exp(-found.threshold))
    assert 0.03 <= np.mean(rates[True]) <= 0.05 + 0.005
    assert np.mean(rates[False]) > 0.07


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_pictures_that_resemble_each_other_a_little_promise_no_less_and_little_more(correlation):
    """18 parts in six pictures each, as few as a small line has; a picture of a new part comes."""
    rng = np.random.default_rng(3)
    parts = [str(part) for part in range(18) for _ in range(6)]
    rates, highest = [], []
    for _ in range(400):
        common = math.sqrt(correlation) * rng.normal(size=(18, 1))
        scores = (common + math.sqrt(1 - correlation) * rng.normal(size=(18, 6))).ravel()
        found = calibrate_threshold(scores, 0.05, parts=parts, bootstrap_samples=1)
        assert found.promised_false_alarm_rate == pytest.approx(1 / 19)
        rates.append(1 - NormalDist().cdf(found.threshold))
        highest.append(1 - NormalDist().cdf(scores.max()))
    assert 0.03 <= np.mean(rates) <= 1 / 19 + 0.005
    assert np.mean(highest) < 0.03  # what the highest score of all would give: half of the alarms, and missed defects


def test_a_part_in_several_pictures_weighs_as_one_in_one_picture():
    found = calibrate_threshold([1, 2, 3, 4, 4.1, 4.2, 4.3], 0.3, parts=["a", "b", "c", "d", "d", "d", "d"])
    # ceil(5 * 0.7) = 4 parts must be at or below: a draw of the last one is, in half of the cases, up to its second.
    assert found.threshold == 4.1
    assert found.promised_false_alarm_rate == pytest.approx(1 / 5)
    assert found.num_normals == 7


def test_the_median_over_all_draws_is_that_of_drawing_often():
    rng = np.random.default_rng(8)
    parts = [str(part) for part in range(12) for _ in range(1 + part % 4)]
    scores = rng.normal(size=len(parts))
    found = calibrate_threshold(scores, 0.2, parts=parts)
    of_part = [[s for s, p in zip(scores, parts, strict=True) if p == str(part)] for part in range(12)]
    drawn = np.sort([[rng.choice(own) for own in of_part] for _ in range(4000)], axis=1)[:, 10]  # ceil(13 * 0.8) = 11
    assert np.mean(drawn < found.threshold) - 0.02 <= 0.5 <= np.mean(drawn <= found.threshold) + 0.02
    assert found.interval[0] <= found.threshold <= found.interval[1]


def test_a_ceiling_promises_what_the_parts_above_it_allow():
    scores = [1, 2, 3, 4, 9, 9.1, 5, 9.5]
    parts = ["a", "b", "c", "d", "d", "d", "e", "e"]
    bounded = calibrate_threshold(scores, 0.2, parts=parts, ceiling=4.0)
    assert bounded.threshold == 4.0
    assert bounded.promised_false_alarm_rate == pytest.approx(3 / 6)  # a, b and c; a draw of d is above it, and of e
    assert calibrate_threshold(scores, 0.2, parts=parts, ceiling=100.0).threshold == 9.1


def test_pictures_of_unknown_parts_are_parts_of_their_own():
    scores = np.random.default_rng(1).normal(size=50)
    assert calibrate_threshold(scores, 0.1, parts=[""] * 50) == calibrate_threshold(scores, 0.1)
    assert calibrate_threshold(scores, 0.1, parts=[str(i) for i in range(50)]) == calibrate_threshold(scores, 0.1)
    with pytest.raises(ValueError, match="a part for each of 50 scores, got 2"):
        calibrate_threshold(scores, 0.1, parts=["a", "b"])
