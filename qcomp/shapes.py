"""onnx's C++ functions on a model without its big tensors, and the shapes that they infer.

onnx_ir's own ``ShapeInferencePass`` is quadratic in the initializers, and protobuf ends at 2 GB.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx
import onnx_ir as ir

from qcomp.errors import ModelError, first_line
from qcomp.graph import all_values

_SMALL_BYTES = 1024
"""Tensors up to this size travel with a model: shapes, axes, scales."""


def call_onnx(model: ir.Model, function: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """Run one of onnx's C++ functions on a copy without big tensors (protobuf ends at 2 GB).

    Big initializers travel as graph inputs; the model itself is unchanged afterwards.
    """
    graph = model.graph
    order = list(graph.initializers.values())
    big = [v for v in order if v.const_value is not None and v.const_value.nbytes > _SMALL_BYTES]
    as_inputs = [v for v in big if not v.is_graph_input()]
    tensors = [v.const_value for v in big]
    count = len(graph.inputs)
    for value in big:
        graph.initializers.pop(str(value.name))
        value.const_value = None
    graph.inputs.extend(as_inputs)
    try:
        return function(ir.to_proto(model))
    finally:
        while len(graph.inputs) > count:
            graph.inputs.pop()  # `del inputs[count:]` would leave the values marked as inputs
        for value, tensor in zip(big, tensors, strict=True):
            value.const_value = tensor
        for value in order:
            graph.initializers.pop(str(value.name), None)
            graph.register_initializer(value)


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and types that onnx can infer, in place.

    Raises:
        ModelError: what onnx infers contradicts the model.
    """
    infer = functools.partial(onnx.shape_inference.infer_shapes, data_prop=True)
    try:
        inferred = call_onnx(model, infer)
    except Exception as error:
        raise ModelError(f"onnx cannot infer its shapes: {first_line(error)}", hint="check it with onnx") from error
    values = {v.name: v for v in all_values(model.graph)}
    for info in inferred.graph.value_info:
        value = values.get(info.name)
        if value is not None and info.type.HasField("tensor_type"):
            _merge_type(value, info)
    for output, info in zip(model.graph.outputs, inferred.graph.output, strict=True):
        _merge_type(output, info)


def _merge_type(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    tensor = info.type.tensor_type
    if value.dtype is None and tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if not tensor.HasField("shape"):
        return
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    old = value.shape
    if old is None or len(old) != len(dims):
        value.shape = ir.Shape(dims)
    else:
        value.shape = ir.Shape([o if isinstance(o, int) else d for o, d in zip(old, dims, strict=True)])
