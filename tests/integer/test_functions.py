"""The ONNX functions as such: integers only, valid, their shapes inferred, attached once with those they call."""

from __future__ import annotations

import math

import integer_functions as calls
import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import pytest
import small_graphs as small
from onnx import TensorProto

from qcomp import files, graph
from qcomp.errors import OptionError, UnsupportedError
from qcomp.integer import functions
from qcomp.integer.layer_norm import LayerNormalization
from qcomp.integer.mean import ReduceMean
from qcomp.integer.requantize import Requantize
from qcomp.integer.softmax import Softmax

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
LAST = {"axes": [-1]}
SHAPE = ["batch", "length", 6]
NORMALIZE = LayerNormalization.of(0.1, np.ones(6), np.zeros(6), 1e-5, 0.05, 128).constants
CASES = {
    "Requantize": (Requantize.of(np.full(6, 1e-3), 2).constants, {"dtype": calls.INT32}),
    "Table": ({"table": np.arange(256, dtype=np.uint8)[::-1]}, {}),
    "Softmax": (Softmax.of(0.1).constants, LAST),
    "LayerNormalization": (NORMALIZE, LAST),
    "ReduceMean": (ReduceMean.of(0.1, 2, 0.1, 4, 6).constants, LAST),
}
every_function = pytest.mark.parametrize("kind", CASES)


def model_of(kind, **more):
    constants, attributes = CASES[kind]
    return calls.call(kind, constants, SHAPE, **attributes, **more)


def expected_shape(kind):
    return ["batch", "length", 1 if kind == "ReduceMean" else 6]


@every_function
@pytest.mark.parametrize("fast", [False, True])
def test_no_float_tensor_is_inside(kind, fast):
    inlined = onnx.inliner.inline_local_functions(model_of(kind, fast=fast))
    assert not inlined.functions
    done = onnx.shape_inference.infer_shapes(inlined, strict_mode=True).graph
    types = {info.name: info.type.tensor_type.elem_type for info in [*done.value_info, *done.output]}
    assert {name for node in done.node for name in node.output} <= set(types)
    assert not FLOATS & {*types.values(), *(tensor.data_type for tensor in done.initializer)}
    assert {node.domain for node in done.node} <= {"", "ai.onnx"}


@every_function
def test_type_and_shape_are_inferred(kind):
    assert calls.inferred(model_of(kind)) == (TensorProto.UINT8, expected_shape(kind))
    assert calls.inferred(model_of(kind, fast=True), data_prop=True) == (TensorProto.UINT8, expected_shape(kind))


@every_function
@pytest.mark.parametrize("opset", [18, 21, 23, 24])
def test_the_bodies_take_the_opset_of_the_model(kind, opset):
    model = model_of(kind, opset=opset)
    assert {i.version for f in model.functions for i in f.opset_import if not i.domain} == {opset}
    x = np.random.default_rng(opset).integers(0, 256, (2, 3, 6))
    x = x.astype(np.int32 if kind == "Requantize" else np.uint8)
    results = list(calls.outputs(model, x).values())
    assert all(np.array_equal(results[0], other) for other in results)


@every_function
def test_loading_keeps_the_functions(kind):
    loaded = files.load(model_of(kind))
    assert (functions.DOMAIN, kind, "") in loaded.functions
    called = next(v for v in graph.all_values(loaded.graph) if v.name == "called")
    assert called.dtype == ir.DataType.UINT8
    assert str(called.shape) == str(ir.Shape(expected_shape(kind)))


def test_callees_stand_before_their_callers():
    model = ir.from_proto(model_of("LayerNormalization"))
    assert [name for _, name, _ in model.functions] == ["PowerOfTwo", "SquareRoot", "ShiftRight", "LayerNormalization"]
    functions.attach(model, ["Softmax", "LayerNormalization"])
    assert [name for _, name, _ in model.functions][4:] == ["Table", "Softmax"]
    assert model.opset_imports["qcomp"] == 1


def test_every_function_says_what_it_computes():
    for name, function in functions.FUNCTIONS.items():
        assert function.to_function_proto().doc_string, name


def test_an_unknown_function_is_refused():
    with pytest.raises(OptionError, match="did you mean 'Softmax'"):
        functions.attach(ir.from_proto(model_of("Table")), ["SoftMax"])


def test_an_old_opset_is_refused():
    with pytest.raises(UnsupportedError, match="opset 17"):
        model_of("Table", opset=17)


@pytest.mark.parametrize("seed", range(3))
def test_square_root_is_exact(seed):
    rng = np.random.default_rng(seed)
    roots = np.unique(np.concatenate([np.arange(1, 300), 2 ** rng.uniform(0, 31, 300), [2**31 - 1, 2**30, 2**30 + 1]]))
    squares = roots.astype(np.int64) ** 2
    values = np.concatenate([squares, squares - 1, squares + 1, squares + 2 * roots.astype(np.int64), [2**62 - 1]])
    values = values[values > 0]
    b = small.Builder()
    b.op("SquareRoot", b.input("x", ["n"], TensorProto.INT64), name="y", domain=functions.DOMAIN)
    body = b.graph([onnx.helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])])
    model = ir.from_proto(onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))
    functions.attach(model, ["SquareRoot"])
    calls.agree(ir.to_proto(model), values, np.asarray([math.isqrt(int(v)) for v in values], np.int64))
