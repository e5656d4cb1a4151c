"""Softmax in integers: near the float one, inside its bounds, and the same in every executor."""

from __future__ import annotations

import integer_functions as calls
import numpy as np
import pytest

from qcomp.errors import UnsupportedError
from qcomp.integer.softmax import MOST_LENGTH, MOST_LENGTH_32, Softmax


def float_softmax(x, x_scale, axis=-1):
    real = x.astype(np.float64) * x_scale
    e = np.exp(real - real.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize("seed", range(16))
def test_every_executor_agrees(seed):
    rng = np.random.default_rng(seed)
    shape = [int(rng.integers(1, 4)), int(rng.integers(1, 40)), int(rng.integers(1, 301))]
    axis = int(rng.integers(-3, 3))
    known = {"length": shape[axis]} if seed % 2 else {}
    operator = Softmax.of(calls.scale(rng), **known)
    model = calls.call("Softmax", operator.constants, ["a", "b", "c"], axes=[axis])
    x = calls.rows(rng, *shape)
    calls.agree(model, x, operator(x, axis))
    fast = calls.call("Softmax", operator.constants, ["a", "b", "c"], axes=[axis], fast=True)
    calls.agree(fast, x, operator(x, axis), reference=False)


@pytest.mark.parametrize("seed", range(200))
def test_the_error_is_below_one_step(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 301)) if seed % 10 else int(rng.choice([1024, 1025, 4096, MOST_LENGTH]))
    x_scale, x = calls.scale(rng), calls.rows(rng, 4, length)
    known = {"length": length} if seed % 3 else {}
    error = np.abs(Softmax.of(x_scale, **known)(x) - 255 * float_softmax(x, x_scale))
    assert error.max() < 0.7


@pytest.mark.parametrize("length", [1, MOST_LENGTH_32, MOST_LENGTH_32 + 1, MOST_LENGTH])
@pytest.mark.parametrize("x_scale", [1e-4, 0.02, 0.1, 10.0])
def test_the_bounds_hold_at_the_extremes(length, x_scale):
    operator = Softmax.of(x_scale, length=length)
    for x in (np.zeros((1, length), np.uint8), 255 * (np.arange(length) == 0)[None].astype(np.uint8)):
        e = [int(operator.table[int(x.max()) - int(v)]) for v in x[0]]
        total = sum(e)
        assert max(e) <= total < 2 ** (31 if operator.table.dtype == np.int32 else 47)
        assert max(e) * (operator.numerator // total) + (1 << (operator.shift - 1)) < 2**62
        assert operator.numerator // total >= 2**14
        np.testing.assert_allclose(operator(x), 255 * float_softmax(x, x_scale), atol=0.7)


def test_long_rows_in_every_executor():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, MOST_LENGTH)).astype(np.uint8)
    operator = Softmax.of(1e-3)
    calls.agree(calls.call("Softmax", operator.constants, ["a", "b"], axes=[-1]), x, operator(x))


def test_the_tables_of_short_rows_are_32_bits():
    assert Softmax.of(0.1, length=MOST_LENGTH_32).table.dtype == np.int32
    assert Softmax.of(0.1, length=MOST_LENGTH_32 + 1).table.dtype == np.int64
    assert Softmax.of(0.1).table[0] == 2**30


def test_certainty_is_exact():
    x = np.uint8([[255, 0, 0], [7, 7, 7]])
    np.testing.assert_array_equal(Softmax.of(1.0)(x), np.uint8([[255, 0, 0], [85, 85, 85]]))


@pytest.mark.parametrize("y_scale", [1.0, 1 / 15, 1 / 256, 1e-3, 2.0**-40])
def test_other_output_scales_saturate(y_scale):
    rng = np.random.default_rng(3)
    x = calls.rows(rng, 5, 20)
    operator = Softmax.of(0.05, y_scale=y_scale)
    expected = np.minimum(float_softmax(x, 0.05) / y_scale, 255)
    np.testing.assert_allclose(operator(x), expected, atol=0.7)
    calls.agree(calls.call("Softmax", operator.constants, ["a", "b"], axes=[-1]), x, operator(x))


@pytest.mark.parametrize("options", [{"length": 0}, {"length": MOST_LENGTH + 1}, {"y_scale": 2.0}, {"y_scale": 0.0}])
def test_what_the_bounds_do_not_cover_is_refused(options):
    with pytest.raises(UnsupportedError, match="Softmax"):
        Softmax.of(0.1, **options)
