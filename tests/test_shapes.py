"""Calls of onnx's functions, the shapes they infer, and the cost of every walk."""

import sys

import onnx_ir as ir
import pytest
import small_graphs as small
from named_values import chain, value

from qcomp import files, graph, shapes
from qcomp.graph import Names


def big_and_small() -> ir.Model:
    """Big initializers between small ones; one is an output."""
    b = small.Builder()
    x = b.input("x", ["N", 1000])
    for i, size in enumerate([1000, 1, 1000, 1]):
        x = b.op("Add", x, b.random(size, name=f"w{i}"))
    b.op("Relu", x, name="y")
    model = ir.from_proto(b.model("y"))
    model.graph.outputs.append(model.graph.initializers["w2"])
    return model


class TestCallOnnx:
    """Big tensors stay behind, and the model is as before."""

    def test_sends_small_tensors_only_and_leaves_the_model_unchanged(self):
        model = big_and_small()
        before = small.serialized(model)
        order = list(model.graph.initializers)

        def look(proto):
            assert [t.name for t in proto.graph.initializer] == ["w1", "w3"]
            assert [v.name for v in proto.graph.input] == ["x", "w0", "w2"]
            assert len(proto.SerializeToString()) < 3000
            return proto

        shapes.call_onnx(model, look)
        assert small.serialized(model) == before
        assert list(model.graph.initializers) == order
        assert not model.graph.initializers["w0"].is_graph_input()
        assert graph.constant(model.graph.initializers["w2"]) is not None

    def test_leaves_the_model_unchanged_when_the_function_fails(self):
        model = big_and_small()
        before = small.serialized(model)

        def fail(proto):
            raise RuntimeError("boom")

        with pytest.raises(RuntimeError, match="boom"):
            shapes.call_onnx(model, fail)
        assert small.serialized(model) == before
        graph.verify(model)

    def test_an_initializer_that_is_an_input_too(self):
        model = big_and_small()
        model.graph.inputs.append(model.graph.initializers["w0"])
        before = small.serialized(model)
        seen = shapes.call_onnx(model, lambda proto: proto)
        assert [v.name for v in seen.graph.input] == ["x", "w0", "w2"]
        assert small.serialized(model) == before


class TestInferShapes:
    """Shapes and types are filled in, and none is lost."""

    @pytest.mark.parametrize("kind", small.SMALL)
    def test_fills_in(self, kind):
        proto = small.SMALL[kind](0)
        expected = {v.name: graph.static_shape(v) for v in graph.all_values(ir.from_proto(proto).graph)}
        del proto.graph.value_info[:]
        model = ir.from_proto(proto)
        shapes.infer_shapes(model)
        for node in model.graph:
            for v in node.outputs:
                pairs = zip(graph.static_shape(v), expected[v.name], strict=True)
                assert all(old is None or new == old for new, old in pairs)
                assert v.dtype is not None

    def test_keeps_what_is_known_better(self):
        model = chain()
        value(model, "b").shape = ir.Shape([4, 2])
        shapes.infer_shapes(model)
        assert graph.static_shape(value(model, "b")) == (4, 2)
        assert model.graph.inputs[0].shape[0] == "N"

    def test_of_big_tensors(self):
        model = big_and_small()
        for node in model.graph:
            node.outputs[0].shape = None
        before = {name: v.const_value for name, v in model.graph.initializers.items()}
        shapes.infer_shapes(model)
        assert graph.static_shape(value(model, "y")) == (None, 1000)
        assert {name: v.const_value for name, v in model.graph.initializers.items()} == before


def calls(function, model) -> int:
    """How many functions, Python's and C's, are called: a measure without a clock."""
    count = 0

    def tally(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        function(model)
    finally:
        sys.setprofile(None)
    return count


def remove_all(model):
    model.graph.outputs.clear()
    graph.remove(model.graph, list(model.graph))
    assert not model.graph.initializers


@pytest.mark.parametrize(
    "function",
    [
        graph.verify,
        shapes.infer_shapes,
        lambda m: Names(m.graph),
        lambda m: list(graph.all_values(m.graph)),
        lambda m: shapes.call_onnx(m, lambda proto: proto),
        files.load,
        files.weight_bytes,
        remove_all,
    ],
    ids=["verify", "infer_shapes", "Names", "all_values", "call_onnx", "load", "weight_bytes", "remove"],
)
def test_cost_grows_linearly(function):
    small_model, large_model = (ir.from_proto(small.chain(blocks)) for blocks in (10, 40))
    if function is not files.load:
        small_model, large_model = files.load(small_model), files.load(large_model)
    few, many = calls(function, small_model.clone()), calls(function, large_model.clone())
    assert many <= 5 * few
