"""The proof that a model computes in integers alone, and what refutes it."""

from __future__ import annotations

import integer_forms as forms
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from protos import FLOAT, const, info, model_of, node

from qcomp import integer_only

WEIGHTS = np.random.default_rng(0).integers(-40, 41, (4, 4)).astype(np.int8)
INT32, UINT8 = TensorProto.INT32, TensorProto.UINT8
ENDS = [info("x", FLOAT, ["N", 4])], [info("y", FLOAT, None)]
SCALES = [const("scale", np.float32(0.1)), const("zero", np.uint8(3)), const("w", WEIGHTS)]


def first(proto: onnx.ModelProto) -> tuple[str, str] | None:
    """The name of the first float and the type of the operator that makes it, the reader's for a constant."""
    found = integer_only.first_float(ir.from_proto(proto))
    if found is None:
        return None
    made_by = found.producer() or next(user for user, _ in found.uses())
    return str(found.name), made_by.op_type


def between(*nodes: onnx.NodeProto, tensors=(), **more) -> onnx.ModelProto:
    """``x -> Quantize -> q -> nodes -> r -> Dequantize -> y``."""
    ends = node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "r scale zero")
    return model_of([ends[0], *nodes, ends[1]], *ENDS, [*SCALES, *tensors], **more)


def test_the_forms():
    assert first(forms.layer("integer", WEIGHTS)) is None
    assert first(forms.layer("qdq", WEIGHTS)) == ("x_dequantized", "DequantizeLinear")
    assert first(forms.layer("qlinear", WEIGHTS)) == ("scale", "QuantizeLinear"), "QLinearMatMul reads it too"
    assert first(forms.layer("float", WEIGHTS)) == ("x", "MatMul")


def test_the_model_stays_as_it_is():
    model = ir.from_proto(forms.layer("integer", WEIGHTS))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert integer_only.why_not(model) is None
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_scale_of_an_operator_of_integers():
    add = helper.make_node("QLinearMatMul", ["q", "own", "zero", "w", "own", "none", "own", "zero"], ["r"])
    model = between(add, tensors=[const("own", np.float32(1)), const("none", np.int8(0))])
    assert first(model) == ("own", "QLinearMatMul")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_floats_of_every_size(kind):
    model = between(node("Cast", "q", "f", to=kind), node("Cast", "f", "r", to=UINT8))
    assert first(model) == ("f", "Cast")
    assert first(between(node("Cast", "q", "f", to=INT32), node("Cast", "f", "r", to=UINT8))) is None


def test_a_float_in_a_function_of_a_function():
    domains, opsets = ["qcomp"], [helper.make_opsetid("", 21), helper.make_opsetid("qcomp", 1)]
    inner = [node("Cast", "a", "f", to=TensorProto.FLOAT), node("Cast", "f", "b", to=UINT8)]
    outer = [helper.make_node("Inner", ["a"], ["b"], domain="qcomp")]
    functions = [
        helper.make_function("qcomp", name, ["a"], ["b"], body, opsets)
        for name, body in (("Inner", inner), ("Outer", outer))
    ]
    call = helper.make_node("Outer", ["q"], ["r"], domain="qcomp")
    assert first(between(call, domains=domains, functions=functions)) == ("f", "Cast")


def test_a_type_that_the_file_claims_is_not_believed():
    unknown = helper.make_node("Mystery", ["q"], ["r"], name="m", domain="com.example")
    model = between(unknown, domains=["com.example"])
    model.graph.value_info.append(info("r", UINT8, ["N", 4]))
    assert first(model) == ("r", "Mystery")
    assert integer_only.why_not(ir.from_proto(model)) == "the type of 'r' is not known (Mystery 'm')"


def test_floats_before_quantize_and_after_dequantize():
    early = model_of(
        [
            node("Relu", "x", "a"),
            node("QuantizeLinear", "a scale zero", "r"),
            node("DequantizeLinear", "r scale zero"),
        ],
        *ENDS,
        SCALES,
    )
    late = between(node("Identity", "q", "r"))
    late.graph.node[-1].output[0] = "d"
    late.graph.node.append(node("Softmax", "d"))
    assert first(early) == ("x", "Relu")
    assert first(late) == ("d", "DequantizeLinear")


def test_an_input_that_something_else_reads_too():
    shape = node("Shape", "x", "s")
    model = between(shape, node("Identity", "q", "r"))
    model.graph.output.append(info("s", TensorProto.INT64, None))
    assert first(model) == ("x", "QuantizeLinear")


def test_quantize_linear_of_integers_needs_a_float():
    wide = node("Cast", "q", "i", to=INT32)
    model = between(wide, node("QuantizeLinear", "i own zero", "r"), tensors=[const("own", np.float32(2))])
    assert first(model) == ("own", "QuantizeLinear")


def test_a_constant_that_nothing_reads():
    model = between(node("Identity", "q", "r"), tensors=[const("spare", np.float32(1))])
    found = integer_only.first_float(ir.from_proto(model))
    assert found is not None
    assert found.name == "spare"
    assert integer_only.why_not(ir.from_proto(model)) == "the first float tensor is 'spare'"


def test_a_float_in_a_branch():
    def branch(name: str, kind: int) -> onnx.GraphProto:
        nodes = [node("Cast", "q", f"{name}_f", to=kind), node("Cast", f"{name}_f", f"{name}_y", to=UINT8)]
        return helper.make_graph(nodes, name, [], [info(f"{name}_y", UINT8, None)])

    branches = {"then_branch": branch("t", INT32), "else_branch": branch("e", TensorProto.FLOAT)}
    assert first(between(node("If", "on", "r", **branches), tensors=[const("on", np.asarray(True))])) is not None


def test_integers_without_ends():
    ends = [info("x", UINT8, ["N", 4])], [info("y", INT32, None)], [const("w", WEIGHTS)]
    assert first(model_of([node("MatMulInteger", "x w")], *ends)) is None
    more = [node("MatMulInteger", "x w", "a"), node("Cast", "a", to=TensorProto.FLOAT)]
    assert first(model_of(more, ends[0], [info("y", FLOAT, None)], ends[2])) == ("y", "Cast")
