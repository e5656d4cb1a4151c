from __future__ import annotations

import numpy as np
import pytest
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp import files
from qcomp.calibration.observers import Statistics
from qcomp.passes.fold_affine import FoldAffine

seeds = st.integers(0, 2**16)
kinds = st.sampled_from(["Mul", "Div", "Add", "Sub"])


def fold(proto, *, changed=True):
    model = files.load(proto)
    inputs = small.feeds(model, 7)
    before = small.run(model, inputs)
    assert FoldAffine().run(model, Statistics()) is changed
    assert small.moved(before, small.run(model, inputs)) < 1e-5
    return model


def affine(b, kind, x, shape, *, first=False, name=""):
    """``kind`` by a constant away from zero, as its first or second input."""
    constant = b.constant(b.rng.uniform(0.5, 2.0, size=shape))
    return b.op(kind, *((constant, x) if first else (x, constant)), name=name)


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    steps=st.lists(
        st.tuples(kinds, st.sampled_from([(), (1,), (4, 1, 1), (1, 4, 1, 1)]), st.booleans()), min_size=1, max_size=4
    ),
    group=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
def test_chains_into_a_convolution_before_them(seed, op, steps, group, bias):
    b = small.Builder(seed)
    parameters = [b.random(4, 4 // group, 3, 3), *([b.random(4)] if bias else [])]
    x = b.op(op, b.input("x", ["N", 4, 6, 6]), *parameters, group=group, pads=[1] * 4)
    for kind, shape, first in steps:
        x = affine(b, kind, x, shape, first=first and kind != "Div")
    assert small.kinds(fold(b.model(x))) == [op]


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    kind=kinds,
    shape=st.sampled_from([(), (1, 1), (5,), (1, 5)]),
    trans_b=st.booleans(),
    alpha=st.sampled_from([1.0, 0.3]),
    beta=st.sampled_from([1.0, 2.5]),
    c=st.sampled_from([None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)]),
)
def test_into_a_gemm_before_it(seed, kind, shape, trans_b, alpha, beta, c):
    b = small.Builder(seed)
    weight = b.random(5, 6) if trans_b else b.random(6, 5)
    bias = [] if c is None else [b.random(*c)]
    x = b.op("Gemm", b.input("x", [3, 6]), weight, *bias, transB=int(trans_b), alpha=alpha, beta=beta)
    affine(b, kind, x, shape, name="y")
    assert small.kinds(fold(b.model("y"))) == ["Gemm"]


