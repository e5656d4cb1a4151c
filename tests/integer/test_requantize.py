"""Requantization: exact rationals, ties to even, saturation, and the same in every executor."""

from __future__ import annotations

from fractions import Fraction

import integer_functions as calls
import numpy as np
import pytest

from qcomp.errors import UnsupportedError
from qcomp.integer.requantize import Requantize, dyadic, shift_right


def exact(accumulator, multiplier, shift, zero_point):
    """By Python's rationals, whose ``round`` is half to even."""
    pairs = np.broadcast(accumulator, multiplier)
    values = [round(Fraction(int(a) * int(m), 1 << shift)) + zero_point for a, m in pairs]
    return np.clip(values, 0, 255).astype(np.uint8).reshape(pairs.shape)


def accumulators(rng, *shape):
    return rng.integers(-(2 ** int(rng.integers(1, 32))), 2 ** int(rng.integers(1, 32)), shape).astype(np.int32)


@pytest.mark.parametrize("seed", range(12))
def test_any_multiplier_and_shift(seed):
    rng = np.random.default_rng(seed)
    shape = [(), (1,), (5,), (4, 1)][seed % 4]
    multiplier = rng.integers(1, 2 ** int(rng.integers(1, 32)), shape)
    operator = Requantize(multiplier, int(rng.integers(1, 54)), calls.even(rng))
    x = accumulators(rng, 3, 4, 5)
    expected = exact(x, multiplier, operator.shift, operator.zero_point)
    np.testing.assert_array_equal(operator(x), expected)
    calls.agree(calls.call("Requantize", operator.constants, ["a", "b", "c"], dtype=calls.INT32), x, expected)


@pytest.mark.parametrize("shift", [1, 2, 7, 16])
@pytest.mark.parametrize("zero_point", [0, 2, 128, 254])
def test_halves_round_to_even(shift, zero_point):
    x = (np.arange(-600, 600) << (shift - 1)).astype(np.int32)
    operator = Requantize(np.asarray(1), shift, zero_point)
    expected = exact(x, 1, shift, zero_point)
    np.testing.assert_array_equal(operator(x), expected)
    calls.agree(calls.call("Requantize", operator.constants, ["n"], dtype=calls.INT32), x, expected)


@pytest.mark.parametrize("shift", [1, 31, 53])
@pytest.mark.parametrize("zero_point", [0, 254])
def test_the_extremes_do_not_overflow(shift, zero_point):
    x = np.asarray([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1], np.int32)
    operator = Requantize(np.asarray(2**31 - 1), shift, zero_point)
    expected = exact(x, 2**31 - 1, shift, zero_point)
    np.testing.assert_array_equal(operator(x), expected)
    calls.agree(calls.call("Requantize", operator.constants, ["n"], dtype=calls.INT32), x, expected)


@pytest.mark.parametrize("seed", range(20))
def test_dyadic_is_the_nearest(seed):
    rng = np.random.default_rng(seed)
    factors = 10 ** rng.uniform(-4, 3, 7)
    multiplier, shift = dyadic(factors)
    np.testing.assert_allclose(multiplier / 2.0**shift, factors, rtol=0, atol=2.0 ** -(shift + 1))
    assert factors.max() / factors.min() > 1e4 or (np.abs(multiplier / 2.0**shift / factors - 1) < 1e-4).all()
    assert 2**29 <= multiplier.max() <= 2**30


@pytest.mark.parametrize("factor", [1e-30, 2.0**-53, 2.0**30 - 1])
def test_dyadic_at_its_limits(factor):
    multiplier, shift = dyadic(factor)
    assert 1 <= shift <= 53
    assert 1 <= multiplier < 2**31


@pytest.mark.parametrize("factor", [0.0, -1.0, np.inf, np.nan, 2.0**30])
def test_a_factor_out_of_reach_is_refused(factor):
    with pytest.raises(UnsupportedError, match="factor"):
        dyadic(factor)


@pytest.mark.parametrize(
    ("multiplier", "shift", "zero_point", "what"),
    [(0, 5, 0, "multiplier"), (2**31, 5, 0, "multiplier"), (1, 0, 0, "shift"), (1, 54, 0, "shift"), (1, 5, 3, "zero")],
)
def test_constants_out_of_range_are_refused(multiplier, shift, zero_point, what):
    with pytest.raises(UnsupportedError, match=what):
        Requantize(np.asarray(multiplier), shift, zero_point)


def test_shift_right_floors_and_saturates():
    values = np.asarray([-(2**62), -1, 0, 3, 4, 1023, 1024, 2**62], np.int64)
    np.testing.assert_array_equal(shift_right(values, 2), np.uint8([0, 0, 0, 0, 1, 255, 255, 255]))
