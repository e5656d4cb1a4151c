"""Statistics merge to those of all samples at once, and are right."""

import math

import numpy as np
import onnx_ir as ir
import pytest
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp.calibration.observers import (
    COUNTED_PER_SAMPLE,
    ChannelMean,
    Distribution,
    Observation,
    PatchMean,
    Statistics,
    _stride,
)
from qcomp.errors import CalibrationError

KINDS = [
    Distribution(),
    PatchMean((3, 2), (2, 1), (1, 0, 1, 1), (1, 2)),
    ChannelMean(1),
    ChannelMean(-1),
]


def seen(kind, *batches):
    state = kind.start()
    for batch in batches:
        state.update(batch)
    return state


def facts(state):
    """What a state holds, to compare."""
    if hasattr(state, "histogram"):
        h = state.histogram
        return [np.array([h.low, h.high, h.exponent or 0, h.zeros]), h.counts]
    return [state.mean, np.asarray(state.count)]


def same(left, right, rtol=1e-5):
    for a, b in zip(facts(left), facts(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 99))
def test_batches_and_merges_are_all_at_once(kind, sizes, seed):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=(n, 3, 9, 7)).astype(np.float32) * 10.0 ** rng.integers(-3, 3) for n in sizes]
    whole = seen(kind, np.concatenate(batches))
    merged = kind.start()
    for batch in batches:
        merged.merge(seen(kind, batch))
    same(seen(kind, *batches), whole)
    same(merged, whole)


def test_merge_leaves_the_other_alone():
    batch = np.ones((2, 3, 4, 4), np.float32)
    for kind in KINDS:
        other = seen(kind, batch)
        before = [np.array(fact) for fact in facts(other)]
        mine = kind.start()
        mine.merge(other)
        mine.update(batch)
        for old, new in zip(before, facts(other), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("shape", [(4, 100_000), (4, 3, 224, 224), (4, 8192), (4, 8193), (4,), (4, 0), (0, 3)])
def test_distribution_does_not_depend_on_the_batch_size(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    whole = seen(Distribution(), x)
    for size in (1, 3):
        same(seen(Distribution(), *(x[i : i + size] for i in range(0, len(x), size))), whole, rtol=0)
    if x.size:
        assert (whole.histogram.low, whole.histogram.high) == (x.min(), x.max())
        assert 0 < whole.histogram.total <= 4 * COUNTED_PER_SAMPLE


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8"])
def test_distribution_takes_any_rank_and_type(shape, dtype):
    state = seen(Distribution(), np.full(shape, 3, dtype))
    assert (state.histogram.low, state.histogram.high, state.histogram.total) == (3, 3, max(int(np.prod(shape)), 1))


@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 16385, 150528, 802816, 10**7])
def test_the_stride_counts_enough(size):
    stride = _stride(size)
    assert math.gcd(stride, size) == 1
    assert -(-size // stride) <= COUNTED_PER_SAMPLE
    assert stride <= 2 * -(-size // COUNTED_PER_SAMPLE) + 16


@pytest.mark.parametrize("shape", [(16, 24, 24), (64, 28, 28), (192, 28, 28), (32, 112, 112), (49, 49, 49)])
def test_no_column_row_or_channel_is_left_out(shape):
    """Borders and what a ConvTranspose computes differ from column to column."""
    for axis, size in enumerate(shape):
        where = np.broadcast_to(np.expand_dims(np.arange(size), [a for a in range(3) if a != axis]), shape)
        state = seen(Distribution(), where[None].astype(np.float32))
        counts = state.histogram.counts[state.histogram.counts > 0]
        assert counts.size == size
        assert counts.max() < 3 * counts.min()


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 2))
    per_axis = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, strides, dilations = draw(per_axis), draw(per_axis), draw(per_axis)
    pads = draw(st.tuples(*[st.integers(0, 2)] * (2 * dims)))
    spatial = tuple(d * (k - 1) + 1 + draw(st.integers(0, 6)) for k, d in zip(kernel, dilations, strict=True))
    group = draw(st.sampled_from([1, 2, 4]))
    return kernel, strides, pads, dilations, spatial, group, draw(st.integers(0, 999))


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_patch_mean_gives_the_mean_output_of_a_convolution(case):
    kernel, strides, pads, dilations, spatial, group, seed = case
    b = small.Builder(seed)
    x = b.input("x", ["N", 4, *spatial])
    weights = b.rng.normal(size=(8, 4 // group, *kernel)).astype(np.float32)
    geometry = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    b.op("Conv", x, b.constant(weights), name="y", group=group, **geometry)
    batches = [b.rng.normal(1, 2, size=(n, 4, *spatial)).astype(np.float32) for n in (3, 1)]
    out = small.run(ir.from_proto(b.model("y")), {"x": np.concatenate(batches)})["y"]
    mean = seen(PatchMean(kernel, strides, pads, dilations), *batches).mean
    assert mean.shape == (4, *kernel)
    grouped = mean.reshape(group, 1, 4 // group, -1)
    found = (weights.reshape(group, 8 // group, 4 // group, -1) * grouped).sum(axis=(2, 3)).ravel()
    expected = out.mean(axis=(0, *range(2, out.ndim)), dtype=np.float64)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(np.abs(out).max(), 1))


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 5, 5), 1), ((4, 7), 1), ((4, 6, 7), -1), ((4, 6, 7), 2)])
def test_channel_mean(shape, axis):
    x = np.random.default_rng(0).normal(3, 1, size=shape).astype(np.float32)
    others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    mean = seen(ChannelMean(axis), x[:1], x[1:]).mean
    assert mean.dtype == np.float64
    np.testing.assert_allclose(mean, x.mean(axis=others, dtype=np.float64), rtol=1e-6)


