"""Tables of functions of one activation: as ONNX Runtime computes the operator in float, and the same everywhere."""

from __future__ import annotations

import math

import integer_functions as calls
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as small

from qcomp import runtime
from qcomp.errors import UnsupportedError
from qcomp.integer import tables

POSITIVE = {"Log", "Sqrt", "Acosh", "Reciprocal"}
INSIDE_ONE = {"Acos", "Asin", "Atanh"}
WITH_ALPHA = {"Celu", "Elu", "HardSigmoid", "LeakyRelu", "Selu", "ThresholdedRelu", "Swish"}
ERF = np.vectorize(math.erf, otypes=["d"])
FORMULAS = {
    "Erf": ERF,
    "Exp": np.exp,
    "Gelu": lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda x: np.where(x < 0, np.float32(0.01) * x, x),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Softplus": lambda x: np.logaddexp(0, x),
    "Swish": lambda x: x / (1 + np.exp(-x)),
    "Tanh": np.tanh,
}


def operator(kind, *inputs, opset=21, rank=2, **attributes) -> ir.Node:
    """The node, in a graph; an input is ``"x"`` or a number."""
    b = small.Builder()
    x = b.input("x", [f"d{i}" for i in range(rank)])
    b.op(kind, *(x if isinstance(i, str) else b.constant(i) for i in inputs or ("x",)), name="y", **attributes)
    model = onnx.helper.make_model(b.graph(["y"]), opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(model).graph[0]


def in_float(node, real):
    """What ONNX Runtime computes in float32."""
    model = ir.Model(node.graph, ir_version=10)
    return runtime.session(model).run(None, {"x": real.astype(np.float32)[None]})[0][0].astype(np.float64)


def quantized(real, scale, zero_point):
    return np.clip(np.rint(real / scale) + zero_point, 0, 255).astype(np.uint8)


def input_of(kind, rng):
    """A scale and zero point on whose values the operator is defined."""
    if kind in INSIDE_ONE:
        return 0.999 / 128, 128
    if kind in POSITIVE:
        return rng.uniform(1.01, 1.1) if kind == "Acosh" else calls.scale(rng), 0
    return rng.uniform(0.01, 0.1), calls.even(rng)


def close(table, real, scale, zero_point):
    """The same but where float32 rounds the other way, near a half."""
    expected = quantized(real, scale, zero_point)
    scaled = np.clip(real / scale, -1000, 1000)
    distance = np.abs(scaled - np.floor(scaled) - 0.5)
    wrong = table != expected
    assert (distance[wrong] < 1e-2).all()
    assert np.abs(table.astype(int) - expected)[wrong].max(initial=0) <= 1
    assert wrong.sum() <= 3


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", sorted(tables.UNARY - {"Swish", "Acosh"}))
def test_as_onnx_runtime_computes_it(kind, seed):
    rng = np.random.default_rng(seed)
    x_scale, x_zero_point = input_of(kind, rng)
    alpha = {"alpha": float(rng.uniform(0.05, 2))} if seed and kind in WITH_ALPHA else {}
    node = operator(kind, *(("x", -0.5, 0.7) if kind == "Clip" else ("x",)), **alpha)
    real = x_scale * (np.arange(256) - x_zero_point)
    expected = in_float(node, real)
    finite = expected[np.isfinite(expected)]
    y_scale = max((finite.max() - finite.min()) / 255, 1e-3) * rng.uniform(0.7, 1.5)
    y_zero_point = calls.even(rng)
    close(tables.of_node(node, x_scale, x_zero_point, y_scale, y_zero_point), expected, y_scale, y_zero_point)


@pytest.mark.parametrize("kind", FORMULAS)
def test_as_its_formula(kind):
    node, real = operator(kind), 0.04 * (np.arange(256) - 128.0)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(tables.evaluator(node)(real), FORMULAS[kind](real), rtol=1e-6, atol=1e-7)
        expected = FORMULAS[kind](real)
    np.testing.assert_array_equal(tables.of_node(node, 0.04, 128, 0.0311, 64), quantized(expected, 0.0311, 64))


def test_gelu_by_tanh():
    node, real = operator("Gelu", approximate="tanh"), 0.04 * (np.arange(256) - 128.0)
    expected = 0.5 * real * (1 + np.tanh(math.sqrt(2 / math.pi) * (real + 0.044715 * real**3)))
    np.testing.assert_allclose(tables.evaluator(node)(real), expected, atol=1e-7)


@pytest.mark.parametrize("kind", sorted(tables.WITH_NUMBER))
@pytest.mark.parametrize("number_first", [False, True])
def test_with_a_number(kind, number_first):
    number_first = number_first and kind != "PRelu"  # ONNX Runtime's slope does not broadcast its input
    node = operator(kind, *((np.float32([[1.7]]), "x") if number_first else ("x", np.float32([[1.7]]))))
    assert tables.argument(node).name == "x"
    x_scale, x_zero_point, y_scale, y_zero_point = 0.0317, 0 if kind == "Pow" else 100, 0.0973, 20
    expected = in_float(node, x_scale * (np.arange(256) - x_zero_point))
    close(tables.of_node(node, x_scale, x_zero_point, y_scale, y_zero_point), expected, y_scale, y_zero_point)


def test_of_the_same_activation_twice():
    node = operator("Mul", "x", "x")
    squares = (0.1 * (np.arange(256) - 100.0)) ** 2
    np.testing.assert_array_equal(tables.of_node(node, 0.1, 100, 0.7, 2), quantized(squares, 0.7, 2))


def test_halves_round_to_even():
    table = tables.table_of(lambda x: x, 0.5, 0, 1.0, 0)
    np.testing.assert_array_equal(table[:8], np.uint8([0, 0, 1, 2, 2, 2, 3, 4]))


def test_infinities_saturate():
    table = tables.of_node(operator("Log"), 0.1, 0, 0.1, 100)
    assert table[0] == 0
    assert tables.of_node(operator("Reciprocal"), 0.1, 0, 0.1, 100)[0] == 255
    assert tables.of_node(operator("Exp"), 10.0, 0, 0.1, 100)[255] == 255


@pytest.mark.parametrize(("kind", "inputs"), [("Sqrt", ("x",)), ("Log", ("x",)), ("Pow", ("x", 0.5))])
def test_where_it_is_undefined_the_error_names_it(kind, inputs):
    with pytest.raises(UnsupportedError, match=rf"{kind} 'node_y': it is undefined at -1"):
        tables.of_node(operator(kind, *inputs), 0.5, 2, 0.1, 0)


@pytest.mark.parametrize(
    "node",
    [
        operator("Add", "x", np.float32([1, 2])),
        operator("Add", "x", np.float32([[[1]]])),
        operator("Softmax"),
        operator("Relu", domain="com.microsoft"),
        operator("Add", 1.0, 2.0),
    ],
)
def test_what_is_no_function_of_one_activation_is_refused(node):
    assert tables.argument(node) is None
    with pytest.raises(UnsupportedError, match="no function of one activation"):
        tables.of_node(node, 0.1, 0, 0.1, 0)


@pytest.mark.parametrize("seed", range(4))
def test_every_executor_agrees(seed):
    rng = np.random.default_rng(seed)
    constants = {"table": rng.integers(0, 256, 256).astype(np.uint8)}
    shape = rng.integers(1, 7, 1 + seed)
    dims = [f"n{i}" for i in range(len(shape))]
    x = rng.integers(0, 256, shape).astype(np.uint8)
    expected = constants["table"][x]
    calls.agree(calls.call("Table", constants, dims), x, expected)
    calls.agree(calls.call("Table", constants, dims, fast=True), x, expected, reference=False)
