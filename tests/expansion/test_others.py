"""Products, sums, concatenations, pools and moves."""

from __future__ import annotations

import integer_graphs as graphs
import numpy as np
import pytest

from qcomp.errors import UnsupportedError

SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(seed, transposed):
    b = graphs.Builder(seed)
    x = b.gemm(b.input("x", ["N", 37]), 37, 11, bias=bool(seed % 2), transposed=transposed)
    graphs.check(b, x)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [["N", 20], ["N", 5, 20], ["N", "L", 20]])
def test_matmul_by_a_weight(seed, shape):
    b = graphs.Builder(seed)
    graphs.check(b, b.matmul(b.input("x", shape), b.weight(20, 9), 9))


@pytest.mark.parametrize("seed", SEEDS)
def test_matmul_by_weights_in_a_batch(seed):
    b = graphs.Builder(seed)
    x, zero, none = b.input("x", [3, 5, 20]), b.zero(), b.constant(np.int8(0))
    inputs = [x, b.one(), zero, b.weight(3, 20, 9), b.factor(), none, b.one(), b.zero()]
    graphs.check(b, b.op("QLinearMatMul", *inputs))


def test_each_matrix_of_a_batch_has_sums_of_its_own():
    """All of them together would not fit in int32."""
    b = graphs.Builder(0)
    weight = b.constant(np.full((80, 1024, 2), 127, np.int8))
    inputs = [b.input("x", [80, 1, 1024]), b.one(), b.constant(np.uint8(0)), weight, b.constant(np.float32(2.0**-16))]
    inputs += [b.constant(np.int8(0)), b.one(), b.constant(np.uint8(0))]
    graphs.check(b, b.op("QLinearMatMul", *inputs))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("inner", [16, "L"])
def test_matmul_of_two_activations(seed, inner):
    b = graphs.Builder(seed)
    graphs.check(b, b.matmul(b.input("x", ["N", 2, 6, inner]), b.input("z", ["N", 2, inner, 8])), size=9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["N", 6], ["N", 6]),
        (["N", 6, 5, 4], ["N", 6, 5, 4]),
        (["N", 6, 5, 4], ["N", 6, 1, 1]),
        (["N", 6, 1, 1], ["N", 1, 5, 4]),
        (["N", 6, "H", "W"], ["N", 6, "H", "W"]),
        (["N", 6, 5, 4], [5, 1]),
    ],
)
@pytest.mark.parametrize("kind", ["add", "multiply"])
def test_sums_and_products(kind, left, right, seed):
    b = graphs.Builder(seed)
    graphs.check(b, getattr(b, kind)(b.input("x", left), b.input("z", right)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("shape", "behind"), [((), 1), ((1, 8, 1, 1), 1), ((8, 6, 6), 1), ((6,), 1), ((8, 1, 6), 0)])
@pytest.mark.parametrize("kind", ["add", "multiply"])
def test_constant_operands_behind_a_convolution(kind, shape, behind, seed):
    b = graphs.Builder(seed)
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 8, 3, (3, 3), pads=[1] * 4)
    constant = b.constant(b.rng.integers(0, 256, shape).astype(np.uint8))
    graphs.check(b, getattr(b, kind)(*((x, constant) if behind else (constant, x))))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [6, "H"])
def test_residual_blocks_stay_channels_last(seed, size):
    b = graphs.Builder(seed)
    x = b.conv(b.input("x", ["N", 3, size, size]), 8, 3, (3, 3), pads=[1] * 4)
    y = b.conv(b.conv(x, 8, 8, (3, 3), pads=[1] * 4), 8, 8, (1, 1))
    x = b.add(x, y)
    model = graphs.check(b, b.conv(b.op("Clip", b.add(x, x), b.constant(np.uint8(3))), 4, 8, (1, 1)))
    assert graphs.kinds(model).count("Transpose") == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_squeeze_and_excitation(seed):
    b = graphs.Builder(seed)
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 8, 3, (1, 1))
    gate = b.conv(b.conv(b.average(x, 36), 4, 8, (1, 1)), 8, 4, (1, 1))
    graphs.check(b, b.multiply(x, gate))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("behind", [False, True])
