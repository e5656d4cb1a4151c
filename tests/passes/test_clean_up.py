from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qcomp import files
from qcomp.calibration.observers import Statistics
from qcomp.passes.clean_up import CleanUp


def clean(proto, *, changed=True, random=False):
    model = files.load(proto)
    inputs = small.feeds(model, 7)
    before = small.run(model, inputs)
    assert CleanUp().run(model, Statistics()) is changed
    after = small.run(model, inputs)
    assert random or small.moved(before, after) < 1e-6
    return model


def constants(model):
    return {v.name: v.const_value.numpy().tolist() for v in model.graph.initializers.values()}


def ints(b, *values):
    return b.constant(np.array(values, np.int64))


def test_pads_computed_from_constants_become_constant():
    """The chain that PyTorch writes for the pads of F.pad."""
    b = small.Builder()
    given_pads = ints(b, 0, 0, 0, 0, 1, 2)
    missing = b.op("Sub", b.constant(np.array(8)), b.op("Gather", b.op("Shape", given_pads), ints(b, 0)))
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    pads = b.op("Concat", given_pads, b.op("ConstantOfShape", missing, value=zero), axis=0)
    pads = b.op("Reshape", pads, ints(b, -1, 2))
    pads = b.op("Slice", pads, ints(b, -1), ints(b, -(2**63) + 1), ints(b, 0), ints(b, -1))
    pads = b.op("Reshape", b.op("Transpose", pads, perm=[1, 0]), ints(b, -1))
    b.op("Pad", b.input("x", ["N", 2, 3, 3]), b.op("Cast", pads, to=TensorProto.INT64), name="y")
    model = clean(b.model("y"))
    assert small.kinds(model) == ["Pad"]
    assert list(constants(model).values()) == [[0, 1, 0, 0, 0, 2, 0, 0]]


@pytest.mark.parametrize(
    ("shape", "take", "rest", "expected"),
    [
        (["N", 4, 1, 1], 0, [-1], [0, -1]),
        (["N", 4, 1, 1], 0, [4], [0, 4]),
        (["N", 6, 4], 0, [2, 3, 4], [0, 2, 3, 4]),
        ([2, 6, 4], 0, [-1, 4], [2, -1, 4]),
        ([3, "N"], 1, [3], [-1, 3]),
    ],
)
@pytest.mark.parametrize("by", ["Gather", "Slice"])
def test_a_shape_with_a_dynamic_batch_becomes_constant(shape, take, rest, expected, by):
    b = small.Builder()
    x = b.op("Relu", b.input("x", shape))
    dims = b.op("Shape", x)
    if by == "Gather":
        batch = b.op("Unsqueeze", b.op("Gather", dims, b.constant(np.array(take))), ints(b, 0))
    else:
        batch = b.op("Slice", dims, ints(b, take), ints(b, take + 1))
    b.op("Reshape", x, b.op("Concat", batch, ints(b, *rest), axis=0), name="y")
    model = clean(b.model("y"))
    assert small.kinds(model) == ["Relu", "Reshape"]
    assert list(constants(model).values()) == [expected]


def test_a_shape_with_two_dimensions_elsewhere_stays(caplog):
    b = small.Builder()
    x = b.input("x", ["N", "L", 4])
    picked = b.op("Gather", b.op("Shape", x), ints(b, 1, 0, 2))
    b.op("Reshape", x, picked, name="y")
    with caplog.at_level("INFO"):
        assert "Shape" in small.kinds(clean(b.model("y"), changed=False))
    assert "Reshape 'node_y': its shape stays computed" in caplog.text


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]),
    size=st.tuples(st.integers(7, 11), st.integers(7, 11)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    counts=st.integers(0, 1),
)
def test_auto_pad_becomes_pads(kind, mode, size, kernel, strides, dilation, counts):
    b = small.Builder()
    x, strides = b.input("x", ["N", 2, *size]), [min(s, k) for s, k in zip(strides, kernel, strict=True)]
    attributes = {"auto_pad": mode, "strides": strides}
    if not mode.startswith("SAME"):
        attributes["dilations"] = [dilation] * 2
    if kind == "Conv":
        b.op("Conv", x, b.random(3, 2, *kernel), name="y", **attributes)
    elif kind == "AveragePool":
        b.op(kind, x, name="y", kernel_shape=kernel, count_include_pad=counts, **attributes)
    else:
        b.op(kind, x, name="y", kernel_shape=kernel, **attributes)
    model = clean(b.model("y"))
    assert "auto_pad" not in model.graph[0].attributes


