"""Weight scales with dyadic ratios, and weights that no processor saturates."""

from __future__ import annotations

import numpy as np
import pytest

from qcomp.quantization.dyadic import Dyadic
from qcomp.quantization.qtype import QType
from qcomp.quantization.saturation import pair_reach, saturates
from qcomp.quantization.weight_scales import dyadic_scales

INT8 = QType(8, signed=True, narrow=True)


def scales(rows, wanted, least=None, ratio=1.0, steps=None):
    least = np.zeros(len(rows)) if least is None else least
    steps = np.zeros(0) if steps is None else steps
    return dyadic_scales(rows, wanted, least, INT8, ratio=ratio, largest_input=255, bias_steps=steps)


@pytest.mark.parametrize("seed", range(8))
def test_ratios_are_dyadic_and_just_above_what_is_wanted(seed):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(16, 500)).astype("f4") * 10.0 ** random.uniform(-2, 0, (16, 1)).astype("f4")
    wanted, ratio = np.abs(rows).max(axis=1) / 127, float(10.0 ** random.uniform(-1, 1))
    found = scales(rows, wanted, ratio=ratio)
    factor = found.astype("f8") / ratio
    steps = np.rint(factor * 2**24)
    assert np.abs(factor * 2**24 - steps).max() <= steps.max() * 2.0**-22
    fine = wanted / ratio * 2**16 > 20
    assert (found[fine] >= wanted[fine] * (1 - 1e-6)).all()
    assert (found[fine] <= wanted[fine] * 1.06).all()


def test_where_they_are_coarse_the_one_with_less_error_is_taken():
    rows = np.float32([[1.0, 0.5, -0.3] * 40000])
    unit = 2.0**-16
    near_below, near_above = (scales(rows, np.array([x * unit]), ratio=1.0)[0] / unit for x in (1.02, 1.9))
    errors = {m: np.abs(np.clip(np.rint(rows / (m * unit)), -127, 127) * m * unit - rows).sum() for m in (1, 2)}
    assert near_below == near_above == min(errors, key=errors.get) == 2
    assert scales(rows * 0.0019, np.array([1.02 * unit]))[0] / unit == 1


def test_never_below_what_the_bias_needs():
    rows = np.float32([[0.9, -1.0]] * 3)
    least = np.array([0.3, 0.5, 0.7])
    assert (scales(rows, least, least=least) >= least).all()


def test_an_idle_channel_gets_a_scale_that_its_bias_can_use():
    found = scales(np.zeros((1, 4), "f4"), np.zeros(1), ratio=0.5)
    assert found[0] == 0.5 / 256


def test_scales_are_factors_of_exact_float_kernels():
    wanted = 1.3 * 2.0**-16
    rows = np.float32([[127.0, -30.0, 60.0]]) * np.float32(wanted)
    found = scales(rows, np.array([wanted]), ratio=1.0)
    factor = Dyadic.of(found)
    weights = np.clip(np.rint(rows / found), -127, 127)
    assert factor.shift > 16
    assert factor.is_exact_in_float32(int(255 * np.abs(weights).sum()))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([64, 64, -64, -64, 3], False),
        ([127, 1, 0, -128 + 1, -1], False),
        ([65, 64], True),
        ([-65, 3, -64], True),
        ([127], False),
        ([], False),
        ([127, -127, 0, 0], False),
    ],
)
def test_two_products_beyond_int16_saturate(row, expected):
    assert saturates(np.array([row, [0] * len(row)], np.int8)) is expected
    pairs = [abs(a + b) for i, a in enumerate(row) for b in row[:i]]
    assert (255 * max(pairs, default=0) > 2**15 - 1) is expected


@pytest.mark.parametrize("seed", range(20))
def test_steps_of_the_largest_pair_never_saturate(seed):
    random = np.random.default_rng(seed)
    rows = random.standard_t(2, (30, int(random.integers(1, 60))))
    step = np.maximum(pair_reach(rows), np.abs(rows).max(axis=1)) / 127
    assert not saturates(np.rint(rows / step[:, None]).astype(np.int8))
