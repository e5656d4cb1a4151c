from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from qdq_graphs import (
    FUSED,
    GRAPHS,
    MIXED,
    build,
    classifier,
    clip,
    depthwise,
    float_reader_of_the_input,
    image,
    ints,
    relu_beside_its_input_in_a_concat,
    relu_of_a_sum,
    two_clamps_of_one_conv,
    weights_shared_by_two_convs,
)

from qcomp import graph, operators, qdq
from qcomp.calibration.observers import Statistics
from qcomp.errors import CalibrationError
from qcomp.passes.insert_qdq import InsertQdq

REWRITES = quantized.FLOAT_REWRITES
LINE = f"{REWRITES},choose-precision{{by=all}},insert-qdq{{ranges=minmax}},round-weights"


def line(options: str) -> str:
    return f"{REWRITES},choose-precision{{by=all}},insert-qdq{{{options}}},round-weights"


def both(before, after, inputs):
    """The least SQNR, of every operator as it stands and as ONNX Runtime optimizes."""
    names, old = [str(o.name) for o in before.graph.outputs], small.run(before, inputs)
    optimized = dict(zip(names, quantized.run_optimized(after, inputs), strict=True))
    ratios = [*quantized.sqnr(before, after, inputs).values()]
    return min(*ratios, *(quantized.ratio(old[name], optimized[name]) for name in names))


@pytest.mark.parametrize("name", FUSED)
def test_onnx_runtime_leaves_no_operator_in_float(name):
    before, after = quantized.apply(build(FUSED[name]), LINE)
    assert quantized.float_operators(after) == []
    assert both(before, after, small.feeds(before, 0, 16)) > 29


@pytest.mark.parametrize("name", MIXED)
def test_stays_close_where_some_operators_stay_in_float(name):
    before, after = quantized.apply(build(MIXED[name]), LINE)
    assert both(before, after, small.feeds(before, 0, 16)) > 29
    assert any(graph.is_op(n, "DequantizeLinear") for n in after.graph) or name == "computed_weight"


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("name", GRAPHS)
def test_is_sound_and_close_with_other_weights(name, seed):
    before, after = quantized.apply(build(GRAPHS[name], seed), LINE)
    assert min(quantized.sqnr(before, after, small.feeds(before, 0, 16)).values()) > 25


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ("weights=int4 ranges=minmax", 6),
        ("activations=uint4", 2),
        ("activations=uint16", 34),
        ("activations=int16 weights=int5", 14),
        ("per_channel=false", 25),
        ("activations=none", 34),
        ("activations=none weights=int3", 4),
        ("ranges=percentile", 25),
        ("ranges=entropy", 12),
        ("ranges=mse", 25),
    ],
)
def test_every_type_gives_a_sound_model(options, least):
    for name, function in GRAPHS.items():
        before, after = quantized.apply(build(function), line(options))
        ratios = quantized.sqnr(before, after, small.feeds(before, 0, 16))
        assert min(ratios.values()) > least, name


@pytest.mark.parametrize("name", [n for n in GRAPHS if n != "rows_of_static_batch"])
def test_signed_activations(name):
    before, after = quantized.apply(build(GRAPHS[name]), line("activations=int8 ranges=minmax"))
    assert both(before, after, small.feeds(before, 0, 16)) > 25


def test_the_same_output_twice_and_an_input_as_output():
    b = small.Builder(1)
    b.op("Conv", image(b), b.random(4, 3, 3, 3), name="y")
    shapes = {"x": ["N", 3, 8, 8], "y": ["N", 4, 6, 6]}
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in ("x", "y", "y")]
    before, after = quantized.apply(b.model(*infos), LINE)
    assert [o.name for o in after.graph.outputs] == ["x", "y", "y"]
    ratios = quantized.sqnr(before, after, small.feeds(before, 0, 16))
    assert ratios["x"] == np.inf
    assert ratios["y"] > 30


