"""Where the axis of a value's features goes when a value is moved; axes count from the end, -1 the last."""

from __future__ import annotations

import math

import onnx_ir as ir

from qcomp import graph

_LAYOUT = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_POOLS = ("GlobalAveragePool", "AveragePool")
MOVES = (*_LAYOUT, *_POOLS, "Slice", "Expand", "Gather", "ReduceMean")
"""The operators that `kept` knows: they move features, or take means over other axes."""


def size(value: ir.Value | None, axis: int) -> int | None:
    """The size along an axis, 1 where there is no such axis; None where it is not known."""
    shape = graph.static_shape(value)
    if shape is None:
        return None
    return 1 if len(shape) < -axis else shape[axis]


def kept(node: ir.Node, axis: int) -> int | None:
    """The axis of the features behind one of `MOVES`; None where it does not leave them together and in order."""
    before, after = graph.static_shape(node.inputs[0]), graph.static_shape(node.outputs[0])
    if before is None or after is None or before[axis] is None:
        return None
    if graph.is_op(node, *_LAYOUT):
        return _in_memory(before, after, axis)
    if graph.is_op(node, *_POOLS):
        return axis if len(before) + axis == 1 else None
    touched = _touched(node, len(before))
    if touched is None or len(before) + axis in touched:
        return None
    behind = [a for a in touched if a > len(before) + axis]
    found = axis if len(before) == len(after) else axis + len(behind)
    if graph.is_op(node, "Gather"):
        found = axis if not behind else 0
    return found if -len(after) <= found < 0 and after[found] == before[axis] else None


def is_mean_square(node: ir.Node, value: ir.Value, axis: int) -> bool:
    """``x * x`` or ``x ** 2`` of which only the mean over the features is read: rotations keep it."""
    power = graph.is_op(node, "Pow") and node.inputs[0] is value and graph.scalar(node.inputs[1]) == 2.0
    squared = graph.is_op(node, "Mul") and node.inputs[0] is value and node.inputs[1] is value
    mean = graph.only_user(node.outputs[0])
    if not (power or squared) or mean is None or not graph.is_op(mean, "ReduceMean", "ReduceSum") or axis != -1:
        return False
    return size(mean.outputs[0], -1) == 1 and graph.rank(mean.outputs[0]) == graph.rank(value)


def _in_memory(before: tuple[int | None, ...], after: tuple[int | None, ...], axis: int) -> int | None:
    """The axis of the same size with as many elements behind it."""
    behind = before[len(before) + axis + 1 :]
    for candidate in range(-1, -len(after) - 1, -1):
        found = after[len(after) + candidate + 1 :]
        alike = after[candidate] == before[axis] and None not in (*behind, *found)
        if alike and math.prod(d or 0 for d in behind) == math.prod(d or 0 for d in found):
            return candidate
    return None


def _touched(node: ir.Node, rank: int) -> set[int] | None:
    """The axes from the front along which a node selects or reduces; None where they are not known."""
    if graph.is_op(node, "Expand"):
        return set()
    if graph.is_op(node, "Gather"):
        return {int(graph.attribute(node, "axis", 0)) % rank}
    index = 3 if graph.is_op(node, "Slice") else 1
    given = graph.constant(node.inputs[index]) if len(node.inputs) > index else graph.attribute(node, "axes", None)
    return None if given is None else {int(a) % rank for a in given}
