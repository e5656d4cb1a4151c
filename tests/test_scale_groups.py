from __future__ import annotations

import sys

import numpy as np
import pytest
import quantized
import small_graphs as small

from qcomp import graph, operators, scale_groups
from qcomp.calibration.observers import Statistics
from qcomp.errors import CalibrationError
from qcomp.quantization import qtype


def ints(b, *values):
    return b.constant(np.array(values, np.int64))


def assigned(b, *outputs, method="minmax", kind="uint8"):
    """The parameters of every float value, by name, and the finder."""
    model = quantized.loaded(b.model(*outputs))
    values = [v for v in graph.all_values(model.graph) if graph.is_float(v) and not v.is_initializer()]
    observations = [quantized.Observation(v, quantized.Distribution()) for v in values]
    stats = quantized.statistics(model, observations, small.feeds(model, 0, 8))
    finder = scale_groups.Ranges(stats, method, qtype.parse(kind, ""))
    found = scale_groups.assign(values, model.graph, finder)
    return {str(v.name): found[id(v)] for v in values}, finder


def test_operators_that_move_integers_share_one_object():
    b = small.Builder(0)
    x = b.op("MaxPool", b.op("Conv", b.input("x", ["N", 3, 8, 8]), b.random(4, 3, 3, 3), name="c"), kernel_shape=[2, 2])
    left, right = b.ops("Split", b.op("Reshape", x, ints(b, -1, 100)), names=("l", "r"), axis=1, num_outputs=2)
    b.op("Transpose", left, perm=[1, 0], name="t")
    b.op("Relu", right, name="y")
    found, _ = assigned(b, "t", "y")
    shared = {id(found[name][0]) for name in ("c", x, "l", "r", "t", "y")}
    assert len(shared) == 1
    assert found["t"][1].name == "c"
    assert found["x"][0] is not found["c"][0]


def test_a_group_takes_the_range_of_what_is_computed_not_of_what_is_moved():
    b = small.Builder(0)
    b.op("Relu", b.op("Conv", b.input("x", ["N", 3, 8, 8]), b.random(4, 3, 3, 3), name="c"), name="y")
    found, finder = assigned(b, "c", "y")
    params = found["y"][0]
    low, high = finder.of(found["c"][1])
    assert low < 0 < high
    assert float(params.scale) * (params.qtype.qmin - int(params.zero_point)) <= low + float(params.scale)


def test_a_concat_shares_the_scale_of_inputs_of_about_its_range():
    b = small.Builder(0)
    x = b.input("x", ["N", 3, 8, 8])
    factors = {"a": 1.0, "b": 0.5, "c": 0.01}
    parts = [b.op("Mul", x, b.constant(f), name=name) for name, f in factors.items()]
    b.op("Concat", *parts, axis=1, name="y")
    found, _ = assigned(b, "y")
    assert found["a"][0] is found["b"][0] is found["y"][0]
    assert found["c"][0] is not found["y"][0]
    assert 50 < float(found["y"][0].scale / found["c"][0].scale) < 200


def test_ranges_of_mathematics():
    b = small.Builder(0)
    x = b.input("x", ["N", 8])
    for kind in ("Sigmoid", "Softmax", "Tanh"):
        b.op(kind, x, name=kind)
    b.op("Gelu", x, name="gelu")
    b.op("Elu", x, name="elu")
    b.op("Elu", x, alpha=5.0, name="steep")
    found, finder = assigned(b, "Sigmoid", "Softmax", "Tanh", "gelu", "elu", "steep")
    values = {name: value for name, (_, value) in found.items()}
    assert finder.of(values["Sigmoid"]) == (0.0, 255 / 256)
    assert finder.of(values["Softmax"]) == (0.0, 1.0)
    assert finder.of(values["Tanh"]) == (-1.0, 1.0)
    assert finder.of(values["gelu"])[0] == operators.LEAST_OUTPUT["Gelu"]
    assert finder.of(values["elu"])[0] == -1.0
    assert -5.0 <= finder.of(values["steep"])[0] < -2.5


def test_the_range_of_a_constant_is_its_own_and_holds_zero():
    b = small.Builder(0)
    b.op("Add", b.input("x", ["N", 2]), b.constant(np.array([3.0, 5.0]), "k"), name="y")
    model = quantized.loaded(b.model("y"))
    finder = scale_groups.Ranges(Statistics(), "minmax", qtype.parse("uint8", ""))
    assert finder.of(model.graph.initializers["k"]) == (0.0, 5.0)
    with pytest.raises(CalibrationError, match="no statistics of 'y'"):
        finder.of(model.graph.outputs[0])


def test_zero_is_exact_in_every_range():
    b = small.Builder(0)
    x = b.op("Add", b.input("x", ["N", 8]), b.constant(30.0), name="above")
    b.op("Sub", x, b.constant(90.0), name="below")
    for kind in ("uint8", "int8", "uint4", "uint16"):
        found, _ = assigned(small_copy(b), "above", "below", kind=kind)
        for params, _ in found.values():
            assert params.dequantize(params.quantize(np.zeros(1, "f4"))) == 0


def small_copy(b):
    other = small.Builder(0)
    other.nodes, other.tensors, other.inputs = list(b.nodes), list(b.tensors), list(b.inputs)
    return other


def moved(length):
    b = small.Builder(0)
    x = b.input("x", ["N", 4, 4])
    for _ in range(length):
        x = b.op("Transpose", b.op("Add", x, b.constant(1.0)), perm=[0, 2, 1])
    return b.model(x)


def work(length):
    model, count = quantized.loaded(moved(length)), 0
    values = [v for v in graph.all_values(model.graph) if not v.is_initializer()]
    stats = quantized.statistics(
        model, [quantized.Observation(v, quantized.Distribution()) for v in values], small.feeds(model, 0, 1)
    )
    finder = scale_groups.Ranges(stats, "minmax", qtype.parse("uint8", ""))

    def tally(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        scale_groups.assign(values, model.graph, finder)
    finally:
        sys.setprofile(None)
    return count


def test_its_work_grows_linearly():
    assert work(160) <= 5 * work(40)


def test_one_long_group_costs_no_more_than_many():
    b = small.Builder(0)
    x = b.input("x", ["N", 4, 4])
    for _ in range(300):
        x = b.op("Transpose", x, perm=[0, 2, 1])
    b.op("Relu", x, name="y")
    found, _ = assigned(b, "y")
    assert len({id(params) for params, _ in found.values()}) == 1