def test_an_absorbed_relu_still_clamps_where_its_scale_has_negative_values():
    after = quantized.quantize(build(relu_beside_its_input_in_a_concat), line=LINE)
    y = small.run(after, small.feeds(after, 3))["y"]
    assert y[:, :4].min() >= 0 > y[:, 4:].min()


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 1.0), (1.0, 6.0), (-6.0, -1.0), (0.0, 6.0), (0.3, 0.4), (-0.01, 50.0)]
)
def test_a_clip_holds_for_inputs_far_beyond_the_calibration(low, high, ranges):
    b = small.Builder(1)
    clip(b, b.conv(image(b), 3, 8), float(low), float(high))
    after = quantized.quantize(b.model("y"), line=line(f"ranges={ranges}"))
    inputs = {"x": 50 * small.feeds(after, 3)["x"]}
    step = float(qdq.read(after.graph.outputs[0]).scale)
    y = small.run(after, inputs)["y"]
    assert y.min() >= low - step / 2
    assert y.max() <= high + step / 2


def test_every_shared_weight_has_bias_scales_of_its_own():
    after = quantized.quantize(build(weights_shared_by_two_convs), line=LINE)
    convs = [n for n in after.graph if n.op_type == "Conv"]
    for node in convs:
        activation, weight, bias = (qdq.read(v) for v in node.inputs)
        np.testing.assert_allclose(bias.scale, activation.scale * weight.scale, rtol=1e-6)
        assert bias.source.dtype == ir.DataType.INT32
    first, second = (qdq.read(n.inputs[2]).scale for n in convs)
    assert not np.allclose(first, second)


def test_shared_weights_are_held_once_where_their_scales_agree():
    line = LINE.replace("ranges=minmax", "ranges=minmax scales=free")
    b = small.Builder(1)
    x, weight, bias = image(b, 4), b.random(4, 4, 3, 3), b.random(4)
    for name in ("c", "d", "e", "y"):
        x = b.op("Conv", x, weight, bias, pads=[1] * 4, name=name)
    after = quantized.quantize(b.model("y"), line=line)
    weights = {id(qdq.read(n.inputs[1]).source) for n in after.graph if n.op_type == "Conv"}
    assert len(weights) == 1


@pytest.mark.parametrize("opset", [13, 15, 17, 18])
def test_a_model_of_an_older_opset(opset):
    b = small.Builder(1)
    x = b.op("Relu", b.op("Pad", b.conv(image(b), 3, 8), ints(b, 0, 0, 1, 1, 0, 0, 1, 1)))
    b.op("Concat", x, b.conv(x, 8, 8, 1), axis=1, name="y")
    model = ir.from_proto(b.model("y", opset=opset))
    step = InsertQdq()
    stats = quantized.statistics(model, step.observe(model), small.feeds(model, 0, 8))
    before = model.clone()
    step.run(model, stats)
    quantized.check(model)
    assert quantized.sqnr(before, model, small.feeds(model, 0, 8))["y"] > 30


