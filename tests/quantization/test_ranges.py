"""The four range methods, against true errors on samples, and the search for weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp.errors import OptionError
from qcomp.quantization import ranges
from qcomp.quantization.histogram import Histogram
from qcomp.quantization.qparams import QParams
from qcomp.quantization.qtype import QType

U8, U4, I8 = QType(8, signed=False), QType(4, signed=False), QType(8, signed=True)
METHODS = list(ranges.METHODS)


def histogram(values) -> Histogram:
    h = Histogram()
    h.update(values, float(values.min()), float(values.max()))
    return h


def error(values, ends, kind) -> float:
    """The true mean squared error of quantizing with the scale that the compiler makes of a range."""
    params = QParams.asymmetric(*ends, kind)
    back = params.dequantize(params.quantize(values))
    return float(np.mean((back.astype(np.float64) - values) ** 2))


def sample(name: str, size=50_000) -> np.ndarray:
    rng = np.random.default_rng(7)
    made = {
        "normal": rng.normal(size=size),
        "laplace": rng.laplace(size=size),
        "student": rng.standard_t(3, size=size),
        "relu": np.maximum(rng.normal(size=size), 0),
        "negative": -np.abs(rng.normal(size=size)),
        "uniform": rng.uniform(-1, 3, size=size),
        "sparse": np.where(rng.random(size) < 0.95, 0, rng.normal(size=size)),
        "gelu": (x := rng.normal(size=size) * 2) * 0.5 * (1 + np.tanh(0.8 * (x + 0.045 * x**3))),
        "outlier": np.append(rng.normal(size=size), 80.0),
    }
    return made[name].astype(np.float32)


SAMPLES = ["normal", "laplace", "student", "relu", "negative", "uniform", "sparse", "gelu", "outlier"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=40),
    st.sampled_from(METHODS),
    st.sampled_from([U8, U4, I8, QType(16, signed=False), QType(2, signed=True)]),
)
def test_every_range_holds_zero_and_lies_in_minmax(values, name, kind):
    h = histogram(np.float32(values))
    low, high = ranges.method(name)(h, kind)
    assert min(h.low, 0.0) <= low <= 0 <= high <= max(h.high, 0.0)
    QParams.asymmetric(low, high, kind)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-20, 5.0, -3e38])
def test_a_constant_tensor(name, value):
    h = histogram(np.full(10, value, np.float32))
    low, high = ranges.method(name)(h, U8)
    assert error(np.full(10, value, np.float32), (low, high), U8) <= (0.01 * value) ** 2 + 1e-38
    assert np.isfinite([low, high]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1))
def test_minmax_is_exact(values):
    x = np.float32(values)
    assert ranges.minmax(histogram(x), U8) == (min(float(x.min()), 0.0), max(float(x.max()), 0.0))


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("kind", [U4, U8, QType(6, signed=False), I8], ids=str)
def test_mse_is_never_worse_than_minmax(name, kind):
    x = sample(name)
    h = histogram(x)
    assert error(x, ranges.mse(h, kind), kind) <= 1.03 * error(x, ranges.minmax(h, kind), kind)


@pytest.mark.parametrize(("name", "gain"), [("laplace", 1.8), ("student", 4), ("normal", 1.3), ("outlier", 4)])
def test_mse_is_clearly_better_on_tails_at_4_bits(name, gain):
    x = sample(name)
    h = histogram(x)
    assert gain * error(x, ranges.mse(h, U4), U4) < error(x, ranges.minmax(h, U4), U4)


@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "gelu"])
def test_mse_is_near_the_best_of_its_grid(name):
    x = sample(name, 4000)
    h = histogram(x)
    low, high = ranges.minmax(h, U4)
    grid = ranges.CANDIDATES[::4]
    best = min(error(x, (a * low, b * high), U4) for a in grid for b in grid)
    assert error(x, ranges.mse(h, U4), U4) <= 1.25 * best


def test_clipping_is_counted_exactly():
    x = sample("laplace", 5000)
    h = histogram(x)
    bounds = np.array([0.5, 1.0, 2.0, 3.0])
    moments = ranges._tail_moments(h)
    above = ranges._clipped(h, moments, bounds, upper=True)
    below = ranges._clipped(h, moments, -bounds, upper=False)
    assert above == pytest.approx([np.sum(np.maximum(x - b, 0) ** 2) for b in bounds], rel=0.01)
    assert below == pytest.approx([np.sum(np.minimum(x + b, 0) ** 2) for b in bounds], rel=0.01)


def test_entropy_clips_an_outlier():
    x = sample("outlier")
    low, high = ranges.entropy(histogram(x), U8)
    assert 3 < high <= 0.3 * 80
    assert low < -3
    mirrored = ranges.entropy(histogram(-x), U8)
    assert -0.3 * 80 <= mirrored[0] < -3
    assert mirrored[1] > 3


def test_entropy_keeps_a_uniform_range():
    low, high = ranges.entropy(histogram(sample("uniform")), U8)
    assert low <= -0.8
    assert high >= 2.4


def test_percentile_clips_a_hundredth_of_a_percent():
    x = sample("normal", 1_000_000)
    low, high = ranges.percentile(histogram(x), U8)
    assert np.count_nonzero((x < low) | (x > high)) / x.size == pytest.approx(1e-4, rel=0.15)
    assert np.count_nonzero(x > high) == pytest.approx(50, abs=10)
    relu = np.maximum(x, 0)
    assert ranges.percentile(histogram(relu), U8)[0] == 0
    assert ranges.percentile(histogram(-relu), U8)[1] == 0


def test_unknown_method():
    with pytest.raises(OptionError, match=r"unknown range method 'msе' .*known: minmax, percentile, mse, entropy"):
        ranges.method("msе")
    with pytest.raises(OptionError, match=r"did you mean 'entropy'\?"):
        ranges.method("entrpy")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_reach_is_the_best_of_its_grid(bits):
    rows = np.random.default_rng(0).standard_t(4, size=(5, 64)).astype(np.float32)
    rows[3] = 0
    kind = QType(bits, signed=True, narrow=True)
    found = ranges.weight_reach(rows, kind, search=True)
    for row, reach in zip(rows, found, strict=True):
        largest = np.abs(row).max()
        tried = {f: squared(row, f * largest, kind) for f in np.linspace(1.0, 0.4, 25)}
        assert squared(row, reach, kind) <= min(tried.values()) * (1 + 1e-5)
        assert 0.39 * largest <= reach <= largest


def squared(row, reach, kind) -> float:
    if reach == 0:
        return float(np.sum(row.astype(np.float64) ** 2))
    step = reach / kind.qmax
    return float(np.sum((np.clip(np.rint(row / step), kind.qmin, kind.qmax) * step - row.astype(np.float64)) ** 2))


def test_weight_reach_without_search_is_the_largest():
    rows = np.float32([[1, -3], [0, 0], [2, 1]])
    found = ranges.weight_reach(rows, QType(8, signed=True, narrow=True), search=False)
    assert found.tolist() == [3, 0, 2]
    assert ranges.weight_reach(np.zeros((2, 0), np.float32), I8, search=True).tolist() == [0, 0]
    assert ranges.weight_reach(rows, QType(4, signed=True, narrow=True), search=True).dtype == np.float32
