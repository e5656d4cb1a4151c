"""Layer normalization in integers: near the float one, inside its bounds, and the same in every executor."""

from __future__ import annotations

import math

import integer_functions as calls
import numpy as np
import pytest

from qcomp.errors import UnsupportedError
from qcomp.integer.layer_norm import MOST_COUNT, LayerNormalization, square_root


def normalized(x, x_scale, epsilon):
    """float64, from exact sums, so that a constant row is exactly 0."""
    count, wide = x.shape[-1], x.astype(np.int64)
    d = count * wide - wide.sum(axis=-1, keepdims=True)
    v = (d * d / count).sum(axis=-1, keepdims=True) * (x_scale / count) ** 2 + epsilon
    return d * x_scale / count / np.sqrt(np.where(v == 0, 1, v))


def random_case(rng, count, rows=8):
    """x, the constants, and the output of float64 in steps of the output's scale."""
    x_scale, y_zero_point, epsilon = calls.scale(rng), calls.even(rng), float(rng.choice([0, 1e-12, 1e-6, 1e-5, 1e-3]))
    x = calls.rows(rng, rows, count)
    gamma, beta = (rng.normal(size=count) * 10 ** rng.uniform(-3, 2) for _ in range(2))
    beta = None if rng.random() < 0.2 else beta
    real = normalized(x, x_scale, epsilon) * gamma + (0 if beta is None else beta)
    y_scale = max((real.max() - real.min()) / 255 * rng.uniform(0.5, 2), 1e-6)
    operator = LayerNormalization.of(x_scale, gamma, beta, epsilon, y_scale, y_zero_point)
    return x, operator, np.clip(real / y_scale + y_zero_point, 0, 255)


@pytest.mark.parametrize("seed", range(16))
def test_every_executor_agrees(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 801)) if seed else MOST_COUNT
    x, operator, _ = random_case(rng, count, rows=6)
    model = calls.call("LayerNormalization", operator.constants, ["batch", "length", count], axes=[-1])
    x = x.reshape(2, 3, count)
    calls.agree(model, x, operator(x))


@pytest.mark.parametrize("seed", range(200))
def test_the_error_is_below_one_step(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 801)) if seed % 10 else int(rng.choice([1, 2, 3, 4096, MOST_COUNT]))
    x, operator, expected = random_case(rng, count)
    y = operator(x)
    assert np.abs(y - expected).max() < 0.6
    assert np.abs(y - np.rint(expected)).mean() < 0.03


@pytest.mark.parametrize("axes", [[1, 2, 3], [2, 3], [-1], [-2, -1]])
def test_over_several_axes(axes):
    rng = np.random.default_rng(len(axes))
    shape = (2, 3, 4, 5)
    x, inner = calls.rows(rng, *shape), tuple(shape[a] for a in axes)
    gamma, beta = rng.normal(size=inner), rng.normal(size=inner)
    operator = LayerNormalization.of(0.1, gamma, beta, 1e-5, 0.03, 128)
    model = calls.call("LayerNormalization", operator.constants, ["a", *shape[1:]], axes=axes)
    calls.agree(model, x, operator(x, axes))
    flat = x.reshape(-1, gamma.size)
    expected = (normalized(flat, 0.1, 1e-5) * gamma.ravel() + beta.ravel()) / 0.03 + 128
    np.testing.assert_allclose(operator(x, axes).reshape(flat.shape), np.clip(expected, 0, 255), atol=0.6)


def test_parameters_of_one_number():
    x = np.random.default_rng(0).integers(0, 256, (4, 9)).astype(np.uint8)
    one = LayerNormalization.of(0.1, np.float32([1.5]), np.float32([0.5]), 1e-5, 0.05, 100, count=9)
    all_nine = LayerNormalization.of(0.1, np.full(9, 1.5), np.full(9, 0.5), 1e-5, 0.05, 100)
    np.testing.assert_array_equal(one(x), all_nine(x))
    calls.agree(calls.call("LayerNormalization", one.constants, ["n", 9], axes=[-1]), x, one(x))


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("value", [0, 1, 255])
def test_constant_rows_give_the_bias(value, count, epsilon):
    beta = np.linspace(-1, 1, count)
    operator = LayerNormalization.of(0.1, np.ones(count), beta, epsilon, 0.01, 128)
    x = np.full((2, count), value, np.uint8)
    expected = np.clip(np.rint(beta / 0.01) + 128, 0, 255).astype(np.uint8)
    calls.agree(
        calls.call("LayerNormalization", operator.constants, ["n", count], axes=[-1]), x, np.stack([expected] * 2)
    )


@pytest.mark.parametrize("x_scale", [1e-7, 1e-4, 0.05, 10.0])
@pytest.mark.parametrize("count", [1, 2, 3, 100, 768, MOST_COUNT])
def test_the_bounds_hold_at_the_extremes(count, x_scale):
    """In Python's integers, which do not overflow, on the rows with the largest deviations and variances."""
    index = np.arange(count)
    rows = np.stack([255 * (index == 0), 255 * (index > 0), 255 * (index % 2), 254 + (index == 0), 0 * index])
    gamma, beta = np.where(index % 2, -1.0, 1.0), np.where(index % 3, 1e30, -1e30)
    operator = LayerNormalization.of(x_scale, gamma, beta, 1e-5, 0.02, 254)
    y = operator(rows.astype(np.uint8))
    largest = max(map(abs, operator.gamma.tolist()))
    for row, got in zip(rows.tolist(), y, strict=True):
        total, squares = sum(row), sum(v * v for v in row)
        assert squares < 2**31
        square = (count * squares - total**2) * operator.scaling + operator.epsilon
        assert 1 <= square < 2**62
        factor = operator.numerator // math.isqrt(square)
        for v, g, b, result in zip(row[:4], operator.gamma.tolist(), operator.beta.tolist(), got, strict=False):
            d = count * v - total
            assert abs(d) < 2**23
            assert abs(d * factor) * largest <= 2**61
            assert abs(b) <= 2**62 + 1
            assert result == min(max((d * factor * g + b) >> operator.shift, 0), 255)


@pytest.mark.parametrize("seed", range(10))
def test_no_sum_is_half_way(seed):
    operator = random_case(np.random.default_rng(seed), 20)[1]
    assert not (operator.gamma % 2).any()
    assert (operator.beta % 2).all()
    assert operator.shift >= 2
    assert np.abs(operator.gamma).max() > 2**16 or operator.shift == 52


def test_square_root():
    values = np.asarray([[1, 3, 4], [8, 2**62 - 1, 2**62]], np.int64)
    np.testing.assert_array_equal(square_root(values), [[1, 1, 2], [2, 2**31 - 1, 2**31]])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"count": MOST_COUNT + 1}, "32 bits"),
        ({"x_scale": 1e-15}, "epsilon is too large"),
        ({"y_scale": 1e-30}, "weight is too large"),
        ({"gamma": np.full(4, np.nan)}, "weight is not finite"),
        ({"beta": np.full(4, np.inf)}, "bias is not finite"),
        ({"y_zero_point": 3}, "zero point"),
    ],
)
def test_what_the_bounds_do_not_cover_is_refused(changes, what):
    options = {"x_scale": 0.1, "gamma": np.ones(4), "beta": None, "epsilon": 1e-5, "y_scale": 0.1, "y_zero_point": 2}
    with pytest.raises(UnsupportedError, match=what):
        LayerNormalization.of(**options | changes)
