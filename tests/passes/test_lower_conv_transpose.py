from __future__ import annotations

import numpy as np
import onnx
import pytest
import small_graphs as small
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import qcomp
from qcomp import files, graph, qdq, runtime
from qcomp.calibration.observers import Statistics
from qcomp.errors import ModelError
from qcomp.passes.lower_conv_transpose import LowerConvTranspose

EVERY = LowerConvTranspose(waste=1e9)
MOVES = ["Transpose", "Reshape", "Transpose", "Reshape", "Transpose"]


def lower(proto, *, step=EVERY, changed=True):
    """The lowered model, whose outputs must be those of ONNX Runtime's ConvTranspose."""
    model = files.load(proto)
    inputs = small.feeds(model, 7, batch=5)
    before = small.run(model, inputs)
    assert step.run(model, Statistics()) is changed
    graph.verify(model)
    onnx.checker.check_model(files_proto(model), full_check=True)
    assert small.moved(before, small.run(model, inputs)) < 1e-5
    assert not step.run(model, Statistics())
    return model


def files_proto(model):
    return onnx.ModelProto.FromString(small.serialized(model))


def transpose(b, x, cin, cout, kernel, *, bias=True, name="", **attributes):
    """Appends a ConvTranspose with random weights."""
    weight = b.random(cin, cout // attributes.get("group", 1), *kernel)
    return b.op("ConvTranspose", x, weight, *([b.random(cout)] if bias else []), name=name, **attributes)


def single(*, shape=(2, 4, 5, 6), kernel=(4, 4), **attributes):
    b = small.Builder()
    transpose(b, b.input("x", shape), 4, 6, kernel, name="y", **attributes)
    return b.model("y")


@st.composite
def attributes(draw):
    stride = draw(st.integers(1, 4))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    extra = [draw(st.integers(0, stride - 1)) for _ in range(2)]
    pads = draw(st.lists(st.integers(0, 6), min_size=4, max_size=4))
    for axis, size in enumerate((5, 5)):
        assume(stride * (size - 1) + kernel[axis] + extra[axis] - pads[axis] - pads[axis + 2] >= 1)
    return {"kernel": kernel, "strides": [stride] * 2, "output_padding": extra, "pads": pads}


@settings(deadline=None, max_examples=250)
@given(
    attributes=attributes(),
    bias=st.booleans(),
    clamp=st.sampled_from([None, "Relu", "Clip"]),
    shape=st.sampled_from([("N", 4, 5, 6), (2, 4, 5, 6), ("N", 4, "H", "W"), (1, 4, "H", 7)]),
)
def test_random_attributes(attributes, bias, clamp, shape):
    b = small.Builder()
    y = transpose(b, b.input("x", shape), 4, 6, bias=bias, name="" if clamp else "y", **attributes)
    if clamp:
        b.op(clamp, y, *([b.constant(-0.5), b.constant(0.5)] if clamp == "Clip" else []), name="y")
    try:
        runtime.session(files.load(b.model("y")), optimize=False)
    except ModelError:
        assume(False)
    kinds = small.kinds(lower(b.model("y")))
    assert kinds[: 2 if clamp else 1] == ["Conv", *([clamp] if clamp else [])]
    assert "ConvTranspose" not in kinds
    last = shape[2:] != ("H", "W")
    moves = [] if attributes["strides"][0] == 1 else MOVES if last else ["DepthToSpace"]
    assert [k for k in kinds if k not in ("Conv", "Relu", "Clip", "Slice")] == moves


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "output_padding", "expected"),
    [
        (2, 2, 0, 0, ["Conv", "moves"]),
        (3, 2, 1, 1, ["Conv", "moves"]),
        (5, 2, 2, 1, ["Conv", "moves"]),
        (4, 2, 1, 0, ["Conv", "moves", "Slice"]),
        (3, 2, 1, 0, ["Conv", "moves", "Slice"]),
        (3, 1, 1, 0, ["Conv"]),
        (3, 1, 2, 0, ["Conv"]),
        (3, 1, 3, 0, ["Conv", "Slice"]),
    ],
)
@pytest.mark.parametrize("shape", [(2, 4, 6, 7), ("N", 4, "H", "W")])
def test_operators_of_common_kernels(kernel, stride, pads, output_padding, expected, shape):
    strides, extra = [stride] * 2, [output_padding] * 2
    model = lower(single(shape=shape, kernel=(kernel,) * 2, strides=strides, pads=[pads] * 4, output_padding=extra))
    moves = ["DepthToSpace"] if shape[2] == "H" else MOVES
    assert small.kinds(model) == [k for kind in expected for k in (moves if kind == "moves" else [kind])]
    conv = next(iter(model.graph))
    assert graph.static_shape(conv.inputs[1])[2:] == (-(-kernel // stride),) * 2
    assert all(graph.is_float(v) and graph.rank(v) for node in model.graph for v in node.outputs)


def test_shapes_are_those_that_run():
    b = small.Builder()
    x = transpose(b, b.input("x", [2, 4, 5, 6]), 4, 6, (4, 3), strides=[2, 2], pads=[1, 1, 1, 0])
    b.op("Relu", x, name="y")
    model = lower(b.model("y"))
    values = [v for node in model.graph for v in node.outputs]
    model.graph.outputs.extend(v for v in values if not v.is_graph_output())
    results = small.run(model, small.feeds(model, 0))
    assert {v.name: graph.static_shape(v) for v in values} == {n: a.shape for n, a in results.items()}


def test_names_of_outputs_and_of_the_operator_stay():
    b = small.Builder()
    y = transpose(b, b.input("x", ["N", 4, 5, 5]), 4, 6, (4, 4), strides=[2, 2], name="first")
    b.op("Relu", y, name="second")
    model = lower(b.model("first", "second"))
    assert [v.name for v in model.graph.outputs] == ["first", "second"]
    assert small.kinds(model) == ["Conv", *MOVES, "Relu"]
    assert next(iter(model.graph)).name == "node_first"


def test_a_shared_weight_stays_as_it_is():
    b = small.Builder()
    weight = b.random(4, 4, 2, 2, name="weight")
    x = b.input("x", ["N", 4, 3, 3])
    up = b.op("ConvTranspose", x, weight, strides=[2, 2])
    again = b.op("ConvTranspose", up, weight, strides=[2, 2])
    b.op("Conv", again, weight, name="y")
    model = lower(b.model("y"))
    assert small.kinds(model) == ["Conv", *MOVES] * 2 + ["Conv"]
    assert "weight" in model.graph.initializers


REFUSED = {
    "dilated": ({"dilations": [2, 1]}, "dilated"),
    "strides": ({"strides": [2, 1]}, "strides differ"),
    "same": ({"auto_pad": "SAME_UPPER"}, "auto_pad"),
    "output shape": ({"output_shape": [10, 12], "strides": [2, 2]}, "output_shape"),
    "groups": ({"group": 2, "strides": [2, 2]}, "channels are grouped"),
    "waste": ({"kernel": (1, 1), "strides": [2, 2]}, "zero taps would add 3.0 times"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_attributes(case, caplog):
    given, reason = REFUSED[case]
    with caplog.at_level("INFO"):
        lower(single(**given), step=LowerConvTranspose(), changed=False)
    assert reason in caplog.text
    assert "not lowered" in caplog.text


@pytest.mark.parametrize("size", [(5,), (5, 5, 5)])
def test_refused_where_it_is_not_an_image(size, caplog):
    with caplog.at_level("INFO"):
        lower(single(shape=(1, 4, *size), kernel=(2,) * len(size)), changed=False)
    assert "not two-dimensional" in caplog.text


@pytest.mark.parametrize("variable", ["weight", "bias"])
def test_refused_where_something_is_not_constant(variable, caplog):
    b = small.Builder()
    x = b.input("x", [1, 4, 5, 5])
    weight = b.input("w", [4, 6, 2, 2]) if variable == "weight" else b.random(4, 6, 2, 2)
    b.op("ConvTranspose", x, weight, b.input("b", [6]) if variable == "bias" else b.random(6), name="y")
    with caplog.at_level("INFO"):
        lower(b.model("y"), changed=False)
    assert "its weight or its bias is not constant" in caplog.text


def test_refused_where_it_was_chosen_to_stay_in_float(caplog):
    model = files.load(single(strides=[2, 2]))
    next(iter(model.graph)).metadata_props[qdq.FLOAT_REASON] = "kept by 'y'"
    with caplog.at_level("INFO"):
        assert not EVERY.run(model, Statistics())
    assert "kept by 'y'" in caplog.text


LINE = "clean-up,fold-batchnorm,fold-affine,fold-pad,lower-conv-transpose,choose-precision,insert-qdq,round-weights"


def decoder(kernel, pads, size, channels=32):
    """Conv, Relu, ConvTranspose, Relu, Conv."""
    b = small.Builder()
    x = b.op("Relu", b.conv(b.input("x", ["N", 8, size, "W" if size == "H" else size]), 8, channels, pads=[1] * 4))
    x = b.op("Relu", transpose(b, x, channels, channels, (kernel,) * 2, strides=[2, 2], pads=[pads] * 4))
    x = b.conv(x, channels, 8, pads=[1] * 4)
    b.op("Relu", x, name="y")
    return b.model(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, None, None]))


@pytest.mark.parametrize("size", [16, "H"])
@pytest.mark.parametrize(("kernel", "pads"), [(2, 0), (4, 1)])
def test_a_decoder_runs_in_integers(kernel, pads, size, tmp_path):
    proto = decoder(kernel, pads, size)
    data = [{"x": np.random.default_rng(i).normal(size=(4, 8, 16, 16)).astype(np.float32)} for i in range(4)]
    compiled = qcomp.compile(proto, data, passes=LINE)
    runtime.session(compiled.model, optimized_path=tmp_path / "optimized.onnx")
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 1)
    inside = kinds[kinds.index("QuantizeLinear") + 1 : kinds.index("DequantizeLinear")]
    assert set(inside) <= {"QLinearConv", "DepthToSpace", "Slice", "Reshape", "Transpose"}
    assert ("DepthToSpace" in inside) == isinstance(size, str)
    expected = small.run(files.load(proto), data[0])["y"]
    error = compiled.run(data[0])["y"] - expected
    assert np.square(error).mean() < 1e-3 * np.square(expected).mean()
