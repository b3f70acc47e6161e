"""Metrics from a stream lie within their own bound of the exact ones, whatever the scores' distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, f1_score

from stlm.errors import MetricUndefinedError
from stlm.metrics import PixelStream, average_precision, f1_max, pixel_metrics

NAMES = ("auroc", "average_precision", "pro", "f1_max")
scores = st.floats(-(2.0**99), 2.0**99, width=32)
cases = st.tuples(
    arrays.arrays(np.float32, (3, 4, 5), elements=scores),
    arrays.arrays(np.bool_, (3, 4, 5)).filter(lambda mask: mask.any() and not mask.all()),
)


def streamed(maps, masks, **options):
    stream = PixelStream(**options)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        stream.update(anomaly_map, mask)
    return stream.result()


@given(cases, st.sampled_from([10, 14]), st.sampled_from([0.05, 0.3, 1.0]))
def test_a_stream_is_within_its_bound_of_the_exact_metrics(case, bits, limit):
    result = streamed(*case, bits=bits, fpr_limit=limit)
    exact = pixel_metrics(*case, fpr_limit=limit)
    for name in NAMES:
        deviation = abs(getattr(result.metrics, name) - getattr(exact, name))
        assert deviation <= getattr(result.bound, name) + 1e-12, name


@pytest.mark.parametrize("power", [1, 16])
def test_the_bound_is_tight_on_skewed_scores_too(power):
    rng = np.random.default_rng(3)
    masks = np.zeros((8, 64, 64), dtype=bool)
    masks[2:, 20:30, 20:34] = True
    maps = (np.clip(rng.normal(0.5, 0.12, masks.shape) + 0.1 * masks, 0, 1) ** power).astype(np.float32)
    result, exact = streamed(maps, masks), pixel_metrics(maps, masks)
    for name in NAMES:
        assert getattr(result.bound, name) < 1e-3, name
        assert getattr(result.metrics, name) == pytest.approx(getattr(exact, name), abs=1e-4), name


def test_both_zeros_are_the_same_score():
    maps = np.array([[[0.0, -0.0]]], dtype=np.float32)
    masks = np.array([[[True, False]]])
    assert streamed(maps, masks).metrics.auroc == 0.5


def test_a_stream_without_defects_has_no_metrics_and_a_bad_map_is_not_counted():
    stream = PixelStream(bits=10)
    stream.update(np.zeros((2, 2)), np.zeros((2, 2), dtype=bool))
    with pytest.raises(MetricUndefinedError, match="no defect pixel"):
        stream.result()
    with pytest.raises(MetricUndefinedError, match="not finite"):
        stream.update(np.full((2, 2), np.nan), np.ones((2, 2), dtype=bool))
    with pytest.raises(MetricUndefinedError, match="no defect pixel"):
        stream.result()
    for wrong in ({"bits": 9}, {"bits": 25}, {"fpr_limit": 0.0}):
        with pytest.raises(ValueError, match="must be within"):
            PixelStream(**wrong)


@given(
    arrays.arrays(np.int8, 12, elements=st.integers(0, 5)),
    arrays.arrays(np.bool_, 12).filter(lambda x: x.any() and not x.all()),
)
def test_average_precision_and_best_f1_are_scikit_learns(values, labels):
    assert average_precision(values, labels) == pytest.approx(average_precision_score(labels, values), abs=1e-12)
    best = max(f1_score(labels, values >= threshold) for threshold in np.unique(values))
    assert f1_max(values, labels) == pytest.approx(best, abs=1e-12)
    assert pixel_metrics(values[None, None] * 1.0, labels[None, None]).f1_max == pytest.approx(best, abs=1e-12)


def test_average_precision_needs_both_classes():
    with pytest.raises(MetricUndefinedError, match="no anomalous"):
        average_precision([1.0, 2.0], [0, 0])
    with pytest.raises(MetricUndefinedError, match="no normal"):
        f1_max([1.0, 2.0], [1, 1])
