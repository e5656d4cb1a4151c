from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small

from qcomp import graph, qdq
from qcomp.quantization import qtype
from qcomp.quantization.qparams import QParams


def model_of(*nodes, kinds=("Relu",)):
    b = small.Builder(0)
    x = b.input("x", ["N", 3, 4])
    for kind in kinds:
        x = b.op(kind, x, name=f"{kind.lower()}_out")
    b.op("Identity", x, name="y")
    return quantized.loaded(b.model("y"))


PER_TENSOR = QParams.asymmetric(-1.0, 3.0, qtype.parse("uint8", ""))
PER_CHANNEL = QParams.symmetric(np.array([1.0, 2.0, 3.0]), qtype.parse_weight("int4", ""), 1)


@pytest.mark.parametrize("params", [PER_TENSOR, PER_CHANNEL], ids=["tensor", "channel"])
@pytest.mark.parametrize("clipped", [False, True])
def test_reads_what_it_writes(params, clipped):
    model = model_of()
    writer = qdq.Writer(model.graph)
    value = model.graph[0].outputs[0]
    user = model.graph[1]
    scale = writer.scale(params, "v")
    integers = writer.quantize(value, scale, "v")
    if clipped:
        integers = writer.clip(integers, params.qtype.qmin, params.qtype.qmax, scale, "v")
    user.replace_input_with(0, writer.dequantize(integers, scale, "v"))
    quantized.check(model)
    found = qdq.read(user.inputs[0])
    assert found.source is value
    assert found.quantize.op_type == "QuantizeLinear"
    assert found.axis == params.axis
    assert found.bounds == ((params.qtype.qmin, params.qtype.qmax) if clipped else None)
    np.testing.assert_array_equal(found.scale, params.scale)
    np.testing.assert_array_equal(found.zero_point, params.zero_point)
    assert [str(n.op_type) for n in model.graph][:2] == ["Relu", "QuantizeLinear"]
    assert qdq.float_name(user.inputs[0]) == "v"


@pytest.mark.parametrize("params", [PER_TENSOR, PER_CHANNEL], ids=["tensor", "channel"])
def test_the_graph_computes_what_qparams_do(params):
    model = model_of()
    writer, value, user = qdq.Writer(model.graph), model.graph[0].outputs[0], model.graph[1]
    scale, kind = writer.scale(params, "v"), params.qtype
    integers = writer.clip(writer.quantize(value, scale, "v"), kind.qmin, kind.qmax, scale, "v")
    user.replace_input_with(0, writer.dequantize(integers, scale, "v"))
    inputs = {"x": 3 * small.feeds(model, 0, 50)["x"]}
    expected = params.dequantize(params.quantize(np.maximum(inputs["x"], 0)))
    np.testing.assert_array_equal(small.run(model, inputs)["y"], expected)


def test_reads_integers_that_are_a_constant():
    model = model_of()
    writer = qdq.Writer(model.graph)
    scale = writer.scale(PER_TENSOR, "k")
    constant = writer.constant(np.zeros((3, 4), np.uint8), "k")
    found = qdq.read(writer.dequantize(constant, scale, "k"))
    assert found.source is constant
    assert found.quantize is None
    assert found.clip is None


def test_a_missing_zero_point_is_zero():
    model = model_of()
    writer = qdq.Writer(model.graph)
    scale = writer.scale(PER_CHANNEL, "k")
    found = qdq.read(writer.dequantize(writer.constant(np.zeros((4, 3), np.int8), "k"), scale, "k", biased=False))
    np.testing.assert_array_equal(found.zero_point, np.zeros(3))


def test_other_values_are_not_quantized():
    model = model_of()
    assert qdq.read(None) is None
    assert qdq.read(model.graph.inputs[0]) is None
    assert qdq.read(model.graph[0].outputs[0]) is None


def test_new_nodes_stand_behind_the_producer_or_first():
    model = model_of(kinds=("Relu", "Neg"))
    writer = qdq.Writer(model.graph)
    scale = writer.scale(PER_TENSOR, "s")
    writer.quantize(model.graph.inputs[0], scale, "x")
    writer.quantize(model.graph[1].outputs[0], scale, "r")
    quantized.check(model)
    assert small.kinds(model)[:3] == ["QuantizeLinear", "Relu", "QuantizeLinear"]


def test_writes_where_the_first_node_was_removed_meanwhile():
    model = model_of(kinds=("Relu", "Neg"))
    writer = qdq.Writer(model.graph)
    first = model.graph[0]
    first.outputs[0].replace_all_uses_with(model.graph.inputs[0])
    model.graph.remove(first, safe=True)
    writer.quantize(model.graph.inputs[0], writer.scale(PER_TENSOR, "s"), "x")
    quantized.check(model)
    assert small.kinds(model)[0] == "QuantizeLinear"


def test_writes_into_an_empty_graph():
    target = ir.Graph([ir.val("x", ir.DataType.FLOAT, [3])], [], nodes=[], opset_imports={"": 21})
    writer = qdq.Writer(target)
    writer.quantize(target.inputs[0], writer.scale(PER_TENSOR, "s"), "x")
    assert len(target) == 1


def test_names_never_clash():
    model = model_of()
    names = graph.Names(model.graph)
    for name in ("v_scale", "v_zero_point", "v_quantized", "v_dequantized"):
        graph.initializer(model.graph, names, name, np.zeros(1, "f4"))
    writer = qdq.Writer(model.graph)
    scale = writer.scale(PER_TENSOR, "v")
    writer.dequantize(writer.quantize(model.graph[0].outputs[0], scale, "v"), scale, "v")
    quantized.check(model)