def test_channel_mean_of_half_precision_does_not_overflow():
    assert seen(ChannelMean(0), np.full((2, 100), 3e4, np.float16)).mean == pytest.approx([3e4, 3e4], rel=1e-3)


def value_of(name: str, *, op: str = "") -> ir.Value:
    if not op:
        return ir.Value(name=name)
    return ir.Node("", op, [], outputs=[ir.Value(name=name)], name=f"node_{name}").outputs[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_names_what_is_not_finite(bad):
    stats = Statistics()
    wish = Observation(value_of("h", op="Exp"), Distribution())
    good = np.ones((4, 3), np.float32)
    stats.update(iter([(wish, good)]), 4)
    spoiled = good.copy()
    spoiled[2, 1] = bad
    with pytest.raises(
        CalibrationError, match=r"^Exp 'node_h': its value 'h' is NaN or infinite for sample 6 "
    ) as caught:
        stats.update(iter([(wish, spoiled)]), 4)
    assert "check that sample" in caught.value.hint
    wish = Observation(value_of("x"), Distribution())
    with pytest.raises(CalibrationError, match=r"^input 'x': .* sample 0 "):
        Statistics().update(iter([(wish, np.full(1, bad, np.float32))]), 1)


def test_statistics_merge_and_are_found():
    x, other = value_of("x"), value_of("y")
    wishes = [Observation(x, kind) for kind in KINDS]
    batches = [np.random.default_rng(i).normal(size=(2 + i, 3, 5, 5)).astype(np.float32) for i in range(3)]
    parts = []
    for batch in batches:
        parts.append(Statistics())
        parts[-1].update(((wish, batch) for wish in wishes), len(batch))
    whole = Statistics()
    assert not whole.collected
    for part in parts:
        whole.merge(part)
    assert whole.collected
    assert whole.samples == 9
    for kind in KINDS:
        same(whole.find(x, kind), seen(kind, np.concatenate(batches)))
        assert whole.find("x", kind) is whole.find(x, kind)
        assert whole.find(other, kind) is None
    assert whole.find(x, ChannelMean(7)) is None
    assert whole.histogram("x").total == 9 * 75
    assert whole.histogram("y") is None


def test_equal_kinds_are_one():
    x = value_of("x")
    assert Observation(x, Distribution()).key == Observation(x, Distribution()).key
    assert len({Observation(x, ChannelMean(1)), Observation(x, ChannelMean(1)), Observation(x, ChannelMean(2))}) == 2