@pytest.mark.parametrize("kind", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("shape", [(), (5,)])
def test_into_a_matmul_of_matrices(kind, shape):
    b = small.Builder()
    affine(b, kind, b.op("MatMul", b.input("x", ["N", 6]), b.random(6, 5)), shape, name="y")
    assert small.kinds(fold(b.model("y"))) == (["MatMul"] if kind in ("Mul", "Div") else ["Gemm"])


@pytest.mark.parametrize("shape", [(), (5,), (1, 1, 5)])
def test_a_batched_matmul_takes_scales_also_through_its_bias(shape):
    b = small.Builder()
    x = b.op("Add", b.random(5), b.op("MatMul", b.input("x", ["N", 3, 6]), b.random(6, 5)))
    affine(b, "Mul", affine(b, "Div", x, shape), shape, name="y")
    assert small.kinds(fold(b.model("y"))) == ["MatMul", "Add"]


def test_a_batched_matmul_with_weights_of_rank_three():
    b = small.Builder()
    affine(b, "Mul", b.op("MatMul", b.input("x", [2, 3, 6]), b.random(2, 6, 5)), (5,), name="y")
    assert small.kinds(fold(b.model("y"))) == ["MatMul"]


@settings(deadline=None, max_examples=40)
@given(
    seed=seeds,
    steps=st.lists(st.tuples(kinds, st.sampled_from([(), (4, 1, 1)])), min_size=1, max_size=3),
    group=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
def test_chains_into_a_convolution_after_them(seed, steps, group, bias):
    b = small.Builder(seed)
    x = b.input("x", ["N", 4, 6, 6])
    for kind, shape in steps:
        x = affine(b, kind, x, shape)
    assert small.kinds(fold(b.model(b.conv(x, 4, 8, group=group, bias=bias)))) == ["Conv"]


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("kind", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("shape", [(), (6,)])
def test_into_a_matrix_product_after_it(op, kind, shape):
    b = small.Builder()
    b.op(op, affine(b, kind, b.input("x", ["N", 6]), shape), b.random(6, 5), name="y")
    shifts = kind in ("Add", "Sub")
    assert small.kinds(fold(b.model("y"))) == (["Gemm"] if shifts else [op])


def test_a_scale_passes_padding_and_a_shift_does_not(caplog):
    b = small.Builder()
    x = affine(b, "Sub", b.input("x", ["N", 4, 6, 6]), (4, 1, 1))
    conv = b.conv(affine(b, "Div", x, (4, 1, 1)), 4, 8, pads=[1] * 4)
    with caplog.at_level("INFO"):
        assert small.kinds(fold(b.model(conv))) == ["Add", "Conv"]
    assert "pads with zeros" in caplog.text


def test_a_transposed_convolution_after_it_takes_scales_only():
    b = small.Builder()
    x = affine(b, "Mul", affine(b, "Add", b.input("x", ["N", 4, 6, 6]), ()), (4, 1, 1))
    b.op("ConvTranspose", x, b.random(4, 3, 2, 2), name="y", group=2)
    assert small.kinds(fold(b.model("y"))) == ["Add", "ConvTranspose"]


def test_a_scale_that_widens_its_data_stays():
    b = small.Builder()
    conv = b.conv(affine(b, "Mul", b.input("x", ["N", 1, 6, 6]), (4, 1, 1)), 4, 8)
    assert small.kinds(fold(b.model(conv), changed=False)) == ["Mul", "Conv"]


@pytest.mark.parametrize("shape", [(6,), (6, 1), (1, 1, 6, 6), (2, 1, 1, 1), (1, 1, 1, 1, 1)])
def test_constants_that_vary_along_other_axes_stay(shape):
    b = small.Builder()
    affine(b, "Mul", b.conv(b.input("x", [2, 3, 6, 6]), 3, 4, 1), shape, name="y")
    assert small.kinds(fold(b.model("y"), changed=False)) == ["Conv", "Mul"]


def test_equal_kinds_in_a_row_become_one():
    b = small.Builder()
    x = affine(b, "Div", affine(b, "Mul", b.input("x", ["N", 3, 4]), (4,)), ())
    x = affine(b, "Sub", affine(b, "Add", affine(b, "Sub", x, ()), (3, 4)), (3, 4))
    b.op("Relu", x, name="y")
    assert small.kinds(fold(b.model("y"))) == ["Mul", "Add", "Relu"]


def test_constant_minus_something_is_not_merged():
    b = small.Builder()
    x = affine(b, "Sub", b.input("x", ["N", 3]), (), first=True)
    b.op("Relu", affine(b, "Add", x, ()), name="y")
    assert small.kinds(fold(b.model("y"), changed=False)) == ["Sub", "Add", "Relu"]


@pytest.mark.parametrize(
    ("kind", "first", "found"),
    [("Sub", False, ["Add"]), ("Div", False, ["Mul"]), ("Sub", True, ["Neg", "Add"]), ("Add", True, ["Add"])],
)
def test_what_stays_is_a_sum_or_a_product(kind, first, found):
    """Of several numbers; with one number it is a function of one activation, which has an integer form."""
    for shape in ((4, 1, 1), (1, 4, 6, 6)):
        b = small.Builder()
        b.op("Relu", affine(b, kind, b.input("x", ["N", 4, 6, 6]), shape, first=first), name="y")
        assert small.kinds(fold(b.model("y"), changed=kind != "Add")) == [*found, "Relu"]
    b = small.Builder()
    b.op("Relu", affine(b, kind, b.input("x", ["N", 4, 6, 6]), (), first=first), name="y")
    assert small.kinds(fold(b.model("y"), changed=False)) == [kind, "Relu"]


def test_differences_are_exact():
    b = small.Builder()
    b.op("Relu", affine(b, "Sub", b.input("x", ["N", 4]), (4,)), name="y")
    model = files.load(b.model("y"))
    inputs = small.feeds(model, 3)
    before = small.run(model, inputs)["y"]
    FoldAffine().run(model, Statistics())
    np.testing.assert_array_equal(small.run(model, inputs)["y"], before)


@pytest.mark.parametrize("behind", [True, False])
def test_a_negation_is_folded(behind):
    b = small.Builder()
    x = b.input("x", ["N", 3, 6, 6])
    result = b.op("Neg", b.conv(x, 3, 4)) if behind else b.conv(b.op("Neg", x), 3, 4, pads=[1] * 4)
    b.op("Relu", result, name="y")
    assert small.kinds(fold(b.model("y"))) == ["Conv", "Relu"]


def test_a_negation_joins_a_scale_before_it():
    b = small.Builder()
    b.op("Relu", b.op("Neg", affine(b, "Mul", b.input("x", ["N", 4]), (4,))), name="y")
    assert small.kinds(fold(b.model("y"))) == ["Mul", "Relu"]


def test_the_half_of_a_gelu_stays():
    assert small.kinds(fold(small.attention(0))).count("Mul") == 2


@pytest.mark.parametrize("why", ["several users", "an output", "not constant", "constant / x"])
def test_refused(why):
    b = small.Builder()
    conv = b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4)
    constant = b.input("s", [4, 1, 1]) if why == "not constant" else b.random(4, 1, 1)
    kind, operands = ("Div", (constant, conv)) if why == "constant / x" else ("Mul", (conv, constant))
    b.op(kind, *operands, name="y")
    outputs = {"several users": [b.op("Relu", conv)], "an output": [conv]}.get(why, [])
    fold(b.model("y", *outputs), changed=False)


def test_shared_weights_and_constants_are_copied():
    b = small.Builder()
    x, weight, bias = b.input("x", ["N", 4, 5, 5]), b.random(4, 4, 1, 1, name="w"), b.random(4, name="b")
    scale = b.random(4, 1, 1)
    b.op("Mul", b.op("Conv", x, weight, bias), scale, name="y")
    b.op("Add", b.op("Conv", x, weight, bias), scale, name="z")
    model = fold(b.model("y", "z"))
    assert small.kinds(model) == ["Conv", "Conv"]
    assert [v.name for v in model.graph.outputs] == ["y", "z"]


def test_division_by_zero_stays():
    b = small.Builder()
    b.op("Div", b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4), b.constant(np.zeros((4, 1, 1))), name="y")
    model = files.load(b.model("y"))
    assert not FoldAffine().run(model, Statistics())
