"""The integer graph in standard integer operators: the same integers, and no float between first and last."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as small
from onnx import TensorProto, helper

from qcomp.calibration.observers import Statistics
from qcomp.passes.expand_integer import ExpandInteger

sys.path.insert(0, str(Path(__file__).parent.parent / "expansion"))
import integer_graphs as graphs

FLOAT = TensorProto.FLOAT


def classifier(b):
    """Convolutions of all kinds, a residual sum, a gate, pools and a concatenation."""
    x = b.op("QuantizeLinear", b.input("x", ["N", 3, 16, 16], FLOAT), b.constant(np.float32(0.05)), b.zero(128))
    x = b.conv(x, 8, 3, (3, 3), pads=[1] * 4, strides=[2, 2])
    y = b.conv(x, 8, 1, (3, 3), pads=[1] * 4, group=8)
    x = b.op("Clip", b.add(x, b.conv(y, 8, 8, (1, 1))), b.constant(np.uint8(2)), b.constant(np.uint8(250)))
    x = b.multiply(x, b.conv(b.average(x, 64), 8, 8, (1, 1)))
    x = b.concat(b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), b.conv(x, 4, 8, (2, 2), strides=[2, 2]))
    return b.conv(x, 6, 12, (3, 3))


def finished(b, x, shape):
    """From integers to logits."""
    x = b.gemm(b.op("Flatten", b.average(x, shape)), 6, 5)
    return b.op("DequantizeLinear", x, b.constant(np.float32(0.1)), b.zero(), name="logits")


def floats(builder):
    """Random inputs in the range that the first QuantizeLinear holds."""
    return {v.name: builder.rng.normal(0, 3, (2, 3, 16, 16)).astype("f4") for v in builder.inputs}


def float_tensors(model):
    """The tensors of a float type, as onnx infers them, constants included."""
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    kinds |= {t.name: t.data_type for t in inferred.initializer}
    values = {name for node in inferred.node for name in (*node.input, *node.output) if name}
    assert values <= set(kinds)
    return {name for name in values if graphs.ir.DataType(kinds[name]) in graphs.FLOATS}


@pytest.mark.parametrize("seed", range(6))
def test_no_float_tensor_between_first_and_last(seed):
    b = graphs.Builder(seed)
    finished(b, classifier(b), 4)
    proto, feeds = b.model("logits", dtype=FLOAT), floats(b)
    model = graphs.expanded(proto)
    ends = [n for n in model.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert [n.op_type for n in ends] == ["QuantizeLinear", "DequantizeLinear"]
    assert float_tensors(model) == {"x", "logits", *(n.inputs[1].name for n in ends)}
    wanted = graphs.run(ir.from_proto(proto), feeds, optimize=False)[0]
    for found in (graphs.run(model, feeds)[0], graphs.run(model, feeds, optimize=False)[0]):
        assert np.array_equal(wanted, found)


def test_a_dynamic_height_and_width():
    for seed in range(4):
        b = graphs.Builder(seed)
        x = b.conv(b.input("x", ["N", 3, "H", "W"]), 8, 3, (3, 3), pads=[1] * 4, strides=[2, 2])
        x = b.add(x, b.conv(x, 8, 1, (3, 3), pads=[1] * 4, group=8))
        x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        graphs.check(b, b.conv(x, 4, 8, (2, 2)), size=13)


def test_a_value_that_is_an_output_and_read_in_both_orders():
    b = graphs.Builder(1)
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 8, 3, (1, 1))
    y = b.conv(x, 4, 8, (3, 3))
    graphs.check(b, x, b.op("Reshape", x, b.constant(np.array([0, -1]))), y)


def test_a_float_island_stays():
    b = graphs.Builder(2)
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 4, 3, (1, 1))
    scale, zero = b.constant(np.float32(0.1)), b.zero(100)
    x = b.op("Softplus", b.op("DequantizeLinear", x, scale, zero))
    x = b.conv(b.op("QuantizeLinear", x, scale, zero), 4, 4, (1, 1))
    assert "Softplus" in graphs.kinds(graphs.check(b, x))


def test_a_branch_reads_the_value_in_the_order_of_the_file():
    b, then, other = graphs.Builder(3), graphs.Builder(4), graphs.Builder(5)
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 4, 3, (1, 1))
    then.op("Flatten", then.op("Max", x, then.constant(np.uint8(7))), name="then_y")
    other.op("Flatten", x, name="else_y")
    bodies = {}
    for name, part, out in (("then_branch", then, "then_y"), ("else_branch", other, "else_y")):
        info = helper.make_tensor_value_info(out, graphs.UINT8, None)
        bodies[name] = helper.make_graph(part.nodes, name, [], [info], part.tensors)
    condition = b.op("Equal", b.op("Size", x), b.constant(np.array(2 * 4 * 36)))
    then.tensors[0].name = "seven"
    then.nodes[0].input[1] = bodies["then_branch"].node[0].input[1] = "seven"
    bodies["then_branch"].initializer[0].name = "seven"
    graphs.check(b, b.op("If", condition, **bodies))


def test_calls_of_functions_stay():
    b = graphs.Builder(6)
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 4, 3, (1, 1))
    x = b.op("Turn", x, domain="qcomp")
    proto = b.model(b.op("Identity", x))
    body = [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2])]
    proto.functions.append(helper.make_function("qcomp", "Turn", ["x"], ["y"], body, [helper.make_opsetid("", 21)]))
    proto.opset_import.append(helper.make_opsetid("qcomp", 1))
    model = ir.from_proto(proto)
    assert ExpandInteger().run(model, Statistics())
    assert "Turn" in graphs.kinds(model)
    feeds = b.feeds()
    assert np.array_equal(*(graphs.run(m, feeds)[0] for m in (ir.from_proto(proto), model)))


@pytest.mark.parametrize("kind", list(small.SMALL))
def test_a_float_model_stays_as_it_is(kind):
    model = ir.from_proto(small.SMALL[kind](0))
    before = small.serialized(model)
    assert not ExpandInteger().run(model, Statistics())
    assert small.serialized(model) == before


def test_equal_constants_are_one():
    b = graphs.Builder(7)
    x = b.input("x", ["N", 16, 12, 12])
    for _ in range(3):
        x = b.conv(x, 16, 16, (3, 3), pads=[1] * 4, factor=b.constant(np.float32(2**-8)), bias=False)
    model = graphs.check(b, x)
    tensors = [v.const_value for v in model.graph.initializers.values() if v.uses()]
    assert len({(t.dtype, tuple(t.shape), t.tobytes()) for t in tensors}) == len(tensors)
