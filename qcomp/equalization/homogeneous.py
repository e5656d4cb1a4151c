"""Operators that let a positive scale of each channel pass: ``f(s x) = s f(x)``, the channels where they were."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph

_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum")


def hands_on(node: ir.Node, axis: int) -> bool:
    """Whether the scales of the channels of the first input are those of the first output.

    Args:
        node: reads the value with scales as its first input.
        axis: where that value has its channels, from the front; they lie there in the output too.
    """
    if graph.is_op(node, "Relu", "LeakyRelu", "Identity"):
        return True
    if graph.is_op(node, "PRelu"):
        return graph.constant_tensor(node.inputs[1]) is not None
    if graph.is_op(node, *_POOLS):
        return axis == 1
    if graph.is_op(node, "Pad"):
        return _pads_beside(node, axis)
    if graph.is_op(node, *_REDUCTIONS):
        return _reduces_behind(node, axis)
    return graph.is_op(node, "Flatten", "Reshape", "Squeeze") and axis == 1 and _drops_ones(node)


def axis_of(node: ir.Node, default: int) -> int | None:
    """The attribute ``axis`` counted from the front; None where that needs a rank that is not known."""
    axis, rank = int(graph.attribute(node, "axis", default)), graph.rank(node.inputs[0])
    return None if rank is None else axis % rank


def _pads_beside(node: ir.Node, axis: int) -> bool:
    """Whether it pads with zeros, or with what is there, and not along the channels."""
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return False
    pads = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(graph.attribute(node, "pads", ()))
    if pads is None or len(pads) <= 2 * axis:
        return False
    given = node.inputs[2] if len(node.inputs) > 2 else None
    value = graph.attribute(node, "value", 0.0) if given is None else graph.scalar(given)
    zeros = graph.attribute(node, "mode", "constant") != "constant" or value == 0
    return zeros and not pads[axis] and not pads[axis + len(pads) // 2]


def _reduces_behind(node: ir.Node, axis: int) -> bool:
    """Whether it runs over axes behind the channels only."""
    rank = graph.rank(node.inputs[0])
    given = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else graph.attribute(node, "axes", None)
    return given is not None and rank is not None and len(given) > 0 and all(int(a) % rank > axis for a in given)


def _drops_ones(node: ir.Node) -> bool:
    """Whether only axes of size 1 behind the channels come or go."""
    before, after = graph.static_shape(node.inputs[0]), graph.static_shape(node.outputs[0])
    if before is None or after is None or len(before) < 2 or len(after) < 2:
        return False
    return before[1] is not None and before[1] == after[1] and all(d == 1 for d in (*before[2:], *after[2:]))