def test_auto_pad_of_a_dynamic_size_stays():
    b = small.Builder()
    b.conv(b.input("x", ["N", 3, "H", "W"]), 3, 4, auto_pad="SAME_UPPER")
    clean(b.model(b.nodes[-1].output[0]), changed=False)


def test_identities_go_but_names_of_outputs_stay():
    b = small.Builder()
    x = b.op("Identity", b.op("Identity", b.input("x", ["N", 3])))
    y = b.op("Relu", x)
    b.op("Identity", y, name="first")
    b.op("Identity", y, name="second")
    b.op("Identity", x, name="echo")
    model = clean(b.model("first", "second", "echo"))
    assert sorted(small.kinds(model)) == ["Identity", "Identity", "Relu"]
    assert [v.name for v in model.graph.outputs] == ["first", "second", "echo"]


def test_dropout_goes_and_its_mask_is_computed_where_read():
    b = small.Builder()
    x = b.op("Dropout", b.op("Relu", b.input("x", ["N", 3])), b.constant(0.5))
    b.op("Exp", x, name="y")
    assert small.kinds(clean(b.model("y"))) == ["Relu", "Exp"]


def test_equal_operators_become_one_and_random_ones_do_not():
    b = small.Builder()
    x = b.input("x", ["N", 3])
    first, second, third = (b.op("Clip", x, b.constant(0.0), b.constant(h)) for h in (1.0, 1.0, 2.0))
    b.op("Sum", first, second, third, name="y")
    assert small.kinds(clean(b.model("y"))) == ["Clip", "Clip", "Sum"]
    noise = [b.op("RandomNormalLike", x) for _ in range(2)]
    b.op("Sub", *noise, name="z")
    assert small.kinds(clean(b.model("y", "z"), random=True)).count("RandomNormalLike") == 2


def test_constants_do_not_grow_the_model():
    b = small.Builder()
    big = b.op("Expand", b.constant(1.0), ints(b, 1000, 1000))
    ones = b.op("ConstantOfShape", ints(b, 5000, 5000))
    random = b.op("RandomNormal", shape=[3, 3])
    total = b.op("ReduceMax", b.op("Concat", *(b.op("Reshape", v, ints(b, -1)) for v in (big, ones, random)), axis=0))
    b.op("Add", b.input("x", ["N", 3]), total, name="y")
    model = clean(b.model("y"), random=True, changed=False)
    assert {"Expand", "ConstantOfShape", "RandomNormal"} <= set(small.kinds(model))
    assert sum(v.const_value.nbytes for v in model.graph.initializers.values()) < 1000


