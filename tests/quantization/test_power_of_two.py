"""Scales that are powers of two: which of them is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp.quantization import power_of_two, qtype
from qcomp.quantization.dyadic import Dyadic
from qcomp.quantization.histogram import Histogram
from qcomp.quantization.qparams import QParams

INT8, INT4 = (qtype.parse_weight(name, "") for name in ("int8", "int4"))


def is_power(values) -> bool:
    return bool((np.frexp(np.asarray(values))[0] == 0.5).all())


def histogram_of(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.update(values, float(values.min()), float(values.max()))
    return found


@settings(derandomize=True)
@given(st.floats(1e-30, 1e30))
def test_the_least_power_that_is_not_below(value):
    power = float(power_of_two.at_least(value))
    assert is_power(power)
    assert power / 2 < value <= power * (1 + 2.0**-20)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["uint8", "uint4", "int8", "uint16"])
def test_an_activation_gets_the_scale_and_zero_point_with_the_least_error(kind, seed):
    rng = np.random.default_rng(seed)
    values = (rng.standard_t(4, 20000) * 10.0 ** rng.uniform(-3, 3) + rng.uniform(-1, 1)).astype("f4")
    found_type = qtype.parse(kind, "")
    free = QParams.asymmetric(float(values.min()), float(values.max()), found_type)
    found = power_of_two.activation(histogram_of(values), (float(values.min()), float(values.max())), found_type)
    assert is_power(found.scale)
    assert int(found.zero_point) % 2 == 0
    top = float(power_of_two.at_least(float(free.scale)))
    others = [
        QParams(found_type, np.float32(scale), np.asarray(int(found.zero_point) + shift, found_type.container))
        for scale in (top, top / 2)
        for shift in (-4, 0, 4)
        if found_type.qmin <= int(found.zero_point) + shift <= found_type.qmax
    ]
    errors = [error(values, params) for params in others]
    assert error(values, found) <= min(errors) * 1.1


def error(values: np.ndarray, params: QParams) -> float:
    return float(np.sum((params.dequantize(params.quantize(values)).astype("f8") - values) ** 2))


def test_where_nothing_may_be_clipped_the_range_is_covered():
    values = np.random.default_rng(0).standard_t(2, 5000).astype("f4")
    low, high = float(values.min()), float(values.max())
    kind = qtype.parse("uint8", "")
    found = power_of_two.activation(histogram_of(values), (low, high), kind, clip=False)
    scale, zero = float(found.scale), int(found.zero_point)
    assert (0 - zero) * scale <= low + scale
    assert (255 - zero) * scale >= high - scale
    clipping = power_of_two.activation(histogram_of(values), (low, high), kind)
    assert float(clipping.scale) <= scale


@pytest.mark.parametrize(("low", "high", "zero"), [(0.0, 5.0, 0), (-5.0, 0.0, 254)])
def test_a_range_with_one_end_keeps_zero_at_the_end_of_the_type(low, high, zero):
    found = power_of_two.activation(power_of_two.uniform(low, high), (low, high), qtype.parse("uint8", ""))
    assert int(found.zero_point) == zero


def test_what_is_all_zero_has_a_scale():
    assert is_power(power_of_two.activation(Histogram(), (0.0, 0.0), qtype.parse("uint8", "")).scale)
    assert is_power(power_of_two.weights(np.zeros((2, 3), "f4"), np.zeros(2), INT8))
    assert is_power(power_of_two.weights(np.zeros((2, 3), "f4"), np.zeros(2), INT8, ratio=0.25))


@pytest.mark.parametrize("kind", [INT8, INT4])
@pytest.mark.parametrize("seed", range(5))
def test_each_row_of_weights_gets_the_power_with_the_least_error(kind, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(3, (12, 200)).astype("f4") * 10.0 ** rng.uniform(-3, 3, (12, 1)).astype("f4")
    found = power_of_two.weights(rows, np.zeros(12), kind)
    covering = power_of_two.weights(rows, np.zeros(12), kind, search=False)
    assert is_power(found)
    assert (np.abs(rows).max(axis=1) <= covering * kind.qmax * (1 + 1e-6)).all()
    assert (np.abs(rows).max(axis=1) > covering / 2 * kind.qmax).all()
    for row, scale in zip(rows, found, strict=True):
        errors = [error(row, QParams(kind, np.float32(s), np.int8(0))) for s in (scale, scale / 2, scale * 2)]
        assert errors[0] == min(errors)
    assert kind is INT8 or (found < covering).any()


def test_never_below_what_the_bias_needs():
    least = np.array([0.3, 0.5, 3.0])
    found = power_of_two.weights(np.float32([[0.9, -1.0]] * 3), least, INT8)
    np.testing.assert_array_equal(found, [0.5, 0.5, 4.0])


@pytest.mark.parametrize("exponent", [-20, -16, -9, 0, 3, 9, 16, 20])
def test_factors_stay_ones_that_float_kernels_compute_exactly(exponent):
    """A layer whose result has a much coarser or finer scale than its products: factors far below and above 1."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 500)).astype("f4") * 4.0 ** np.arange(-3, 3)[:, None].astype("f4")
    ratio = 2.0**exponent
    found = power_of_two.weights(rows, np.zeros(6), INT8, ratio=ratio)
    factor = Dyadic.of((found / np.float32(ratio)).astype("f4"))
    bound = 255 * np.abs(np.rint(rows / found[:, None])).clip(max=127).sum(axis=1)
    assert factor.is_exact_in_float32(bound.astype(np.int64))
    assert is_power(factor.value)
