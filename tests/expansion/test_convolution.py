"""QLinearConv as products of matrices."""

from __future__ import annotations

import integer_graphs as graphs
import numpy as np
import pytest

SEEDS = range(3)


def random_attributes(rng, dims, *, dilated=True):
    """Kernel and attributes of a convolution of so many axes; pads on each side of their own."""
    kernel = rng.integers(1, 4, dims).tolist()
    attributes = {"kernel_shape": kernel, "strides": rng.integers(1, 3, dims).tolist()}
    if rng.integers(2):
        attributes["pads"] = rng.integers(0, 3, 2 * dims).tolist()
    if dilated and rng.integers(2):
        attributes["dilations"] = rng.integers(1, 3, dims).tolist()
    return kernel, attributes


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_dense(seed, dims):
    b = graphs.Builder(seed)
    kernel, attributes = random_attributes(b.rng, dims)
    width, channels = (int(n) for n in b.rng.integers(1, 20, 2))
    sizes = b.rng.integers(6, 10, dims).tolist()
    b.conv(b.input("x", ["N", width, *sizes]), channels, width, kernel, bias=bool(seed % 2), **attributes)
    model = graphs.check(b, b.nodes[-1].output[0])
    assert "ConvInteger" not in graphs.kinds(model)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_depthwise(seed, dims):
    b = graphs.Builder(seed)
    kernel, attributes = random_attributes(b.rng, dims)
    channels = int(b.rng.integers(2, 20))
    sizes = b.rng.integers(6, 12 if dims < 3 else 8, dims).tolist()
    b.conv(b.input("x", ["N", channels, *sizes]), channels, 1, kernel, group=channels, **attributes)
    graphs.check(b, b.nodes[-1].output[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("group", "width", "each"), [(1, 5, 7), (3, 2, 4), (4, 1, 1), (4, 1, 2)])
def test_groups_and_dynamic_sizes(seed, dims, dynamic, group, width, each):
    b = graphs.Builder(seed)
    kernel, attributes = random_attributes(b.rng, dims)
    sizes = ["H", "W"][:dims] if dynamic else b.rng.integers(6, 9, dims).tolist()
    b.conv(b.input("x", ["N", group * width, *sizes]), group * each, width, kernel, group=group, **attributes)
    graphs.check(b, b.nodes[-1].output[0], size=int(b.rng.integers(6, 9)))


@pytest.mark.parametrize("sizes", [(8, "W"), ("H", 8), ("H", "W")])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_chains_of_partly_dynamic_sizes(sizes, group):
    b = graphs.Builder(group)
    x = b.conv(b.input("x", ["N", 4, *sizes]), 8, 4 // group, (3, 3), pads=[1] * 4, group=group)
    x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 1])
    x = b.add(x, b.conv(x, 8, 8, (1, 1)))
    graphs.check(b, b.conv(x, 6, 8, (3, 3), pads=[1] * 4), size=8)


@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"), [((3, 3), 1, [1] * 4), ((3, 5), 2, [1, 0, 2, 3]), ((7, 7), 2, [3] * 4)]
)
def test_few_channels_are_folded_into_units_of_pixels(width, kernel, stride, pads):
    b = graphs.Builder(width)
    x = b.input("x", ["N", width, 24, 32])
    b.conv(x, 8, width, kernel, kernel_shape=kernel, strides=[stride] * 2, pads=pads)
    graphs.check(b, b.nodes[-1].output[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_chains_stay_channels_last(seed):
    b = graphs.Builder(seed)
    x = b.conv(b.input("x", ["N", 3, 16, 16]), 8, 3, (3, 3), pads=[1] * 4, strides=[2, 2])
    x = b.conv(x, 8, 1, (3, 3), pads=[1] * 4, group=8)
    x = b.conv(x, 12, 8, (1, 1))
    x = b.conv(x, 6, 12, (1, 1), strides=[2, 2])
    model = graphs.check(b, x)
    assert graphs.kinds(model).count("Transpose") == 1 + 2 + 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("low", "high"), [(3, 200), (None, 77), (9, None), (5, 5)])
def test_a_clip_behind_is_merged(seed, low, high):
    b = graphs.Builder(seed)
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 4, 3, (3, 3))
    ends = [b.constant(np.uint8(e)) if e is not None else "" for e in (low, high)]
    model = graphs.check(b, b.op("Clip", x, *ends))
    first, last = (graphs.kinds(model).index(kind) for kind in ("MatMulInteger", "Cast"))
    assert graphs.kinds(model)[last:].count("Clip") <= 1
    assert first < last


def test_extreme_weights_and_biases():
    """The largest sums that int32 must hold."""
    for sign in (-128, 127):
        b = graphs.Builder(0)
        x = b.input("x", ["N", 64, 5, 5])
        weight = b.constant(np.full((8, 64, 3, 3), sign, np.int8))
        bias = b.constant(np.full(8, sign << 17, np.int32))
        ones = b.one(), b.constant(np.uint8(254)), b.constant(np.int8(0))
        inputs = [x, ones[0], ones[1], weight, b.constant(np.float32(2.0**-16)), ones[2], ones[0], ones[1], bias]
        graphs.check(b, b.op("QLinearConv", *inputs))
