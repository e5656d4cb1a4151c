"""Units: operators that run in integers as one. What computes, the Add of its bias and the clamp behind it.

    Conv -> Relu                  MatMul -> Add -> Clip                  Add -> Relu

The first operator of a unit decides for all of them; the quantized range of the last result absorbs the clamp.
"""

from __future__ import annotations

import onnx_ir as ir

from qcomp import graph, operators, qdq


def bias_add(node: ir.Node) -> ir.Node | None:
    """The Add of a constant vector that follows a MatMul by a constant matrix: its bias."""
    weight = operators.weight_of(node)
    if node.op_type != "MatMul" or weight is None or graph.rank(weight) != 2:
        return None
    user = graph.only_user(node.outputs[0])
    if user is None or not graph.is_op(user, "Add"):
        return None
    other = user.inputs[1] if user.inputs[0] is node.outputs[0] else user.inputs[0]
    bias, shape = graph.constant_tensor(other), graph.static_shape(weight)
    return user if bias is not None and shape is not None and tuple(bias.shape) == (shape[1],) else None


def quantized_bias_add(node: ir.Node) -> ir.Node | None:
    """As `bias_add`, where the weight stands behind a DequantizeLinear; the bias may be float still."""
    weight = qdq.read(node.inputs[1]) if graph.is_op(node, "MatMul") else None
    if weight is None or graph.constant_tensor(weight.source) is None or graph.rank(weight.source) != 2:
        return None
    user = graph.only_user(node.outputs[0])
    if user is None or not graph.is_op(user, "Add"):
        return None
    bias = next(v for v in user.inputs if v is not node.outputs[0])
    found = qdq.read(bias)
    constant = graph.constant_tensor(found.source if found is not None else bias)
    channels = (graph.static_shape(node.outputs[0]) or (None,))[-1]
    return user if constant is not None and tuple(constant.shape) == (channels,) else None


def clamp_behind(value: ir.Value) -> ir.Node | None:
    """The Relu or Clip that alone reads the value, to bound it."""
    user = graph.only_user(value)
    return user if user is not None and graph.is_op(user, "Relu", "Clip") and user.inputs[0] is value else None


def clamped(value: ir.Value) -> bool:
    """Whether an operator computes the value only for a Relu or Clip to bound: then it has no range of its own."""
    clamp = clamp_behind(value) if operators.computes(value.producer()) else None
    return clamp is not None and operators.clamp_bounds(clamp) is not None


def head(node: ir.Node) -> ir.Node:
    """The operator that decides for this one: a MatMul for the Add of its bias, what a clamp bounds for the clamp."""
    if graph.is_op(node, "Clip") and operators.clamp_bounds(node) is None:
        return node
    for value in node.inputs[:2] if graph.is_op(node, "Add", "Relu", "Clip") else ():
        producer = value.producer() if value is not None else None
        if producer is None:
            continue
        if bias_add(producer) is node:
            return producer
        alone = not graph.is_op(node, "Add") and graph.only_user(producer.outputs[0]) is node
        if alone and operators.computes(producer):
            return head(producer)
    return node
