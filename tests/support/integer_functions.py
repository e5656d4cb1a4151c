"""Models that call one function of the domain ``qcomp``, and all that must agree on what it computes.

`tests/conftest.py` puts this folder on the path: ``import integer_functions``.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import small_graphs as small
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qcomp import runtime
from qcomp.integer import functions

UINT8, INT32 = TensorProto.UINT8, TensorProto.INT32


def call(kind, constants, shape, *, dtype=UINT8, out_rank=None, opset=21, fast=False, **attributes) -> onnx.ModelProto:
    """x -> kind -> called -> Max (of one) -> y, so that what the call gives is an inner value; checked."""
    b = small.Builder()
    x = b.input("x", shape, dtype)
    names = [b.constant(array, name) for name, array in constants.items()]
    b.op("Max", b.op(kind, x, *names, name="called", domain=functions.DOMAIN, **attributes), name="y")
    dims = [f"d{i}" for i in range(len(shape) if out_rank is None else out_rank)]
    body = b.graph([helper.make_tensor_value_info("y", UINT8, dims)])
    model = ir.from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))
    functions.attach(model, [kind], fast=fast)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def inferred(model: onnx.ModelProto, *, data_prop=False) -> tuple[int, list[str | int]]:
    """Element type and dimensions of what the call gives, inferred through the function."""
    done = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=data_prop)
    tensor = next(info for info in done.graph.value_info if info.name == "called").type.tensor_type
    return tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]


def outputs(model: onnx.ModelProto, x, *, reference=True) -> dict[str, np.ndarray]:
    """What each executor computes."""
    loaded = ir.from_proto(model)
    found = {
        f"ONNX Runtime, optimize={on}": runtime.session(loaded, optimize=on).run(None, {"x": x})[0]
        for on in (False, True)
    }
    if reference:
        found["onnx.reference"] = ReferenceEvaluator(model).run(None, {"x": x})[0]
    return found


def agree(model: onnx.ModelProto, x, expected, *, reference=True) -> None:
    """Every executor computes exactly these integers."""
    for name, got in outputs(model, x, reference=reference).items():
        assert got.dtype == expected.dtype, name
        np.testing.assert_array_equal(got, expected, err_msg=name)


def rows(rng, *shape) -> np.ndarray:
    """uint8 rows of one of many kinds: random, around a value, constant, one hot, all or nothing, nearly constant."""
    count = shape[-1]
    kinds = [
        lambda: rng.integers(0, 256, shape),
        lambda: np.clip(rng.normal(rng.integers(256), 60 * rng.random(), shape), 0, 255),
        lambda: np.full(shape, rng.choice([0, 128, 255])),
        lambda: rng.integers(1, 256) * (np.arange(count) == rng.integers(count, size=(*shape[:-1], 1))),
        lambda: 255 * rng.integers(0, 2, shape),
        lambda: rng.integers(0, 3, shape) + rng.integers(250),
    ]
    return kinds[rng.integers(len(kinds))]().astype(np.uint8)


def even(rng) -> int:
    """An even zero point."""
    return int(2 * rng.integers(128))


def scale(rng) -> float:
    """From 1e-4 to 10, as float32 holds it."""
    return float(np.float32(10 ** rng.uniform(-4, 1)))
