"""Dyadic numbers against Python's own integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcomp.quantization import dyadic
from qcomp.quantization.dyadic import Dyadic

accumulators = st.integers(-dyadic.ACCUMULATOR, dyadic.ACCUMULATOR)
multipliers = st.integers(1, dyadic.LARGEST_MULTIPLIER)
shifts = st.integers(0, dyadic.LARGEST_SHIFT)


def exact(acc: int, m: int, c: int) -> int:
    return round(Fraction(acc * m, 1 << c))  # Python rounds fractions half to even


@given(accumulators, multipliers, shifts)
def test_apply_rounds_half_to_even(acc, m, c):
    assert Dyadic(m, c).apply(np.int64(acc)) == exact(acc, m, c)


@given(st.integers(-(2**20), 2**20), st.integers(1, dyadic.LARGEST_SHIFT))
def test_ties_go_to_the_even_neighbour(odd, c):
    acc = 2 * odd + 1
    got = int(Dyadic(1 << (c - 1), c).apply(np.int64(acc)))
    assert got % 2 == 0
    assert abs(Fraction(acc, 2) - got) == Fraction(1, 2)


@given(accumulators, multipliers, st.integers(0, dyadic.SHIFT), st.integers(0, 255))
def test_float32_kernels_agree_for_every_accumulator(acc, m, c, zero_point):
    product = np.float32(acc) * Dyadic(m, c).value
    by_float = np.clip(np.rint(product) + zero_point, 0, 255)
    assert Dyadic(m, c).requantize(np.int64(acc), zero_point) == by_float


@given(st.data(), st.integers(17, 24))
def test_float32_kernels_agree_at_larger_shifts_where_bits_allow(data, c):
    m = data.draw(st.integers(1, 2**12))
    acc = data.draw(st.integers(-(2 ** (24 - m.bit_length())) + 1, 2 ** (24 - m.bit_length()) - 1))
    factor = Dyadic(m, c)
    assert factor.is_exact_in_float32(abs(acc))
    assert factor.apply(np.int64(acc)) == np.rint(np.float32(acc) * factor.value)


def test_a_larger_shift_is_inexact_where_bits_do_not_allow():
    factor, acc = Dyadic(2**8 + 1, 24), 2**23 + 2**15 - 1
    assert not factor.is_exact_in_float32(acc)
    assert not Dyadic([3, 2**8 + 1], 24).is_exact_in_float32(np.array([1, acc]))
    assert Dyadic(3 << 8, 24).is_exact_in_float32(acc)  # is 3 / 2^16


@given(st.lists(multipliers, min_size=1, max_size=5), shifts)
def test_value_and_of_are_inverse(m, c):
    factor = Dyadic(np.array(m), c)
    again = Dyadic.of(factor.value)
    assert [Fraction(int(a), 1 << again.shift) for a in again.multiplier] == [Fraction(a, 1 << c) for a in m]
    assert again.shift == factor.reduced().shift


@given(st.floats(2.0**-15, 2.0**7))
def test_nearest_is_within_half_a_unit(factor):
    assert abs(float(Dyadic.nearest(factor).value) - factor) <= 2.0**-17


@given(
    st.lists(st.tuples(st.floats(2.0**-20, 2.0**6), st.floats(1, 2**31 - 1)), min_size=1, max_size=6),
)
def test_neighbours_enclose_the_factor_and_are_exact(pairs):
    factor, bound = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    below, above = dyadic.neighbours(factor, bound)
    assert below.shift == above.shift
    assert (above.value >= factor.astype("f4") * (1 - 2.0**-23)).all()
    assert (below.value <= np.maximum(factor, 2.0**-dyadic.SHIFT) * (1 + 2.0**-23)).all()
    assert (above.value - below.value <= 2.0**-dyadic.SHIFT * (1 + 2.0**-20)).all()
    reach = np.floor(bound).astype(np.int64)
    assert below.is_exact_in_float32(reach)
    assert above.is_exact_in_float32(reach)


def test_neighbours_of_a_small_factor_are_finer_where_the_accumulator_is_small():
    factor = np.array([1.3 / 2**16, 900 / 2**16])
    coarse, fine = (dyadic.neighbours(factor, np.array([b, 2.0**30]))[1] for b in (2.0**30, 2.0**15))
    assert coarse.shift == 16
    assert fine.shift > 16
    assert abs(fine.value[0] / factor[0] - 1) < 0.02 < abs(coarse.value[0] / factor[0] - 1)


def test_apply_takes_a_multiplier_a_channel():
    acc = np.arange(-12, 12).reshape(2, 3, 4)
    got = Dyadic(np.array([1, 2, 3]), 1).apply(acc, axis=1)
    assert all(got[i, j, k] == exact(int(acc[i, j, k]), j + 1, 1) for i in range(2) for j in range(3) for k in range(4))


@pytest.mark.parametrize(("m", "c", "quoted"), [(0, 3, "D1"), (1 << 24, 3, "D1"), (3, 25, "D2"), (3, -1, "D2")])
def test_constraints_are_quoted(m, c, quoted):
    with pytest.raises(ValueError, match=quoted):
        Dyadic(m, c)


def test_an_accumulator_beyond_int32_is_refused():
    with pytest.raises(ValueError, match="int32"):
        Dyadic(1, 0).apply(np.int64(1 << 31))


@pytest.mark.parametrize("factor", [0.0, -0.5, np.inf, np.nan, 1e-12])
def test_of_refuses_what_is_no_dyadic_number(factor):
    with pytest.raises(ValueError, match="D2"):
        Dyadic.of(np.float32(factor))
