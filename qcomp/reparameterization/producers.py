"""What can give ``scale * y + shift`` in place of ``y``, an entry a channel, by changing its constants alone.

normalization   (x^ * g + b) * s + t  =  x^ * (s g) + (s b + t)        Layer-, Batch-, Instance-, RMSNormalization
linear          s (W x + b) + t       =  (s W) x + (s b + t)
Mul, Add        s (c x) = (s c) x;    s (x + c) + t = (s x) + (s c + t), the s before it
attention       P (s V + t) = s (P V) + t, since the rows of P, a Softmax, sum to one: in what computes V
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.graph import Array
from qcomp.linear import Linear

_PARAMETERS = {
    "LayerNormalization": (1, 2),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "RMSNormalization": (1, None),
    "SimplifiedLayerNormalization": (1, None),
}
"""The inputs that hold scale and bias."""
_OVER_LAST_AXES = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


class Producer(Protocol):
    """Something that can absorb a scale, and maybe a shift, of each channel of its result."""

    @property
    def node(self) -> ir.Node:
        """The operator that gives the result."""

    @property
    def shifts(self) -> bool:
        """Whether there is a place for a shift."""

    def apply(self, names: graph.Names, scale: Array, shift: Array) -> None:
        """Let it give ``scale * y + shift``; float64 ``(channels,)`` each, without `shifts` all shifts are 0."""


@dataclass(frozen=True)
class Normalization:
    """A normalization with constant scale, and constant bias or none."""

    node: ir.Node

    @property
    def shifts(self) -> bool:
        return _PARAMETERS[self.node.op_type][1] is not None

    def apply(self, names: graph.Names, scale: Array, shift: Array) -> None:
        weight, bias = _PARAMETERS[self.node.op_type]
        old = graph.constant(self.node.inputs[weight])
        assert old is not None
        graph.set_constant(self.node, weight, (old * scale).astype(np.float32), names, "scale")
        if bias is None:
            return
        given = graph.constant(self.node.inputs[bias]) if bias < len(self.node.inputs) else None
        moved = (np.zeros(scale.shape) if given is None else given * scale) + shift
        if given is not None or np.any(moved):
            graph.set_constant(self.node, bias, moved.astype(np.float32), names, "bias")


@dataclass(frozen=True)
class Weighted:
    """A linear operator with constant weights."""

    linear: Linear

    @property
    def node(self) -> ir.Node:
        return self.linear.node

    @property
    def shifts(self) -> bool:
        return self.linear.can_shift_output()

    def apply(self, names: graph.Names, scale: Array, shift: Array) -> None:
        self.linear.affine_output(names, scale, shift)


@dataclass(frozen=True)
class Constant:
    """A Mul by a constant vector, or an Add of one behind what takes the scale.

    Args:
        node: the operator.
        index: which input is the constant.
        axis: that of the channels, counted from the back.
        before: what takes the scale; None for Mul, which does so itself.
    """

    node: ir.Node
    index: int
    axis: int
    before: Producer | None

    @property
    def shifts(self) -> bool:
        return self.before is not None

    def apply(self, names: graph.Names, scale: Array, shift: Array) -> None:
        old = graph.constant(self.node.inputs[self.index])
        assert old is not None
        if self.before is not None:
            self.before.apply(names, scale, np.zeros(scale.shape))
        shape = (-1, *(1,) * (-self.axis - 1))
        new = old * scale.reshape(shape) + shift.reshape(shape)
        graph.set_constant(self.node, self.index, new.astype(np.float32), names, "constant")


def find(value: ir.Value, axis: int) -> Producer | None:
    """What computes the value and can scale its channels along an axis, counted from the front; else None."""
    node = value.producer()
    if node is None or value is not node.outputs[0]:
        return None
    channels = (graph.static_shape(value) or ())[axis : axis + 1]
    if not channels or channels[0] is None:
        return None
    if _is_normalization(node, value, axis, channels[0]):
        return Normalization(node)
    if graph.is_op(node, "Mul", "Add"):
        return _by_constant(node, value, axis, channels[0])
    linear = Linear.match(node)
    if linear is not None and linear.output_channel_axis() == axis and _is_finite(node.inputs[1:]):
        return Weighted(linear)
    return None


def _is_normalization(node: ir.Node, value: ir.Value, axis: int, channels: int) -> bool:
    if not graph.is_op(node, *_PARAMETERS) or graph.attribute(node, "training_mode", 0):
        return False
    rank = graph.rank(value) or 0
    over_last = node.op_type in _OVER_LAST_AXES
    if over_last and graph.attribute(node, "axis", -1) % max(rank, 1) != rank - 1:
        return False
    constants = [node.inputs[i] for i in _PARAMETERS[node.op_type] if i is not None and i < len(node.inputs)]
    shapes = [graph.static_shape(v) for v in constants if v is not None]
    known = all(graph.constant_tensor(v) is not None for v in constants if v is not None)
    return axis == (rank - 1 if over_last else 1) and known and shapes == [(channels,)] * len(shapes)


def _by_constant(node: ir.Node, value: ir.Value, axis: int, channels: int) -> Constant | None:
    index = next((i for i, v in enumerate(node.inputs) if graph.constant_tensor(v) is not None), None)
    data = None if index is None else node.inputs[1 - index]
    if index is None or data is None or graph.static_shape(data) != graph.static_shape(value):
        return None
    from_back = axis - (graph.rank(value) or 0)
    if not _is_vector(node.inputs[index], from_back, channels):
        return None
    if graph.is_op(node, "Mul"):
        return Constant(node, index, from_back, None)
    before = find(data, axis) if graph.only_user(data) is node else None
    return None if before is None else Constant(node, index, from_back, before)


def _is_vector(value: ir.Value | None, axis: int, channels: int) -> bool:
    """Whether a constant holds one number, or one a channel along an axis, counted from the back."""
    shape = graph.static_shape(value) or ()
    alike = all(size == 1 for i, size in enumerate(shape) if i - len(shape) != axis)
    return alike and _is_finite([value]) and (len(shape) < -axis or shape[axis] in (1, channels))


def _is_finite(values: Iterable[ir.Value | None]) -> bool:
    arrays = [a for v in values if (a := graph.constant(v)) is not None]
    return all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays)
