"""Histograms merge exactly, whatever the chunks, at every magnitude that float32 has."""

import copy
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qcomp.quantization.histogram import BINS, Histogram

LARGEST = float(np.finfo(np.float32).max)
ANY = st.floats(-LARGEST, LARGEST, width=32)
ORDINARY = st.floats(-8, 8, width=32)
CHUNKS = st.lists(st.lists(st.one_of(ANY, ORDINARY), min_size=1, max_size=12), min_size=1, max_size=6)


def histogram(*chunks) -> Histogram:
    result = Histogram()
    for chunk in chunks:
        values = np.asarray(chunk, np.float32)
        result.update(values, float(values.min()), float(values.max()))
    return result


def state(h: Histogram):
    return h.low, h.high, h.exponent, h.zeros, h.total, h.counts.tolist()


def by_hand(values, exponent: int) -> list[int]:
    """The bins, counted in exact arithmetic."""
    counts = [0] * BINS
    for value in values:
        numerator, denominator = float(np.float32(value)).as_integer_ratio()
        over, under = max(12 - exponent, 0), max(exponent - 12, 0)
        counts[(numerator << over) // (denominator << under) + BINS // 2] += 1
    return counts


@settings(max_examples=150, deadline=None)
@given(CHUNKS)
@example([[1e-20, -1e-20], [1.0]])
@example([[-1e-45], [3e38]])
@example([[-1e-9], [100.0]])
@example([[0.0], [1e-3]])
@example([[1.0], [-1.0]])
def test_counts_do_not_depend_on_the_chunks(chunks):
    values = [v for chunk in chunks for v in chunk]
    whole, parts = histogram(values), histogram(*chunks)
    assert state(whole) == state(parts)
    assert whole.counts.tolist() == by_hand(values, whole.exponent)
    assert whole.total == len(values)
    assert (whole.low, whole.high) == (min(np.float32(values)), max(np.float32(values)))
    assert whole.zeros == sum(v == 0 for v in values)


@settings(max_examples=100, deadline=None)
@given(CHUNKS, CHUNKS, CHUNKS)
def test_merge_is_associative_and_commutative(a, b, c):
    x, y, z = histogram(*a), histogram(*b), histogram(*c)
    before = state(y)
    left, right = copy.deepcopy(x), copy.deepcopy(y)
    left.merge(y)
    assert state(y) == before
    left.merge(z)
    right.merge(z)
    right.merge(x)
    assert state(left) == state(right) == state(histogram(*a, *b, *c))


def test_merge_with_an_empty_one():
    filled = histogram([1.0, -2.0])
    before = state(filled)
    filled.merge(Histogram())
    assert state(filled) == before
    empty = Histogram()
    empty.merge(filled)
    assert state(empty) == before
    assert Histogram().total == 0
    assert Histogram().quantile(0.5) == 0


@pytest.mark.parametrize(
    "largest", [0.0, 1e-45, 1e-40, 1.1754944e-38, 1e-20, 2.0**-41, 2.0**-40, 0.99999994, 1.0, 3e38, LARGEST]
)
def test_extreme_magnitudes(largest):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        h = histogram([largest, -largest, largest / 2, 0])
        assert h.total == 4
        assert np.isfinite(h.edges).all()
        assert (np.diff(h.edges) > 0).all()
        assert h.edges[0] <= h.low <= h.high < h.edges[-1]
        assert all(h.low <= h.quantile(q) <= h.high for q in (0, 0.3, 0.5, 1))


def test_a_tensor_of_zeros_does_not_coarsen_the_bins():
    small = np.float32([1e-3, 5e-4])
    assert histogram([0, 0], small).exponent == histogram(small).exponent
    assert histogram([0]).zeros == histogram([0]).total == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(ORDINARY, min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_right_to_a_bin(values, fraction):
    h = histogram(values)
    width = h.edges[1] - h.edges[0]
    rank = max(int(np.ceil(fraction * len(values))), 1)
    exact = float(np.sort(np.float32(values))[rank - 1])
    assert abs(h.quantile(fraction) - exact) <= width + 1e-12


def test_counts_a_sample_but_keeps_the_extremes_of_all():
    h = Histogram()
    h.update(np.float32([0.5]), -3.0, 9.0)
    assert (h.low, h.high, h.total, h.exponent) == (-3.0, 9.0, 1, 4)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int64", "bool"])
def test_counts_other_types(dtype):
    values = np.array([0, 1, 1], dtype)
    h = Histogram()
    h.update(values, 0.0, 1.0)
    assert h.counts[BINS // 2] == 1
    assert h.counts[BINS // 2 + BINS // 4] == 2


def test_centers_lie_between_edges():
    h = histogram([3.0])
    assert len(h.edges) == BINS + 1
    assert h.edges[0] == -4
    assert h.edges[-1] == 4
    np.testing.assert_array_equal(h.centers, (h.edges[1:] + h.edges[:-1]) / 2)
