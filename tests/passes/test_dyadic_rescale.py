"""The Q/DQ graph as integer operators: which ones, what they compute, what is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small
from onnx import TensorProto, helper

from qcomp import graph, noted_scales
from qcomp.calibration.observers import Statistics
from qcomp.errors import UnsupportedError
from qcomp.passes.dyadic_rescale import DyadicRescale
from qcomp.quantization.dyadic import Dyadic
from qcomp.rescale.linear import ACCUMULATOR

LINE = f"{quantized.WITHOUT_CHOICE},dyadic-rescale"
QDQ = quantized.WITHOUT_CHOICE


def kinds(model: ir.Model) -> list[str]:
    inner = [n.op_type for n in model.graph if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    assert sum(n.op_type == "QuantizeLinear" for n in model.graph) == len(model.graph.inputs)
    return inner


def build(function, seed=1):
    b = small.Builder(seed)
    function(b, b.input("x", ["N", 4, 8, 8]))
    return b.model("y")


def conv(b, x):
    b.op("Relu", b.conv(x, 4, 6, pads=[1, 0, 2, 1], strides=[2, 1]), name="y")


def grouped(b, x):
    b.op("Clip", b.conv(x, 4, 8, group=4, bias=False), b.constant(0.0), b.constant(6.0), name="y")


def gemm(b, x):
    b.op("Gemm", b.op("Flatten", x), b.random(7, 256), b.random(7), transB=1, name="y")


def matmul(b, x):
    b.op("MatMul", x, b.random(8, 5), name="y")


def matmul_with_bias(b, x):
    b.op("Add", b.op("MatMul", x, b.random(8, 5)), b.random(5), name="y")


def two_activations(b, x):
    b.op("MatMul", x, b.op("Transpose", x, perm=[0, 1, 3, 2]), name="y")


def residual(b, x):
    b.op("Relu", b.op("Add", x, b.conv(x, 4, 4, pads=[1] * 4)), name="y")


def product(b, x):
    b.op("Mul", x, b.conv(x, 4, 1, kernel=1), name="y")


def mean(b, x):
    b.op("GlobalAveragePool", x, name="y")


def mean_of_rows(b, x):
    b.op("ReduceMean", x, b.constant(np.array([-1])), keepdims=0, name="y")


def maximum(b, x):
    b.op("GlobalMaxPool", b.op("MaxPool", x, kernel_shape=[2, 2]), name="y")


def unequal_concat(b, x):
    wide = b.op("Mul", b.conv(x, 4, 2, kernel=1), b.constant(50.0))
    b.op("Concat", x, wide, axis=1, name="y")


def moves(b, x):
    x = b.op("Transpose", b.op("Slice", x, *(b.constant(np.array([v])) for v in (1, 7, 2))), perm=[0, 2, 3, 1])
    parts = b.ops("Split", x, b.constant(np.array([1, 3])), names=("p0", "p1"), axis=3)
    b.op("Concat", parts[1], parts[0], axis=3, name="y")


def table(b, x):
    b.op("HardSwish", b.conv(x, 4, 4), name="y")


def softmax(b, x):
    b.op("Softmax", x, name="y")


def layer_norm(b, x):
    b.op("LayerNormalization", x, b.random(8), b.random(8), name="y")


def resize(b, x):
    b.op("Resize", x, "", b.constant(np.array([1, 1, 2, 2], "f4")), mode="nearest", name="y")


CASES = {
    conv: ["QLinearConv"],
    grouped: ["QLinearConv"],
    gemm: ["Flatten", "QGemm"],
    matmul: ["QLinearMatMul"],
    matmul_with_bias: ["Reshape", "QGemm", "Reshape"],
    two_activations: ["Transpose", "QLinearMatMul"],
    residual: ["QLinearConv", "QLinearAdd"],
    product: ["QLinearConv", "QLinearMul"],
    mean: ["QLinearGlobalAveragePool"],
    mean_of_rows: ["ReduceMean"],
    maximum: ["MaxPool", "ReduceMax"],
    unequal_concat: ["QLinearConv", "QLinearConcat"],
    moves: ["Slice", "Transpose", "Split", "Concat"],
    table: ["QLinearConv", "Table"],
    softmax: ["Softmax"],
    layer_norm: ["LayerNormalization"],
    resize: ["Shape", "Concat", "Resize"],
}
every_case = pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)


@every_case
def test_each_operator_becomes_one_of_integers(function):
    found = kinds(quantized.quantize(build(function), line=LINE))
    assert [kind for kind in found if kind != "Clip"] == CASES[function]


@every_case
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_integers_are_those_of_the_qdq_graph_but_for_rounding(function, seed):
    proto = build(function, seed)
    before, after = (quantized.quantize(proto, line=line) for line in (QDQ, LINE))
    inputs = small.feeds(before, seed + 50, 5)
    old, new = (small.run(model, inputs)["y"] for model in (before, after))
    step = float(graph.constant(next(n for n in after.graph if n.op_type == "DequantizeLinear").inputs[1]))
    difference = np.rint((old - new) / step)
    assert np.abs(difference).max() <= (2 if function in (softmax, layer_norm) else 1)
    assert (difference == 0).mean() > 0.95


@every_case
def test_optimized_and_unoptimized_agree_bit_for_bit(function):
    after = quantized.quantize(build(function), line=LINE)
    inputs = {"x": 3 * small.feeds(after, 7, 6)["x"]}
    np.testing.assert_array_equal(small.run(after, inputs)["y"], quantized.run_optimized(after, inputs)[0])


def test_weights_and_biases_stay_as_they_are():
    before, after = (quantized.quantize(build(conv), line=line) for line in (QDQ, LINE))
    node = next(n for n in before.graph if n.op_type == "Conv")
    integers = [graph.constant(v.producer().inputs[0]) for v in node.inputs[1:]]
    found = next(n for n in after.graph if n.op_type == "QLinearConv")
    np.testing.assert_array_equal(graph.constant(found.inputs[3]), integers[0])
    np.testing.assert_array_equal(graph.constant(found.inputs[8]), integers[1])


def test_factors_are_dyadic_and_exact_for_the_noted_accumulator():
    after = quantized.quantize(build(conv), line=LINE)
    node = next(n for n in after.graph if n.op_type == "QLinearConv")
    weight, bias = graph.constant(node.inputs[3]).astype(int), graph.constant(node.inputs[8]).astype(int)
    zero = int(graph.constant(node.inputs[2]))
    bound = np.abs(weight).sum(axis=(1, 2, 3)) * max(zero, 255 - zero) + np.abs(bias)
    assert int(node.metadata_props[ACCUMULATOR]) == bound.max()
    assert Dyadic.of(graph.constant(node.inputs[4])).is_exact_in_float32(bound)
    assert all(graph.scalar(node.inputs[i]) == 1 for i in (1, 6))


def test_scales_are_noted_on_integer_values():
    before, after = (quantized.quantize(build(residual), line=line) for line in (QDQ, LINE))
    scales = {n.outputs[0].name: graph.constant(n.inputs[1]) for n in before.graph if n.op_type == "QuantizeLinear"}
    noted = {v.name: noted_scales.read(v) for n in after.graph for v in n.outputs if noted_scales.read(v)}
    assert len(noted) == 2
    assert all(np.float32(scale) == scales[name] for name, (scale, _) in noted.items())


def test_equal_scales_are_concatenated_as_they_are():
    def same(b, x):
        b.op("Concat", x, b.op("Transpose", x, perm=[0, 1, 3, 2]), axis=1, name="y")

    assert "QLinearConcat" not in kinds(quantized.quantize(build(same), line=LINE))


def test_dynamic_rows_of_a_matmul_with_bias():
    b = small.Builder(3)
    x = b.input("x", ["N", "L", 6])
    b.op("Add", b.op("MatMul", x, b.random(6, 5)), b.random(5), name="y")
    proto = b.model("y")
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 7, 6)).astype("f4")}
    before, after = (quantized.quantize(proto, feeds, line=line) for line in (QDQ, LINE))
    assert kinds(after) == ["Reshape", "QGemm", "Shape", "Concat", "Reshape"]
    assert quantized.sqnr(before, after, feeds)["y"] > 40


def test_the_shape_of_an_input_is_asked_of_its_integers():
    def computed(b, x):
        length = b.op("Gather", b.op("Shape", x), b.constant(np.array([0])))
        b.op("Reshape", x, b.op("Concat", length, b.constant(np.array([-1])), axis=0), name="y")

    after = quantized.quantize(build(computed), line=LINE)
    assert [user.op_type for user, _ in after.graph.inputs[0].uses()] == ["QuantizeLinear"]


def test_an_argmax_reads_integers():
    b = small.Builder(0)
    b.op("ArgMax", b.input("x", ["N", 4, 8, 8]), axis=1, name="y")
    output = helper.make_tensor_value_info("y", TensorProto.INT64, ["N", 1, 8, 8])
    after = quantized.quantize(b.model(output), line=LINE)
    node = next(n for n in after.graph if n.op_type == "ArgMax")
    assert node.inputs[0].dtype == ir.DataType.UINT8


def without_form(b, x):
    b.op("Asinh", b.conv(x, 4, 4), name="y")


def test_what_has_no_form_is_refused_by_name():
    with pytest.raises(UnsupportedError, match=r"Asinh 'node_y': Asinh has no integer form.*--allow-float"):
        quantized.quantize(build(without_form), line=LINE)


def test_what_has_no_form_stays_in_float_where_allowed():
    line = LINE.replace("dyadic-rescale", "dyadic-rescale{allow_float=true}")
    after = quantized.quantize(build(without_form), line=line)
    assert [n.op_type for n in after.graph][-3:] == ["QLinearConv", "DequantizeLinear", "Asinh"]


@pytest.mark.parametrize("matrix", ["activation", "batched weight"])
def test_an_add_kept_in_float_is_no_bias_of_what_has_none(matrix):
    b = small.Builder(1)
    x = b.input("x", ["N", 4, 8, 8])
    product = b.op(
        "MatMul", x, b.op("Transpose", x, perm=[0, 1, 3, 2]) if matrix == "activation" else b.random(4, 8, 8)
    )
    b.op("Relu", b.conv(b.op("Add", product, b.constant(5.0 * np.arange(8)), name="shifted"), 4, 4), name="y")
    line = LINE.replace("by=all", "by=all keep=node_shifted").replace("rescale", "rescale{allow_float=true}")
    after = quantized.quantize(b.model("y"), line=line)
    assert "Add" in [n.op_type for n in after.graph]
    before = quantized.quantize(b.model("y"), line=line.partition(",dyadic")[0])
    assert quantized.sqnr(before, after, small.feeds(before, 3, 5))["y"] > 40


def test_free_scales_are_refused_with_a_hint():
    line = LINE.replace("ranges=minmax", "ranges=minmax scales=free")
    with pytest.raises(UnsupportedError, match="scales=dyadic"):
        quantized.quantize(build(conv), line=line)


def test_weights_that_are_not_rounded_are_refused():
    with pytest.raises(UnsupportedError, match=r"Conv 'node_conv.*round-weights"):
        quantized.quantize(build(conv), line=LINE.replace("round-weights,", ""))


def rounded(operand: int):
    """A Q/DQ graph of a square product, and the DequantizeLinear of its weight (1) or bias (2)."""
    model = quantized.quantize(build(square), line=QDQ)
    node = next(n for n in model.graph if n.op_type == "Gemm")
    return model, node.inputs[operand].producer()


def square(b, x):
    b.op("Gemm", b.op("Flatten", x), b.random(256, 256), b.random(256), name="y")


def test_a_bias_on_another_grid_is_refused():
    model, dequantize = rounded(2)
    graph.set_constant(dequantize, 1, 2 * graph.constant(dequantize.inputs[1]), graph.Names(model.graph), "scale")
    with pytest.raises(UnsupportedError, match=r"Gemm 'node_y': its bias"):
        DyadicRescale().run(model, Statistics())


@pytest.mark.parametrize("operand", [1, 2])
def test_a_weight_or_bias_with_a_zero_point_is_refused(operand):
    model, dequantize = rounded(operand)
    ones = np.ones_like(graph.constant(dequantize.inputs[1]), graph.constant(dequantize.inputs[0]).dtype)
    graph.set_constant(dequantize, 2, ones, graph.Names(model.graph), "zero_point")
    with pytest.raises(UnsupportedError, match=r"Gemm 'node_y': its (weight|bias).*zero point"):
        DyadicRescale().run(model, Statistics())


def test_weight_scales_along_another_axis_are_refused():
    model, dequantize = rounded(1)
    dequantize.attributes["axis"] = ir.AttrInt64("axis", 0)
    with pytest.raises(UnsupportedError, match=r"Gemm 'node_y': its weight's scales"):
        DyadicRescale().run(model, Statistics())


def test_a_result_without_a_zero_point_is_refused():
    model, _ = rounded(1)
    product = next(n for n in model.graph if n.op_type == "Gemm")
    quantize = graph.only_user(product.outputs[0])
    quantize.resize_inputs(2)
    with pytest.raises(UnsupportedError, match=r"Gemm 'node_y'.*one even zero point"):
        DyadicRescale().run(model, Statistics())


def test_a_softmax_of_unknown_rank():
    b = small.Builder(0)
    b.op("Softmax", b.input("x", ["N", 4, 8, 8]), axis=1, name="y")
    model = quantized.quantize(b.model("y"), line=QDQ)
    for value in graph.all_values(model.graph):
        value.shape = None if not value.is_initializer() else value.shape
    assert DyadicRescale().run(model, Statistics())


@pytest.mark.parametrize("kind", ["int8", "uint16"])
def test_other_activations_than_uint8_are_refused(kind):
    line = LINE.replace("ranges=minmax", f"ranges=minmax activations={kind}")
    with pytest.raises(UnsupportedError, match="--activations uint8"):
        quantized.quantize(build(conv), line=line)


def test_a_mean_over_unknown_sizes_is_refused():
    b = small.Builder(0)
    b.op("GlobalAveragePool", b.input("x", ["N", 4, "H", "W"]), name="y")
    feeds = {"x": np.ones((2, 4, 5, 5), "f4")}
    with pytest.raises(UnsupportedError, match=r"GlobalAveragePool 'node_y'.*fixed height and width"):
        quantized.quantize(b.model("y"), feeds, line=LINE)


def test_an_accumulator_beyond_int32_is_refused():
    b = small.Builder(0)
    weight = b.rng.choice([-1.0, 1.0], (300_000, 2))
    b.op("MatMul", b.input("x", ["N", 300_000]), b.constant(weight, "w"), name="y")
    feeds = {"x": b.rng.normal(size=(4, 300_000)).astype("f4")}
    with pytest.raises(UnsupportedError, match=r"MatMul 'node_y': its accumulator may reach \d,\d+,\d+,\d+.*int32"):
        quantized.quantize(b.model("y"), feeds, line=LINE)


def test_nothing_to_do_on_an_integer_graph():
    after = quantized.quantize(build(residual), line=LINE)
    assert not DyadicRescale().run(after, None)
