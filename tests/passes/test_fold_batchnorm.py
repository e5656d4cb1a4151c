from __future__ import annotations

import numpy as np
import pytest
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp import files
from qcomp.calibration.observers import Statistics
from qcomp.passes.fold_batchnorm import FoldBatchNorm

seeds = st.integers(0, 2**16)


def fold(proto, *, changed=True):
    """Run the pass and hold its outputs to 1e-5."""
    model = files.load(proto)
    inputs = small.feeds(model, 7)
    before = small.run(model, inputs)
    assert FoldBatchNorm().run(model, Statistics()) is changed
    assert small.moved(before, small.run(model, inputs)) < 1e-5
    return model


@settings(deadline=None, max_examples=40)
@given(
    seed=seeds,
    kind=st.sampled_from(["Conv", "ConvTranspose"]),
    group=st.sampled_from([1, 2, 4]),
    multiplier=st.sampled_from([1, 2, 3]),
    bias=st.booleans(),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 1),
    epsilon=st.sampled_from([1e-5, 1e-3, 0.1]),
)
def test_into_a_convolution_before_it(seed, kind, group, multiplier, bias, stride, dilation, pad, epsilon):
    b = small.Builder(seed)
    cout = group * multiplier
    shape = (cout, 4 // group) if kind == "Conv" else (4, cout // group)
    parameters = [b.random(*shape, 3, 2), *([b.random(cout)] if bias else [])]
    attributes = {"group": group, "strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [pad] * 4}
    conv = b.op(kind, b.input("x", ["N", 4, 7, 8]), *parameters, **attributes)
    b.batch_norm(conv, cout, "y", epsilon=epsilon)
    assert small.kinds(fold(b.model("y"))) == [kind]


def gemm(b, trans_a, trans_b, alpha, beta, c):
    x = b.input("x", [6, 3] if trans_a else [3, 6])
    weight = b.random(5, 6) if trans_b else b.random(6, 5)
    bias = [] if c is None else [b.random(*c)]
    return b.op("Gemm", x, weight, *bias, transA=int(trans_a), transB=int(trans_b), alpha=alpha, beta=beta)


C_SHAPES = [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5), (1, 1)]
gemms = {
    "trans_a": st.booleans(),
    "trans_b": st.booleans(),
    "alpha": st.sampled_from([1.0, 0.3]),
    "beta": st.sampled_from([1.0, 2.5, 0.0]),
    "c": st.sampled_from(C_SHAPES),
}


@settings(deadline=None, max_examples=60)
@given(seed=seeds, **gemms)
def test_into_a_gemm_before_it(seed, trans_a, trans_b, alpha, beta, c):
    b = small.Builder(seed)
    b.batch_norm(gemm(b, trans_a, trans_b, alpha, beta, c), 5, "y")
    assert small.kinds(fold(b.model("y"))) == ["Gemm"]


@settings(deadline=None, max_examples=40)
@given(seed=seeds, **gemms)
def test_into_a_gemm_after_it(seed, trans_a, trans_b, alpha, beta, c):
    b = small.Builder(seed)
    normal = b.batch_norm(b.op("Relu", b.input("x", [6, 3] if trans_a else [3, 6])), 3 if trans_a else 6)
    weight = b.random(5, 6) if trans_b else b.random(6, 5)
    bias = [] if c is None else [b.random(*c)]
    attributes = {"transA": int(trans_a), "transB": int(trans_b), "alpha": alpha, "beta": beta}
    b.op("Gemm", normal, weight, *bias, name="y", **attributes)
    kinds = small.kinds(fold(b.model("y")))
    assert kinds == (["Relu", "Mul", "Add", "Gemm"] if trans_a else ["Relu", "Gemm"])


def test_into_a_matmul_of_matrices_which_becomes_a_gemm():
    b = small.Builder()
    b.batch_norm(b.op("MatMul", b.input("x", ["N", 6]), b.random(6, 5)), 5, "y")
    assert small.kinds(fold(b.model("y"))) == ["Gemm"]


def test_a_matmul_of_higher_rank_has_its_channels_elsewhere():
    b = small.Builder()
    b.batch_norm(b.op("MatMul", b.input("x", ["N", 5, 6]), b.random(6, 5)), 5, "y")
    assert small.kinds(fold(b.model("y"))) == ["MatMul", "Mul", "Add"]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_into_a_convolution_after_it_that_pads_nothing(group):
    b = small.Builder(group)
    b.conv(b.batch_norm(b.input("x", ["N", 4, 5, 5]), 4), 4, 8, group=group)
    assert small.kinds(fold(b.model(b.nodes[-1].output[0]))) == ["Conv"]


def test_not_into_a_convolution_after_it_that_pads_zeros():
    b = small.Builder()
    b.conv(b.batch_norm(b.input("x", ["N", 4, 5, 5]), 4), 4, 8, pads=[0, 1, 0, 0])
    assert small.kinds(fold(b.model(b.nodes[-1].output[0]))) == ["Mul", "Add", "Conv"]


def test_a_scale_alone_passes_through_padding():
    b = small.Builder()
    x, zero = b.input("x", ["N", 4, 5, 5]), b.constant(np.zeros(4))
    x = b.op("BatchNormalization", x, b.random(4), zero, zero, b.random(4, positive=True))
    b.conv(x, 4, 8, pads=[1] * 4)
    assert small.kinds(fold(b.model(b.nodes[-1].output[0]))) == ["Conv"]


def test_alone_it_becomes_mul_and_add_per_channel():
    b = small.Builder()
    b.op("Relu", b.batch_norm(b.input("x", ["N", 4, 5, 5]), 4), name="y")
    model = fold(b.model("y"))
    assert small.kinds(model) == ["Mul", "Add", "Relu"]
    assert [list(v.shape) for v in model.graph.initializers.values()] == [[4, 1, 1], [4, 1, 1]]


def test_the_name_of_its_result_survives():
    b = small.Builder()
    b.op("Relu", b.batch_norm(b.conv(b.input("x", ["N", 3, 5, 5]), 3, 4), 4, "normal"), name="y")
    assert fold(b.model("normal", "y")).graph[0].outputs[0].name == "normal"


def test_shared_weights_are_copied():
    b = small.Builder()
    x, weight, bias = b.input("x", ["N", 4, 5, 5]), b.random(4, 4, 1, 1, name="w"), b.random(4, name="b")
    b.batch_norm(b.op("Conv", x, weight, bias), 4, "y")
    b.op("Conv", x, weight, bias, name="z")
    model = fold(b.model("y", "z"))
    assert small.kinds(model) == ["Conv", "Conv"]
    assert set(model.graph.initializers) == {"w", "b", "w_1", "b_1"}


@pytest.mark.parametrize("why", ["several users", "an output"])
def test_not_into_a_value_that_others_read(why):
    b = small.Builder()
    conv = b.conv(b.input("x", ["N", 3, 5, 5]), 3, 4)
    b.batch_norm(conv, 4, "y")
    other = b.op("Relu", conv) if why == "several users" else conv
    kinds = small.kinds(fold(b.model("y", other)))
    assert sorted(set(kinds) - {"Relu"}) == ["Add", "Conv", "Mul"]


def test_training_mode_stays(caplog):
    b = small.Builder()
    conv = b.conv(b.input("x", ["N", 3, 5, 5]), 3, 4)
    parameters = [b.random(4) for _ in range(3)]
    names = ("y", "mean", "variance")
    b.ops("BatchNormalization", conv, *parameters, b.random(4, positive=True), names=names, training_mode=1)
    with caplog.at_level("INFO"):
        model = fold(b.model("y"), changed=False)
    assert small.kinds(model) == ["Conv", "BatchNormalization"]
    assert "BatchNormalization 'node_y': not folded: training_mode is set" in caplog.text


def test_parameters_that_are_inputs_stay(caplog):
    b = small.Builder()
    conv = b.conv(b.input("x", ["N", 3, 5, 5]), 3, 4)
    b.op("BatchNormalization", conv, b.input("s", [4]), b.random(4), b.random(4), b.random(4, positive=True), name="y")
    with caplog.at_level("INFO"):
        fold(b.model("y"), changed=False)
    assert "its parameters are not constant" in caplog.text


def test_weights_that_would_overflow_stay():
    b = small.Builder()
    x = b.op("Conv", b.input("x", ["N", 1, 5, 5]), b.constant(np.full((1, 1, 1, 1), 1e30)))
    one, zero = b.constant(np.full(1, 1e-9)), b.constant(np.zeros(1))
    x = b.op("Mul", x, b.constant(1e-30))
    b.op("BatchNormalization", b.op("Conv", x, b.constant(np.full((1, 1, 1, 1), 1e38))), one, zero, zero, one, name="y")
    model = files.load(b.model("y"))
    FoldBatchNorm().run(model, Statistics())
    assert all(np.isfinite(v.const_value.numpy()).all() for v in model.graph.initializers.values())
