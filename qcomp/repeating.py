"""Channels of one operator repeated: weights, biases and constants with a channel's entry several times.

``counts`` says for each channel, int ``(channels,)``, how often it is to be there; copies stand beside each other.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators
from qcomp.graph import Array
from qcomp.linear import Linear


def inputs(linear: Linear, array: Array, counts: Array) -> Array:
    """An array of the weights of an operator of one group with its input channels repeated."""
    return np.repeat(array, counts, axis=1 - output_axis(linear))


def output_axis(linear: Linear) -> int:
    """The axis of the stored weights of an operator of one group that holds its output channels; inputs: the other."""
    axis = operators.weight_axis(linear.node, linear.weight_shape)
    assert axis is not None
    return axis


def outputs(node: ir.Node, counts: Array, names: graph.Names, *, divided: bool) -> None:
    """Let a linear operator of one group compute its channels several times, or equal parts of them."""
    linear, factor = Linear(node), _factor(counts, divided=divided)
    axis, weight, bias = output_axis(linear), linear.weight, graph.constant(linear.bias)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    repeated = np.repeat(weight.astype(np.float64), counts, axis=axis) * factor.reshape(shape)
    graph.set_constant(node, 1, repeated.astype(np.float32), names, "weight")
    if bias is not None:
        bias = np.atleast_1d(bias)
        _set_vector(node, 2, bias, bias.ndim - 1, counts, factor, names)


def between(node: ir.Node, axis: int, counts: Array, names: graph.Names, *, divided: bool) -> None:
    """As `outputs`, of what treats each channel alone: a depthwise Conv, a constant of channels, a Reshape to them.

    Args:
        axis: of the channels in the node's output.
    """
    factor = _factor(counts, divided=divided)
    if graph.is_op(node, "Reshape"):
        _reshape(node, int(counts.sum()), names)
    elif graph.is_op(node, "Conv"):
        _depthwise(node, counts, factor, names)
    else:
        _constant(node, axis, counts, factor, names)


def widen(value: ir.Value, axis: int, channels: int) -> None:
    """Note the new number of channels in the shape of a value."""
    if value.shape is not None:
        value.shape = ir.Shape([channels if i == axis else d for i, d in enumerate(value.shape.dims)])


def _factor(counts: Array, *, divided: bool) -> Array:
    return np.repeat(1 / counts, counts) if divided else np.ones(int(counts.sum()))


def _reshape(node: ir.Node, channels: int, names: graph.Names) -> None:
    target = graph.constant(node.inputs[1])
    assert target is not None
    widened = np.array([target[0], channels if target[1] > 0 else target[1]], target.dtype)
    graph.set_constant(node, 1, widened, names, "shape")


def _depthwise(node: ir.Node, counts: Array, factor: Array, names: graph.Names) -> None:
    weight, bias = graph.constant(node.inputs[1]), graph.constant(Linear(node).bias)
    assert weight is not None
    graph.set_constant(node, 1, np.repeat(weight, counts, axis=0), names, "weight")
    node.attributes["group"] = ir.AttrInt64("group", int(counts.sum()))
    if bias is not None:
        _set_vector(node, 2, bias, 0, counts, factor, names)


def _constant(node: ir.Node, axis: int, counts: Array, factor: Array, names: graph.Names) -> None:
    """The constant operand of Add, Sub, Mul or Div; a shift is divided with what it shifts."""
    index = next(i for i, v in enumerate(node.inputs) if graph.constant_tensor(v) is not None)
    constant, rank = graph.constant(node.inputs[index]), graph.rank(node.outputs[0])
    assert constant is not None
    assert rank is not None
    if constant.ndim < rank - axis:
        constant = constant.reshape((1,) * (rank - axis - constant.ndim) + constant.shape)
    factor = factor if graph.is_op(node, "Add", "Sub") else np.ones_like(factor)
    _set_vector(node, index, constant, axis - rank + constant.ndim, counts, factor, names)


def _set_vector(
    node: ir.Node, index: int, array: Array, axis: int, counts: Array, factor: Array, names: graph.Names
) -> None:
    """Repeat a constant along the channels and multiply it; one number for all channels may serve all copies."""
    if array.shape[axis] == 1 and np.all(factor == 1):
        return
    full = np.broadcast_to(array, [counts.size if i == axis else d for i, d in enumerate(array.shape)])
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    repeated = np.repeat(full.astype(np.float64), counts, axis=axis) * factor.reshape(shape)
    graph.set_constant(node, index, repeated.astype(np.float32), names, "repeated")
