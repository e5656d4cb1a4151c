"""Whether an operator, as it stands in a graph, can run in integers; where not, the reason that the summary shows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, units
from qcomp.operators import Role

MASK = 1e4
"""A negative constant of this magnitude or more marks what is computed from it as a mask."""
HUGE = 1e9
"""So does one of this magnitude, of either sign."""
_CARRIES_MASK = frozenset({"Mul", "Where", "Sub", "Add", "Expand", "Unsqueeze", "Reshape", "Cast", "Slice", "Concat"})


def why_not(node: ir.Node) -> str | None:
    """Why the operator as it stands has no integer form; None where it has one."""
    if any(True for _ in graph.subgraphs(node)):
        return "its body is a subgraph, which stays in float"
    row = operators.find(node)
    if row is None:
        return f"{node.op_type} has no integer form"
    if graph.is_op(node, "MaxPool") and any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "the indices it gives are read"
    if not operators.handles_floats(node):
        return "its tensors are not known to be float32"
    if row.role is Role.LINEAR:
        return _linear_reason(node)
    if row.role is Role.CLAMP and operators.clamp_bounds(node) is None:
        return "its bounds are not constant"
    if node.op_type == "Resize" and (reason := _resize_reason(node)):
        return reason
    if row.role is Role.ON_INTEGERS and _pads_something(node):
        return "it pads with a value that is not 0"
    return _parameter_reason(node)


def _resize_reason(node: ir.Node) -> str | None:
    if graph.attribute(node, "mode", "nearest") != "nearest":
        return "Resize interpolates"
    if graph.attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "Resize crops, and fills in a value of its own"
    return None


def _parameter_reason(node: ir.Node) -> str | None:
    """What an operator asks of its other inputs."""
    parameters = {"LayerNormalization": (1, 2), "ReduceMean": (1,), "PRelu": (1,)}.get(node.op_type, ())
    for index in parameters:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and graph.constant_tensor(value) is None:
            return f"its input {value.name!r} is not constant"
    if node.op_type == "PRelu" and graph.scalar(node.inputs[1]) is None:
        return "its slope differs between channels"
    if node.op_type == "Gather" and graph.constant_tensor(node.inputs[0]) is not None:
        return "it reads a table"
    if node.op_type == "LayerNormalization" and any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "its mean or deviation is read too"
    return None


def _linear_reason(node: ir.Node) -> str | None:
    if operators.weight_of(node) is None and node.op_type != "MatMul":
        return "its weight is not constant"
    bias = operators.bias_of(node)
    if bias is not None and graph.rank(bias) != 1:
        return "its bias is not a constant vector"
    if bias is not None and graph.constant_tensor(bias) is None:
        return "its bias is not constant"
    if node.op_type != "Gemm":
        return None
    factors = (graph.attribute(node, "alpha", 1.0), graph.attribute(node, "beta", 1.0))
    if graph.attribute(node, "transA", 0) or factors != (1.0, 1.0):
        return "Gemm transposes its input or scales its result"
    return None


def _pads_something(node: ir.Node) -> bool:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is not None and graph.scalar(value) != 0.0


def masks(model: ir.Model) -> set[int]:
    """The ``id`` of each value computed from a constant of enormous magnitude: attention masks and their like.

    They are recognised from the constant, not from the data: calibration samples may never show a masked position.
    """
    found: set[int] = set()
    for node in model.graph:
        if node.op_type in _CARRIES_MASK and any(id(v) in found or _masks(v) for v in node.inputs):
            found.update(id(v) for v in node.outputs if graph.is_float(v))
    return found


def _masks(value: ir.Value | None) -> bool:
    tensor = graph.constant_tensor(value)
    if value is None or not graph.is_float(value) or tensor is None or not 0 < tensor.size <= 1 << 16:
        return False
    array = tensor.numpy()
    return bool(array.min() <= -MASK or np.abs(array).max() >= HUGE)


def observable(model: ir.Model) -> list[ir.Value]:
    """The float values that may be quantized: inputs and outputs of operators with an integer form.

    What an operator computes only for a Relu or Clip to bound is left out: its range is that of the Relu's output. So
    are masks, which may hold infinities.
    """
    found: dict[int, ir.Value] = {}
    masked = masks(model)
    for node in model.graph:
        if operators.find(node) is None or any(id(v) in masked for v in (*node.inputs, *node.outputs)):
            continue
        for value in [*(v for _, v in operators.activations(node)), *node.outputs]:
            if graph.is_float(value) and graph.constant_tensor(value) is None and not units.clamped(value):
                found[id(value)] = value
    return list(found.values())