def test_weights_stay_on_disk(tmp_path):
    b = small.Builder()
    x = b.op("MatMul", b.input("x", ["N", 600]), b.op("Transpose", b.random(500, 600, name="w"), perm=[1, 0]))
    b.op("MatMul", x, b.random(500, 600, name="v"), name="y")
    onnx.save(b.model("y"), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = files.load(tmp_path / "m.onnx")
    inputs = small.feeds(model, 1)
    before = small.run(model, inputs)
    model = files.load(tmp_path / "m.onnx")
    assert CleanUp().run(model, Statistics())
    assert small.kinds(model) == ["MatMul", "MatMul"]
    tensors = [v.const_value for v in model.graph.initializers.values()]
    assert {type(t) for t in tensors} == {ir.LazyTensor, ir.ExternalTensor}
    assert all(t.raw is None for t in tensors if isinstance(t, ir.ExternalTensor))
    assert small.moved(before, small.run(model, inputs)) < 1e-5


def test_an_output_that_is_constant_keeps_its_name():
    b = small.Builder()
    b.op("Add", b.constant(1.0), b.constant(2.0), name="three")
    b.op("Identity", b.constant(4.0, "four"), name="copy")
    b.op("Relu", b.input("x", ["N", 3]), name="y")
    model = clean(b.model("three", "copy", "y"))
    assert [v.name for v in model.graph.outputs] == ["three", "copy", "y"]


def test_a_sequence_that_onnxscript_fails_on_does_not_stop_the_rest(caplog):
    b = small.Builder()
    x = b.op("Relu", b.input("x", [3, 6]))
    none = b.op("Cast", b.op("Mul", b.input("s", []), b.constant(0.0)), to=TensorProto.INT64)
    parts = b.op("SplitToSequence", x, b.op("Add", b.constant(np.array(2)), none), axis=1)
    second = b.op("SequenceAt", parts, b.constant(np.array(1)))
    b.op("Identity", b.op("Relu", second), name="y")
    with caplog.at_level("INFO"):
        assert "Identity" not in small.kinds(clean(b.model("y")))
    assert "constant folding ends early" in caplog.text


def test_a_constant_condition_takes_its_branch():
    b, then, other = small.Builder(), small.Builder(), small.Builder()
    b.input("x", ["N", 3])
    then.op("Relu", "x", name="then_y")
    other.op("Identity", "x", name="else_y")
    branches = {"then_branch": then.graph(["then_y"]), "else_branch": other.graph(["else_y"])}
    b.op("Exp", b.op("If", b.constant(np.array(True)), **branches), name="y")
    assert small.kinds(clean(b.model("y"))) == ["Relu", "Exp"]


def test_folding_within_a_branch():
    b, then, other = small.Builder(), small.Builder(), small.Builder()
    x = b.op("Relu", b.input("x", ["N", 3]))
    two = then.op("Add", then.constant(1.0, "one"), then.constant(1.0, "uno"), name="two")
    then.op("Mul", then.op("Identity", x, name="copy"), two, name="then_y")
    other.op("Identity", x, name="else_y")
    cond = b.op("Greater", b.op("ReduceSum", x, keepdims=0), b.constant(0.0))
    b.op("If", cond, then_branch=then.graph(["then_y"]), else_branch=other.graph(["else_y"]), name="y")
    model = clean(b.model("y"))
    bodies = [a.value for a in model.graph[-1].attributes.values()]
    assert sorted([n.op_type for n in body] for body in bodies) == [["Identity"], ["Mul"]]


@pytest.mark.parametrize("kind", ["Max", "Min"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
@pytest.mark.parametrize("first", [True, False])
def test_a_bound_that_is_one_number_becomes_a_clip(kind, shape, first):
    b = small.Builder()
    x, number = b.input("x", ["N", 3, 4]), b.constant(np.full(shape, 0.25, "f4"))
    b.op("Relu", b.op(kind, *((number, x) if first else (x, number))), name="y")
    assert small.kinds(clean(b.model("y"))) == ["Clip", "Relu"]


@pytest.mark.parametrize("other", [(3, 1), (1, 1, 1, 1), "activation", "three"])
def test_other_bounds_stay(other):
    b = small.Builder()
    x = b.input("x", ["N", 3, 4])
    bounds = {"activation": [b.op("Sigmoid", x)], "three": [b.constant(0.1), b.constant(0.2)]}
    given = bounds.get(other) or [b.constant(np.full(other, 0.25, "f4"))]
    b.op("Relu", b.op("Max", x, *given), name="y")
    model = files.load(b.model("y"))
    CleanUp().run(model, Statistics())
    assert small.kinds(model)[-2:] == ["Max", "Relu"]
