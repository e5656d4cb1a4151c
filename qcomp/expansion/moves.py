"""Operators that move or bound uint8 as they are, channels-last where what they read is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.expansion import elementwise, reading
from qcomp.expansion.requantize import Target
from qcomp.expansion.site import Context


def concat(context: Context, node: ir.Node) -> bool:
    """A Concat of uint8 with an input that is channels-last; say whether it was changed."""
    values = [reading.input_of(node, i) for i in range(len(node.inputs))]
    if not any(context.forms.is_last(v) for v in values):
        return False
    _concat(context, node, [context.forms.last(v) for v in values], last=True)
    return True


def rescaling_concat(context: Context, node: ir.Node) -> None:
    """Expand a QLinearConcat: each input is brought to the output's scale.

    Raises:
        UnsupportedError: its parameters are not those of the integer graph.
    """
    target_zero, name = reading.zero_point(node, 1), str(node.outputs[0].name)
    values = [reading.input_of(node, i) for i in range(2, len(node.inputs), 3)]
    last = any(context.forms.is_last(v) for v in values)
    parts: list[ir.Value] = []
    for index, value in zip(range(2, len(node.inputs), 3), values, strict=True):
        factor, zero = reading.factor(node, index + 1, outputs=(0,)), reading.zero_point(node, index + 2)
        ordered = context.forms.last(value) if last else context.forms.first(value)
        target = Target(factor, target_zero)
        parts.append(elementwise.rescaled(context, ordered, zero, target, f"{name}_input{len(parts)}"))
    _concat(context, node, parts, last=last)


def _concat(context: Context, node: ir.Node, parts: list[ir.Value], *, last: bool) -> None:
    result = node.outputs[0]
    sizes = reading.sizes(node, result)
    axis = graph.attribute(node, "axis", 1) % len(sizes)
    axis = _axis_last(axis, len(sizes)) if last else axis
    new = context.emitter.op("Concat", parts, f"{result.name}_joined", axis=axis)
    _finish(context, node, new, last=last)


def unary(context: Context, node: ir.Node) -> bool:
    """A Clip or Identity of what is channels-last, in whatever shape; say whether it was changed."""
    source = reading.input_of(node, 0)
    if not context.forms.is_last(source):
        return False
    shape = context.forms.common_shape([source])
    result, value = node.outputs[0], context.forms.shaped(source, shape)
    new = context.emitter.op(node.op_type, [value, *node.inputs[1:]], f"{result.name}_channels_last")
    context.replace_last(node, result, new, shape)
    return True


def pad(context: Context, node: ir.Node) -> bool:
    """A constant Pad of what is channels-last; say whether it was changed."""
    source, amounts = reading.input_of(node, 0), graph.constant(node.inputs[1])
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if not context.forms.is_last(source) or amounts is None or axes is not None:
        return False
    batch, channels, *spatial = amounts.reshape(2, -1).T
    ordered = np.stack([batch, *spatial, channels], axis=1).reshape(-1)
    inputs = [context.forms.last(source), context.emitter.ints(*ordered.tolist()), *node.inputs[2:3]]
    mode: dict[str, Any] = {"mode": graph.attribute(node, "mode", "constant")}
    new = context.emitter.op("Pad", inputs, f"{node.outputs[0].name}_channels_last", **mode)
    _finish(context, node, new, last=True)
    return True


def transpose(context: Context, node: ir.Node) -> bool:
    """A Transpose of what exists channels-last alone becomes one Transpose of that."""
    source, result = reading.input_of(node, 0), node.outputs[0]
    if not context.forms.missing([source]):
        return False
    rank = len(reading.sizes(node, source))
    order = graph.attribute(node, "perm", range(rank - 1, -1, -1))
    new = context.emitter.transpose(
        context.forms.last(source), [_axis_last(axis, rank) for axis in order], f"{result.name}_transposed"
    )
    context.replace(node, result, new)
    return True


def _axis_last(axis: int, rank: int) -> int:
    """The place of an axis of ``[N, C, *spatial]`` in ``[N, *spatial, C]``."""
    return 0 if axis == 0 else rank - 1 if axis == 1 else axis - 1


def _finish(context: Context, node: ir.Node, new: ir.Value, *, last: bool) -> None:
    result = node.outputs[0]
    if not last:
        context.replace(node, result, new)
        return
    _, channels, *spatial = reading.sizes(node, result)
    context.replace_last(node, result, new, tuple(s or 0 for s in (*spatial, channels)))
