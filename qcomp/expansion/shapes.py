"""The shapes of an integer graph: onnx knows none of the operators of com.microsoft, so it sees their likes instead."""

from __future__ import annotations

import onnx_ir as ir

from qcomp import graph, shapes
from qcomp.operators import MICROSOFT

_LIKES = {
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearGlobalAveragePool": ("GlobalMaxPool", (0,)),
}
"""The standard operator of the same shape, and the inputs it reads."""


def infer(model: ir.Model) -> None:
    """Fill in shapes and types, in place.

    Raises:
        ModelError: what onnx infers contradicts the model.
    """
    clone = model.clone()
    for node in tuple(clone.graph):
        if node.domain == MICROSOFT:
            _replace(clone.graph, node)
    shapes.infer_shapes(clone)
    inferred = {v.name: v for v in graph.all_values(clone.graph)}
    for value in graph.all_values(model.graph):
        found = inferred.get(value.name)
        if found is not None and not value.is_initializer():
            value.shape = found.shape if value.shape is None or found.shape is not None else value.shape
            value.type = value.type or found.type


def _replace(target: ir.Graph, node: ir.Node) -> None:
    like = _like(node)
    if like is None:
        return
    kind, inputs, attributes = like
    new = ir.node(kind, inputs, attributes, name=node.name)
    target.insert_before(node, new)
    graph.take_over(node.outputs[0], new.outputs[0])
    graph.remove(target, [node])


def _like(node: ir.Node) -> tuple[str, list[ir.Value | None], dict[str, int]] | None:
    if node.op_type == "QGemm":
        return "Gemm", [node.inputs[0], node.inputs[3]], {"transB": graph.attribute(node, "transB", 0)}
    if node.op_type == "QLinearConcat":
        return "Concat", list(node.inputs[2::3]), {"axis": graph.attribute(node, "axis", 1)}
    if node.op_type in _LIKES:
        kind, indices = _LIKES[node.op_type]
        return kind, [node.inputs[i] for i in indices], {}
    return None
