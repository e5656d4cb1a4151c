"""The mean in integers."""

from __future__ import annotations

from fractions import Fraction

import integer_functions as calls
import numpy as np
import pytest

from qcomp.errors import UnsupportedError
from qcomp.integer.mean import MOST_COUNT, ReduceMean
from qcomp.integer.requantize import Requantize


@pytest.mark.parametrize("seed", range(16))
def test_every_executor_agrees(seed):
    rng = np.random.default_rng(seed)
    shape = [int(n) for n in rng.integers(1, 9, 4)]
    axes = [[-1], [2, 3], [1], [-2, -1], [0, 2]][seed % 5]
    keepdims = seed % 3 > 0
    count = int(np.prod([shape[a] for a in axes]))
    x_scale, x_zero_point, y_zero_point = calls.scale(rng), calls.even(rng), calls.even(rng)
    y_scale = x_scale * rng.uniform(0.3, 3)
    operator = ReduceMean.of(x_scale, x_zero_point, y_scale, y_zero_point, count)
    x = calls.rows(rng, *shape)
    expected = operator(x, axes, keepdims=keepdims)
    rank = 4 if keepdims else 4 - len(axes)
    dims = ["a", "b", "c", "d"]
    model = calls.call("ReduceMean", operator.constants, dims, out_rank=rank, axes=axes, keepdims=int(keepdims))
    calls.agree(model, x, expected)
    real = (x.mean(axis=tuple(axes), keepdims=keepdims) - x_zero_point) * x_scale / y_scale + y_zero_point
    np.testing.assert_allclose(expected, np.clip(real, 0, 255), atol=0.5001)


def test_it_is_a_global_average_pool():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 3, 7, 7)).astype(np.uint8)
    operator = ReduceMean(49, 4, Requantize(np.asarray(1337), 16, 2))
    totals = x.astype(int).sum(axis=(2, 3), keepdims=True) - 49 * 4
    expected = [np.clip(round(Fraction(int(t) * 1337, 1 << 16)) + 2, 0, 255) for t in totals.ravel()]
    expected = np.asarray(expected, np.uint8).reshape(2, 3, 1, 1)
    calls.agree(calls.call("ReduceMean", operator.constants, ["N", 3, 7, 7], axes=[2, 3]), x, expected)


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("zero_point", [0, 254])
def test_the_longest_sum_fits(value, zero_point):
    x = np.full((1, MOST_COUNT), value, np.uint8)
    operator = ReduceMean.of(0.1, zero_point, 0.1, zero_point, MOST_COUNT)
    calls.agree(calls.call("ReduceMean", operator.constants, ["a", "b"], axes=[1]), x, np.uint8([[value]]))


@pytest.mark.parametrize("count", [0, MOST_COUNT + 1])
def test_a_sum_that_does_not_fit_is_refused(count):
    with pytest.raises(UnsupportedError, match="32 bits"):
        ReduceMean(count, 0, Requantize(np.asarray(1), 1, 0))
