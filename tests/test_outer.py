"""Models without their float ends, and the grids of these ends."""

from __future__ import annotations

import integer_forms as forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from protos import FLOAT, const, info, model_of, node, on_ort

from qcomp import graph, integer_only, outer
from qcomp.errors import ModelError

WEIGHTS = np.random.default_rng(0).integers(-20, 21, (6, 6)).astype(np.int8)
SCALES = [const("scale", np.float32(0.25)), const("zero", np.uint8(3)), const("other", np.float32(0.5))]
UINT8, INT8, INT16, INT64 = (getattr(onnx.TensorProto, name) for name in ("UINT8", "INT8", "INT16", "INT64"))


def model(nodes, inputs=("x",), outputs=("y",), tensors=SCALES) -> ir.Model:
    ends = ([info(name, FLOAT, ["N", 2]) for name in names] for names in (inputs, outputs))
    return ir.from_proto(model_of(nodes, *ends, tensors))


def specs(values) -> list[tuple[str, ir.DataType | None, str]]:
    return [(str(v.name), v.dtype, str(v.shape)) for v in values]


@pytest.mark.parametrize("form", forms.FORMS)
def test_the_integers_of_the_ends_are_those_of_the_whole(form):
    whole = ir.from_proto(forms.layer(form, WEIGHTS))
    before = ir.to_proto(whole).SerializeToString(deterministic=True)
    stripped = outer.strip(whole)
    assert ir.to_proto(whole).SerializeToString(deterministic=True) == before
    assert specs(stripped.graph.inputs) == [("x", ir.DataType.UINT8, "[N,6]")]
    assert specs(stripped.graph.outputs) == [("y", ir.DataType.UINT8, "[N,6]")]
    integers = np.random.default_rng(1).integers(0, 256, (9, 6)).astype(np.uint8)
    reals = forms.SCALE * (integers.astype(np.float32) - forms.ZERO)
    found, wanted = on_ort(stripped, {"x": integers})[0], on_ort(whole, {"x": reals})[0]
    assert found.dtype == np.uint8
    assert np.array_equal(forms.SCALE * (found.astype(np.float32) - forms.ZERO), wanted)


def test_the_integer_form_has_no_float_at_all_then():
    stripped = outer.strip(ir.from_proto(forms.layer("integer", WEIGHTS)))
    assert integer_only.first_float(stripped) is None
    assert not [v.name for v in graph.all_values(stripped.graph) if v.dtype == ir.DataType.FLOAT]


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16"])
def test_the_type_is_that_of_the_zero_point(kind):
    nodes = [node("QuantizeLinear", "x scale z", "q"), node("DequantizeLinear", "q scale z")]
    stripped = outer.strip(model(nodes, tensors=[*SCALES, const("z", np.zeros((), kind))]))
    assert stripped.graph.inputs[0].dtype == stripped.graph.outputs[0].dtype == ir.DataType.from_numpy(np.dtype(kind))
    integers = np.asarray([[-5, 7]]).astype(kind)
    assert np.array_equal(on_ort(stripped, {"x": integers})[0], integers)


@pytest.mark.parametrize(("more", "kind"), [({}, np.uint8), ({"output_dtype": INT8}, np.int8)])
def test_the_type_without_a_zero_point(more, kind):
    nodes = [node("QuantizeLinear", "x scale", "q", **more), node("DequantizeLinear", "q scale")]
    assert outer.strip(model(nodes)).graph.outputs[0].dtype.numpy() == kind
    assert outer.grids(model(nodes))["x"] == outer.Grid(np.float32(0.25), 0, np.dtype(kind).name)


def test_several_readers_of_an_input_that_agree():
    nodes = [node("QuantizeLinear", "x scale zero", f"q{i}") for i in (0, 1)]
    nodes += [node("Max", "q0 q1", "m"), node("DequantizeLinear", "m scale zero")]
    stripped = outer.strip(model(nodes))
    assert [n.op_type for n in stripped.graph] == ["Max"]
    assert list(stripped.graph.initializers) == ["other"], "those of the ends are gone"


def test_two_outputs_of_the_same_integers_and_readers_behind_an_output():
    nodes = [
        node("QuantizeLinear", "x scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "a"),
        node("DequantizeLinear", "q other zero", "b"),
        node("Relu", "a", "c"),
    ]
    stripped = outer.strip(model(nodes, outputs=("a", "b", "c")))
    integers = np.asarray([[0, 3], [4, 255]], np.uint8)
    a, b, c = on_ort(stripped, {"x": integers})
    assert np.array_equal(a, integers)
    assert a.dtype == b.dtype == np.uint8
    assert np.array_equal(b, integers)
    assert np.array_equal(c, np.float32([[0, 0], [0.25, 63]]))


def test_integers_that_are_an_output_already():
    nodes = [node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q scale zero")]
    whole = model(nodes, outputs=("y",))
    whole.graph.outputs.append(next(v for v in graph.all_values(whole.graph) if v.name == "q"))
    integers = np.asarray([[1, 2]], np.uint8)
    stripped = outer.strip(whole)
    assert [v.name for v in stripped.graph.outputs] == ["y", "q"]
    assert all(np.array_equal(found, integers) for found in on_ort(stripped, {"x": integers}))


def test_integer_inputs_and_float_outputs_stay():
    nodes = [
        node("Gather", "table ids", "g"),
        node("DequantizeLinear", "g scale zero"),
        node("Cast", "ids", "f", to=FLOAT),
    ]
    table = const("table", np.arange(8, dtype=np.uint8).reshape(4, 2))
    body = model_of(
        nodes, [info("ids", INT64, ["N"])], [info("y", FLOAT, None), info("f", FLOAT, None)], [*SCALES, table]
    )
    stripped = outer.strip(ir.from_proto(body))
    assert [v.dtype for v in stripped.graph.inputs] == [ir.DataType.INT64]
    assert [v.dtype for v in stripped.graph.outputs] == [ir.DataType.UINT8, ir.DataType.FLOAT]
    assert np.array_equal(on_ort(stripped, {"ids": np.asarray([2])})[0], [[4, 5]])


def refusal(found: ir.Model) -> str:
    with pytest.raises(ModelError) as error:
        outer.strip(found)
    assert "--integer-input" in error.value.hint
    return str(error.value)


def test_what_cannot_be_stripped():
    quantize, dequantize = node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q scale zero")
    plain = model([node("Relu", "x")])
    assert "Relu 'n_y': reads the input 'x' as floats" in refusal(plain)
    both = model([quantize, dequantize, node("Relu", "x", "c")], outputs=("y", "c"))
    assert "Relu 'n_c': reads the input 'x' as floats" in refusal(both)
    differing = [quantize, node("QuantizeLinear", "x other zero", "p"), node("Max", "q p", "m"), dequantize]
    assert "the input 'x' is not read by one QuantizeLinear alone" in refusal(model(differing))
    integers = model_of([node("Relu", "x")], [info("x", INT8, ["N"])], [info("y", INT8, None)])
    assert "nothing to leave out" in refusal(ir.from_proto(integers))


def test_grids():
    found = outer.grids(ir.from_proto(forms.layer("qlinear", WEIGHTS)))
    assert found == dict.fromkeys(("x", "y"), outer.Grid(np.float32(1 / 16), 128, "uint8"))
    vector = [const("scale", np.float32([1, 2])), const("zero", np.uint8([0, 0]))]
    nodes = [node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q scale zero")]
    assert outer.grids(model(nodes, tensors=vector)) == {}
    assert outer.grids(ir.from_proto(forms.layer("float", WEIGHTS))) == {}