@pytest.mark.parametrize("per_channel", ["true", "false"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_bias_of_a_dead_channel_survives(weights, per_channel):
    b = small.Builder(1)
    weight = b.rng.normal(size=(5, 3, 3, 3))
    weight[1], weight[2], weight[4] = 0, weight[2] * 1e-12, weight[4] * 1e-30
    bias = np.array([0.5, 1000.0, -3.0, 0.2, 1e-3])
    b.op("Conv", image(b), b.constant(weight), b.constant(bias), name="y")
    after = quantized.quantize(b.model("y"), line=line(f"weights={weights} per_channel={per_channel}"))
    found = qdq.read(next(n for n in after.graph if n.op_type == "Conv").inputs[2])
    integers = graph.constant(found.source)
    assert np.abs(integers).max() <= 1 << 30
    assert np.abs(integers * found.scale.astype("f8") - bias).max() <= found.scale.max() / 2 * (1 + 1e-6) + 1e-6


def test_a_bias_too_large_for_int32_widens_the_scale_of_its_weight():
    b = small.Builder(1)
    x = b.op("Mul", image(b), b.constant(1e-6))
    bias = np.array([0.5, 1.0, -3.0, 0.2])
    b.op("Conv", x, b.constant(b.rng.normal(size=(4, 3, 3, 3)) * 1e-8), b.constant(bias), name="y")
    before, after = quantized.apply(b.model("y"), LINE)
    assert min(quantized.sqnr(before, after, small.feeds(before, 0, 16)).values()) > 40


def test_int4_weights_lie_in_seven_steps_either_way():
    after = quantized.quantize(build(classifier), line=line("weights=int4"))
    weights = [graph.constant(qdq.read(n.inputs[1]).source) for n in after.graph if n.op_type in ("Conv", "Gemm")]
    assert len(weights) == 4
    assert {int(np.abs(w).max()) for w in weights} == {7}


def test_uint4_activations_are_clipped_on_the_integers():
    after = quantized.quantize(build(classifier), line=line("activations=uint4 wide_ends=false"))
    values = {id(n.inputs[0]): qdq.read(n.inputs[0]) for n in after.graph if n.op_type in ("Conv", "Gemm")}
    assert len(values) == 4
    bounds = {r.bounds for r in values.values() if r.quantize is not None}
    assert bounds == {(0, 15)}


def test_without_activations_only_weights_are_quantized():
    after = quantized.quantize(build(classifier), line=line("activations=none"))
    assert all(n.op_type != "QuantizeLinear" for n in after.graph)
    assert small.kinds(after).count("DequantizeLinear") == 4
    assert not any(n.inputs[0].dtype != ir.DataType.FLOAT for n in after.graph if n.op_type in ("Conv", "Gemm"))


def test_weights_alone_need_no_statistics():
    step = InsertQdq(activations=None)
    model = quantized.loaded(build(classifier))
    assert list(step.observe(model)) == []


def test_a_chain_that_moves_integers_has_one_scale():
    b = small.Builder(1)
    x = b.op("MaxPool", b.conv(image(b), 3, 4), kernel_shape=[2, 2])
    b.op("Transpose", b.op("Reshape", x, ints(b, -1, 4, 25)), perm=[0, 2, 1], name="y")
    after = quantized.quantize(b.model("y"), line=LINE)
    scales = {str(n.inputs[1].name) for n in after.graph if n.op_type == "QuantizeLinear"}
    assert len(scales) == 2


def test_values_of_very_different_ranges_keep_their_own_scale_in_a_concat():
    b = small.Builder(1)
    x = image(b)
    near, far = b.conv(x, 3, 4), b.op("Mul", b.conv(x, 3, 4), b.constant(100.0))
    b.op("Concat", near, far, b.conv(x, 3, 4), axis=1, name="y")
    after = quantized.quantize(b.model("y"), line=LINE)
    concat = next(n for n in after.graph if n.op_type == "Concat")
    out = next(n for n, _ in concat.outputs[0].uses())
    scales = [str(qdq.read(v).dequantize.inputs[1].name) for v in concat.inputs]
    assert scales[1] == str(out.inputs[1].name)
    assert len(set(scales)) == 3


def test_what_a_float_operator_reads_is_the_exact_value_where_it_is_no_result_of_integers():
    after = quantized.quantize(build(float_reader_of_the_input), line=LINE)
    erf = next(n for n in after.graph if n.op_type == "Asinh")
    assert erf.inputs[0].is_graph_input()


def test_names_of_outputs_and_their_order_stay():
    after = quantized.quantize(build(two_clamps_of_one_conv), line=LINE)
    assert [o.name for o in after.graph.outputs] == ["y", "z"]


def test_missing_statistics_are_an_error_that_names_the_value():
    model = quantized.loaded(build(depthwise))
    with pytest.raises(CalibrationError, match="input 'x': no statistics"):
        InsertQdq().run(model, Statistics())


def test_a_relu_stays_in_float_with_what_it_alone_bounds():
    model = quantized.loaded(build(relu_of_a_sum))
    step = InsertQdq(ranges="minmax")
    stats = quantized.statistics(model, step.observe(model), small.feeds(model, 0))
    next(n for n in model.graph if n.op_type == "Add").metadata_props[qdq.FLOAT_REASON] = "a reason"
    assert step.run(model, stats)
    quantized.check(model)
    assert small.kinds(model)[-2:] == ["Add", "Relu"]


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_operators_of_other_float_types_stay(dtype):
    b = small.Builder(1)
    x, kind = b.input("x", ["N", 6], dtype), helper.tensor_dtype_to_np_dtype(dtype)
    weight = b.constant(b.rng.normal(size=(6, 4)).astype(np.float16))
    b.op("Relu", b.op("MatMul", x, b.op("Cast", weight, to=dtype)), name="y")
    proto = b.model(helper.make_tensor_value_info("y", dtype, None))
    inputs = {"x": np.ones((2, 6), kind)}
    before, after = quantized.apply(proto, LINE, inputs)
    assert set(small.kinds(after)) <= {"MatMul", "Relu", "Cast"}
    np.testing.assert_array_equal(small.run(before, inputs)["y"], small.run(after, inputs)["y"])


KINDS = ("conv", "relu", "clip", "add", "concat", "pool", "pad", "mul", "split", "sigmoid", "self", "mean")


@st.composite
def random_graph(draw):
    """A graph that grows from values of one shape, each operator reading any of them."""
    b = small.Builder(draw(st.integers(0, 1000)))
    values = [b.input("x", ["N", 4, 6, 6])]
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=9)):
        x, other = (values[draw(st.integers(0, len(values) - 1))] for _ in range(2))
        values.append(grown(b, kind, x, other, draw))
    count = draw(st.integers(1, min(3, len(values) - 1)))
    outputs = list(dict.fromkeys([values[-1], *draw(st.lists(st.sampled_from(values[1:]), max_size=count - 1))]))
    return b.model(*outputs)


