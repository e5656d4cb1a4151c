"""Scales and shifts of features that go into the weights of those who read them: of normalizations, and Mul.

    (x * g + b) W + c  =  x (diag(g) W) + (b W + c)

What is left is a normalization without scales, which commutes with a rotation of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcomp import graph, units
from qcomp.graph import Array
from qcomp.linear import Linear

_MOVES = ("Slice", "Squeeze", "Unsqueeze", "Gather", "Identity")


@dataclass(frozen=True)
class Scaled:
    """A normalization, or a Mul by a constant vector, whose result only linear operators read."""

    node: ir.Node
    readers: tuple[Linear, ...]

    def fold(self, names: graph.Names) -> None:
        """Move scale and shift into the readers."""
        scale, shift = _affine(self.node)
        for linear in self.readers:
            _fold_into(linear, scale, shift, names)
        if graph.is_op(self.node, "Mul"):
            data = next(v for v in self.node.inputs if graph.constant_tensor(v) is None)
            assert data is not None
            graph.redirect(self.node.outputs[0], data)
            graph.remove(graph.main_graph(self.node), [self.node])
            return
        graph.set_constant(self.node, 1, np.ones_like(scale, np.float32), names, "scale")
        if np.any(shift):
            graph.set_constant(self.node, 2, np.zeros_like(scale, np.float32), names, "shift")


def scaled(node: ir.Node) -> Scaled | None:
    """The node as one whose scale and shift its readers can take, or None."""
    affine = _affine(node) if all(graph.constant_tensor(v) is not None for v in _parameters(node)) else None
    if affine is None or affine[0].ndim != 1 or not all(np.isfinite(a).all() for a in affine):
        return None
    readers = _readers(node.outputs[0], affine[0].size)
    return None if readers is None else Scaled(node, tuple(readers))


def _parameters(node: ir.Node) -> list[ir.Value]:
    if graph.is_op(node, "Mul"):
        constants = [v for v in node.inputs if v is not None and graph.constant_tensor(v) is not None]
        return constants or [v for v in node.inputs if v is not None]
    return [v for v in node.inputs[1:] if v is not None]


def _affine(node: ir.Node) -> tuple[Array, Array]:
    """Scale and shift, float64 ``(features,)``."""
    found = [np.asarray(graph.constant(v)).astype(np.float64) for v in _parameters(node)]
    scale = found[0].reshape(-1) if found[0].size == found[0].shape[-1:][0] else found[0]
    return scale, found[1].reshape(-1) if len(found) > 1 else np.zeros_like(scale)


def _readers(value: ir.Value, size: int) -> list[Linear] | None:
    """The linear operators that read the value along its last axis; None where anything else does."""
    found: list[Linear] = []
    if value.is_graph_output() or (graph.static_shape(value) or (None,))[-1] != size:
        return None
    for user, index in value.uses():
        if user.graph is not graph.main_graph(value.producer() or user):
            return None
        if graph.is_op(user, *_MOVES) and index == 0:
            behind = _readers(user.outputs[0], size)
            if behind is None:
                return None
            found += behind
            continue
        linear, rank = Linear.match(user), graph.rank(value)
        if linear is None or index != 0 or linear.groups != 1 or len(linear.weight_shape) != 2 or rank is None:
            return None
        if linear.input_channel_axis() != rank - 1:
            return None
        found.append(linear)
    return found


def _fold_into(linear: Linear, scale: Array, shift: Array, names: graph.Names) -> None:
    if linear.can_shift_input() or not np.any(shift):
        linear.affine_input(names, scale, shift)
        return
    added = shift @ linear.weight.astype(np.float64)
    linear.affine_input(names, scale, np.zeros_like(shift))
    add = units.bias_add(linear.node)
    if add is None:
        add = _new_bias(linear.node, names)
    index = 1 if add.inputs[0] is linear.node.outputs[0] else 0
    bias = graph.constant(add.inputs[index])
    assert bias is not None
    graph.set_constant(add, index, (bias + added).astype(np.float32), names, "bias")


def _new_bias(node: ir.Node, names: graph.Names) -> ir.Node:
    """An Add of zeros behind a MatMul that has no bias."""
    home, out = graph.main_graph(node), node.outputs[0]
    zeros = np.zeros(Linear(node).channels, np.float32)
    bias = graph.initializer(home, names, f"{out.name}_bias", zeros)
    result = ir.Value(name=names.fresh(f"{out.name}_biased"), shape=out.shape, type=out.type)
    add = ir.Node("", "Add", [out, bias], outputs=[result], name=f"{node.name}_bias")
    home.insert_after(node, add)
    graph.redirect(out, result, keep=[add])
    return add
