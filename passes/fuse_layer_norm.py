"""Fuse a layer normalization that is spelled out, as exporters below opset 17 write it, into LayerNormalization.

``(x - mean(x)) / sqrt(mean((x - mean(x))**2) + epsilon) * scale + bias``, each mean over the last axis. ONNX Runtime
fuses it too, but no longer where another pass has folded its scale into a weight or quantized a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.calibration.observers import Statistics
from qcomp.pipeline import Pass

OPSET = 17
"""The first that has LayerNormalization."""


@dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """Fuse a layer normalization that is spelled out into one operator: (x - mean) / sqrt(variance + e) * w + b."""

    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        if model.graph.opset_imports.get("", 0) < OPSET:
            return False
        names = graph.Names(model.graph)
        changed = False
        for node in tuple(model.graph):
            match = _match(node) if node.graph is not None else None
            if match is not None:
                _replace(model.graph, node, *match, names)
                changed = True
        return changed


def _match(node: ir.Node) -> tuple[ir.Value, float] | None:
    """What is normalized, and epsilon, where the node computes ``(x - mean) / sqrt(variance + epsilon)``."""
    divided = _division(node)
    if divided is None:
        return None
    deviation, root = divided
    added = _made(root, "Sqrt")
    pair = _with_scalar(added.inputs[0], "Add") if added is not None else None
    squares = _mean_of(pair[0]) if pair is not None else None
    source = _centred(deviation)
    if pair is None or squares is None or source is None or not _is_square(squares, deviation):
        return None
    last = (graph.static_shape(source) or (None,))[-1]
    return (source, pair[1]) if graph.is_float(source) and last is not None else None


def _division(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Numerator and denominator of a Div, or of a Mul by a Reciprocal."""
    first, second = (*node.inputs, None, None)[:2]
    if first is None or second is None:
        return None
    if graph.is_op(node, "Div"):
        return first, second
    for one, other in ((first, second), (second, first)) if graph.is_op(node, "Mul") else ():
        inverse = _made(other, "Reciprocal")
        if inverse is not None and inverse.inputs[0] is not None:
            return one, inverse.inputs[0]
    return None


def _made(value: ir.Value | None, kind: str) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    return producer if graph.is_op(producer, kind) else None


def _with_scalar(value: ir.Value | None, kind: str) -> tuple[ir.Value, float] | None:
    """The other operand of that operator with a constant number, and the number."""
    node = _made(value, kind)
    for one, other in (node.inputs, reversed(node.inputs)) if node is not None else ():
        number = graph.scalar(other)
        if one is not None and number is not None:
            return one, number
    return None


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """What the value is the mean of over the last axis alone, which it keeps."""
    node = _made(value, "ReduceMean")
    rank = graph.rank(node.inputs[0]) if node is not None else None
    if node is None or not rank or not graph.attribute(node, "keepdims", 1):
        return None
    array = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = graph.attribute(node, "axes", ()) if array is None else np.ravel(array)
    return node.inputs[0] if [int(a) % rank for a in axes] == [rank - 1] else None


def _centred(value: ir.Value) -> ir.Value | None:
    """The x of ``x - mean(x)``."""
    node = _made(value, "Sub")
    return node.inputs[0] if node is not None and _mean_of(node.inputs[1]) is node.inputs[0] else None


def _is_square(value: ir.Value, of: ir.Value) -> bool:
    product, power = _made(value, "Mul"), _made(value, "Pow")
    if product is not None:
        return all(v is of for v in product.inputs)
    return power is not None and power.inputs[0] is of and graph.scalar(power.inputs[1]) == 2.0


def _replace(home: ir.Graph, node: ir.Node, source: ir.Value, epsilon: float, names: graph.Names) -> None:
    """Put LayerNormalization in place of the node and what scales and shifts it; drop what nothing reads any more."""
    size = (graph.static_shape(source) or (0,))[-1] or 0
    gone, scale = [node], _operand(node, "Mul", size)
    gone += [scale[0]] if scale is not None else []
    bias = _operand(gone[-1], "Add", size) if scale is not None else None
    gone += [bias[0]] if bias is not None else []
    ones = np.ones(size, np.float32)
    weight = scale[1] if scale is not None else graph.initializer(home, names, f"{node.outputs[0].name}_scale", ones)
    inputs = [source, weight, *([bias[1]] if bias is not None else [])]
    out = gone[-1].outputs[0]
    fused = ir.node("LayerNormalization", inputs, {"axis": -1, "epsilon": epsilon}, name=gone[-1].name)
    fused.outputs[0].name = names.fresh(f"{out.name}_normalized")
    home.insert_before(gone[-1], fused)
    graph.take_over(out, fused.outputs[0])
    dead = gone[::-1]
    while dead:
        inner = dead.pop(0)
        producers = dict.fromkeys(p for v in inner.inputs if v is not None and (p := v.producer()) is not None)
        graph.remove(home, [inner])
        dead += [p for p in producers if not any(v.uses() or v.is_graph_output() for v in p.outputs) and p not in dead]


def _operand(node: ir.Node, kind: str, size: int) -> tuple[ir.Node, ir.Value] | None:
    """The operator that alone reads the node's output with a constant vector of the last axis, and the vector."""
    user = graph.only_user(node.outputs[0])
    if user is None or not graph.is_op(user, kind):
        return None
    other = user.inputs[1] if user.inputs[0] is node.outputs[0] else user.inputs[0]
    tensor = graph.constant_tensor(other)
    return (user, other) if other is not None and tensor is not None and tuple(tensor.shape) == (size,) else None