def grown(b, kind, x, other, draw):
    pads = ints(b, 0, 0, 1, 1, 0, 0, 1, 1)
    low = draw(st.sampled_from([-1.0, -0.1, 0.0, 0.2]))
    return {
        "conv": lambda: b.conv(x, 4, 4, pads=[1] * 4, group=draw(st.sampled_from([1, 4]))),
        "relu": lambda: b.op("Relu", x),
        "clip": lambda: b.op("Clip", x, b.constant(low), b.constant(low + draw(st.sampled_from([0.5, 6.0])))),
        "add": lambda: b.op("Add", x, other),
        "concat": lambda: b.op("Conv", b.op("Concat", x, other, axis=1), b.random(4, 8, 1, 1)),
        "pool": lambda: b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4),
        "pad": lambda: b.op("AveragePool", b.op("Pad", x, pads), kernel_shape=[3, 3]),
        "mul": lambda: b.op("Mul", x, b.constant(1.5)),
        "split": lambda: b.op("Concat", *b.ops("Split", x, names=names(b), axis=1, num_outputs=2)[::-1], axis=1),
        "sigmoid": lambda: b.op("Sigmoid", x),
        "self": lambda: b.op("Conv", b.op("Concat", x, x, axis=1), b.random(4, 8, 1, 1), b.random(4)),
        "mean": lambda: b.op("Add", x, b.op("GlobalAveragePool", other)),
    }[kind]()


def names(b):
    return f"left{len(b.nodes)}", f"right{len(b.nodes)}"


@settings(deadline=None, max_examples=60, derandomize=True)
@given(random_graph())
def test_random_graphs_stay_close(proto):
    before, after = quantized.apply(proto, LINE)
    inputs = small.feeds(before, 0, 16)
    power = {name: float(np.mean(array**2)) for name, array in small.run(before, inputs).items()}
    ratios = {n: r for n, r in quantized.sqnr(before, after, inputs).items() if power[n] > 1e-2}
    assert min(ratios.values(), default=100) > 20
    assert not [
        n for n in quantized.float_operators(after) if n in ("Conv", "Add", "Concat", "MaxPool", "Relu", "Clip")
    ]
    assert all(operators.find(n) is None or qdq.why_float(n) is None for n in after.graph)
