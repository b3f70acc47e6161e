"""Image metrics, against hand-computed answers, scikit-learn and invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from stlm.errors import MetricUndefinedError
from stlm.metrics import auroc, false_alarm_rate_at_recall, pixel_metrics, rate_above
from stlm.metrics.auroc import auroc_samples
from stlm.metrics.operating_point import false_alarm_rate_at_recall_samples

scores_and_labels = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-20, 20), min_size=n, max_size=n),  # few values: plenty of ties
        st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda labels: len(set(labels)) == 2),
    )
)


def test_auroc_counts_pairs_and_half_of_each_tie():
    # pairs (anomalous, normal): 3>1, 3>2, 2>1, 2=2 -> 3.5 of 4
    assert auroc([1, 2, 2, 3], [0, 0, 1, 1]) == 3.5 / 4


def test_false_alarms_are_read_at_the_highest_threshold_that_reaches_the_recall():
    scores, labels = [1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 0, 1]
    assert false_alarm_rate_at_recall(scores, labels, recall=0.3) == 0.0
    assert false_alarm_rate_at_recall(scores, labels, recall=2 / 3) == pytest.approx(1 / 3)
    assert false_alarm_rate_at_recall(scores, labels, recall=1.0) == pytest.approx(2 / 3)


def test_tied_normals_alarm_together_with_the_defect_that_must_be_found():
    assert false_alarm_rate_at_recall([1, 2, 2, 2], [0, 0, 0, 1], recall=0.5) == pytest.approx(2 / 3)


def test_a_score_on_the_threshold_raises_no_alarm():
    assert rate_above([0.1, 0.5, 0.9], 0.5) == pytest.approx(1 / 3)


@given(scores_and_labels)
@settings(deadline=None)
def test_auroc_equals_scikit_learn_with_ties(case):
    scores, labels = case
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(scores_and_labels, st.floats(0.05, 1.0))
@settings(deadline=None)
def test_false_alarms_at_recall_equal_the_roc_curve_of_scikit_learn(case, recall):
    scores, labels = case
    false_positive, true_positive, _ = roc_curve(labels, scores, drop_intermediate=False)
    expected = false_positive[np.argmax(true_positive >= recall - 1e-12)]
    assert false_alarm_rate_at_recall(scores, labels, recall=recall) == pytest.approx(expected, abs=1e-12)


@given(scores_and_labels)
@settings(deadline=None)
def test_auroc_does_not_change_under_a_monotone_transform(case):
    scores, labels = case
    assert auroc(np.exp(np.array(scores) / 5), labels) == pytest.approx(auroc(scores, labels), abs=1e-12)


@given(scores_and_labels)
@settings(deadline=None)
def test_auroc_of_negated_scores_is_the_complement(case):
    scores, labels = case
    assert auroc(-np.array(scores), labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


@given(scores_and_labels, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_resampled_figures_equal_those_of_the_repeated_images(case, seed):
    scores, labels = np.array(case[0], dtype=float), np.array(case[1])
    counts = np.random.default_rng(seed).integers(0, 3, size=(1, len(labels)))
    counts[0, np.argmax(labels)] += 1
    counts[0, np.argmin(labels)] += 1
    rows = np.repeat(np.arange(len(labels)), counts[0])
    assert auroc_samples(scores, labels, counts)[0] == pytest.approx(auroc(scores[rows], labels[rows]), abs=1e-12)
    assert false_alarm_rate_at_recall_samples(scores, labels, counts, recall=0.8)[0] == pytest.approx(
        false_alarm_rate_at_recall(scores[rows], labels[rows], recall=0.8), abs=1e-12
    )


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [0, 0], "no anomalous"),
        ([1.0, 2.0], [1, 1], "no normal"),
        ([1.0, np.nan], [0, 1], "not finite"),
        ([1.0, np.inf], [0, 1], "not finite"),
        ([], [], "no anomalous"),
        ([1.0], [0, 1], "2 labels"),
    ],
)
def test_a_figure_that_does_not_exist_is_an_error(scores, labels, message):
    with pytest.raises(MetricUndefinedError, match=message):
        auroc(scores, labels)
    with pytest.raises(MetricUndefinedError, match=message):
        false_alarm_rate_at_recall(scores, labels)


def test_a_rate_without_scores_is_an_error():
    with pytest.raises(MetricUndefinedError):
        rate_above([], 0.5)


@pytest.mark.parametrize("ties", [False, True])
def test_pixel_auroc_and_ap_equal_scikit_learn(ties):
    rng = np.random.default_rng(3)
    masks = rng.random((6, 17, 23)) < 0.1
    maps = (rng.normal(size=masks.shape) + masks).astype(np.float32)
    if ties:
        maps = np.round(maps * 2) / 2
    found = pixel_metrics(maps, masks)
    assert found.auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)
    assert found.average_precision == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-9)


def test_pixel_auroc_and_ap_equal_scikit_learn_on_skewed_maps():
    rng = np.random.default_rng(4)
    masks = np.zeros((20, 32, 32), dtype=bool)
    masks[0, 3:6, 4:9] = masks[7, 20, :] = True
    maps = rng.lognormal(sigma=3, size=masks.shape).astype(np.float32) * (1 + 5 * masks)
    maps[maps < 0.5] = 0  # a rectified map: most of it is one great tie
    found = pixel_metrics(maps, masks)
    assert found.auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)
    assert found.average_precision == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-9)
