"""A layer normalization spelled out becomes one operator."""

from __future__ import annotations

import numpy as np
import pytest
import small_graphs as small

from qcomp import files
from qcomp.calibration.observers import Statistics
from qcomp.passes.fuse_layer_norm import FuseLayerNorm


def spelled(b, x, *, square="Pow", divide=True, mean_axis=-1, epsilon=1e-5, swapped=False):
    """``(x - mean) / sqrt(variance + epsilon)``, as exporters below opset 17 write it."""
    axis = b.constant(np.array([mean_axis], np.int64))
    d = b.op("Sub", x, b.op("ReduceMean", x, axis))
    squared = b.op("Pow", d, b.constant(np.float32(2))) if square == "Pow" else b.op("Mul", d, d)
    variance, small_number = b.op("ReduceMean", squared, axis), b.constant(np.float32(epsilon))
    deviation = b.op("Sqrt", b.op("Add", *((small_number, variance) if swapped else (variance, small_number))))
    return b.op("Div", d, deviation) if divide else b.op("Mul", b.op("Reciprocal", deviation), d)


def fused(proto, *, changed=True):
    model = files.load(proto)
    inputs = small.feeds(model, 3)
    before = small.run(model, inputs)
    assert FuseLayerNorm().run(model, Statistics()) is changed
    assert small.moved(before, small.run(model, inputs)) < 1e-5
    assert not FuseLayerNorm().run(model, Statistics())
    return small.kinds(model)


@pytest.mark.parametrize("case", [{}, {"square": "Mul"}, {"divide": False}, {"swapped": True}, {"mean_axis": 2}])
@pytest.mark.parametrize("shape", [("N", 5, 8), (2, 5, 8)])
def test_with_scale_and_bias(case, shape):
    b = small.Builder()
    scaled = b.op("Mul", b.random(8), spelled(b, b.input("x", shape), **case))
    b.op("Add", scaled, b.random(8), name="y")
    assert fused(b.model("y")) == ["LayerNormalization"]


def test_with_scale_alone():
    b = small.Builder()
    b.op("Mul", spelled(b, b.input("x", ("N", 5, 8))), b.random(8), name="y")
    assert fused(b.model("y")) == ["LayerNormalization"]


def test_with_neither():
    b = small.Builder()
    b.op("Relu", spelled(b, b.input("x", ("N", 5, 8))), name="y")
    assert fused(b.model("y")) == ["LayerNormalization", "Relu"]


def test_a_scale_of_another_shape_stays_behind():
    b = small.Builder()
    b.op("Mul", spelled(b, b.input("x", ("N", 5, 8))), b.random(5, 8), name="y")
    assert fused(b.model("y")) == ["LayerNormalization", "Mul"]


def test_one_behind_another():
    b = small.Builder()
    first = b.op("Add", b.op("Mul", spelled(b, b.input("x", ("N", 5, 8))), b.random(8)), b.random(8))
    b.op("Mul", spelled(b, first), b.random(8), name="y")
    assert fused(b.model("y")) == ["LayerNormalization", "LayerNormalization"]


@pytest.mark.parametrize("output", ["deviation", "variance"])
def test_what_others_read_is_still_computed(output):
    b = small.Builder()
    x = b.input("x", ("N", 5, 8))
    b.op("Relu", spelled(b, x), name="y")
    proto = b.model("y")
    inner = {"deviation": "Sub", "variance": "Sqrt"}[output]
    name = next(n.output[0] for n in proto.graph.node if n.op_type == inner)
    proto.graph.output.append(type(proto.graph.output[0])(name=name, type=proto.graph.output[0].type))
    proto.graph.output[-1].type.tensor_type.ClearField("shape")
    kinds = fused(proto)
    assert "LayerNormalization" in kinds
    assert inner in kinds


def test_another_axis_stays():
    b = small.Builder()
    b.op("Relu", spelled(b, b.input("x", ("N", 5, 8)), mean_axis=1), name="y")
    assert "LayerNormalization" not in fused(b.model("y"), changed=False)


def test_a_dynamic_last_axis_stays():
    b = small.Builder()
    b.op("Relu", spelled(b, b.input("x", ("N", 5, "C"))), name="y")
    assert "LayerNormalization" not in fused(b.model("y"), changed=False)