def test_concatenations(axis, behind, seed):
    b = graphs.Builder(seed)
    x, z = b.input("x", ["N", 4, 5, 5]), b.input("z", ["N", 4, 5, 5])
    x = b.conv(x, 4, 4, (3, 3), pads=[1] * 4) if behind else x
    y = b.concat(x, z, axis=axis)
    graphs.check(b, b.op("Concat", y, y, axis=axis))


@pytest.mark.parametrize("shift", [7, 16])
@pytest.mark.parametrize("shape", [["N", 5, 8, 8], ["N", 3, 16], ["N", 2, 2, 4, 4]])
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_global_averages(shape, shift, behind, seed):
    b = graphs.Builder(seed)
    x = b.input("x", shape)
    if behind:
        x = b.conv(x, shape[1], shape[1], (1,) * len(shape[2:]))
    b.op("Flatten", b.average(x, int(np.prod(shape[2:])), shift), name="y")
    graphs.check(b, "y")


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 3], "strides": [2, 2]},
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]},
        {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [0, 1, 1, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 0, 1, 1]},
        {"kernel_shape": [1, 1], "strides": [2, 2]},
    ],
)
@pytest.mark.parametrize("shape", [["N", 3, 9, 8], ["N", 3, 10, 7], ["N", 3, "H", "W"]])
@pytest.mark.parametrize("behind", [False, True])
def test_max_pools(attributes, shape, behind):
    b = graphs.Builder(len(attributes))
    x = b.input("x", shape)
    x = b.conv(x, 3, 3, (1, 1)) if behind else x
    b.op("Identity", b.op("MaxPool", x, **attributes), name="y")
    if behind or "ceil_mode" not in attributes:
        model = graphs.check(b, "y", size=9)
        dropped = attributes["strides"] == [3, 3] if "strides" in attributes else False
        assert ("MaxPool" in graphs.kinds(model)) <= ("ceil_mode" in attributes and (shape[2] == "H" or dropped))


@pytest.mark.parametrize("shape", [["N", 3, 9], ["N", 2, 4, 5, 6]])
def test_max_pools_of_other_ranks(shape):
    b = graphs.Builder(0)
    dims = len(shape) - 2
    graphs.check(b, b.op("MaxPool", b.input("x", shape), kernel_shape=[2] * dims, strides=[2] * dims))


def test_moves_behind_a_convolution():
    b = graphs.Builder(1)
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 8, 3, (1, 1))
    pads = b.constant(np.array([0, 1, 0, 2, 0, 0, 1, 0]))
    x = b.conv(b.op("Pad", b.op("Identity", x), pads, b.constant(np.uint8(7))), 8, 9, (1, 1))
    x = b.op("Transpose", x, perm=[0, 2, 3, 1])
    shape = b.constant(np.array([0, -1, 8]))
    graphs.check(
        b, b.op("Reshape", x, shape), b.op("DepthToSpace", b.op("Transpose", x, perm=[0, 3, 1, 2]), blocksize=2)
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda b, x: b.op("QLinearSigmoid", x, b.one(), b.zero(), b.one(), b.zero(), domain=graphs.MICROSOFT), "form"),
        (lambda b, x: b.conv(x, 4, 3, (1, 1), factor=b.constant(np.float32(1 / 3))), "dyadic"),
        (lambda b, x: b.conv(x, 4, 3, (3, 3), auto_pad="SAME_UPPER"), "pads"),
        (lambda b, x: b.average(b.input("z", ["N", 3, "H", "W"]), 9), "dynamic"),
    ],
)
def test_refusals_name_the_operator(build, message):
    b = graphs.Builder(0)
    out = build(b, b.input("x", ["N", 3, 6, 6]))
    with pytest.raises(UnsupportedError, match=message) as caught:
        graphs.expanded(b.model(out))
    assert b.nodes[-1].op_type in str(caught.value)
    assert b.nodes[-1].name in str(caught.value)
    assert caught.value.hint


def test_an_unknown_number_of_channels_is_refused():
    b = graphs.Builder(0)
    out = b.conv(b.input("x", ["N", "C", 6, 6]), 4, 3, (3, 3))
    with pytest.raises(UnsupportedError, match="not known"):
        graphs.expanded(b.model(out))


def test_sums_that_int32_may_not_hold_are_refused():
    b = graphs.Builder(0)
    out = b.gemm(b.input("x", ["N", 300000]), 300000, 1)
    with pytest.raises(UnsupportedError, match="int32"):
        graphs.expanded(b.model(out))
