"""Fold Mul, Div, Add and Sub by constants into the linear operators beside them, and into one another.

Each of them is an affine map ``s * x + t`` with one of ``s = 1`` and ``t = 0`` (but for ``c - x``). Where ``s`` and
``t`` are one number, or one a channel, the map goes into the weights of the operator before or after it:

    s * (W x + b) + t  =  (s W) x + (s b + t)
    W (s * x + t) + b  =  (W s) x + (W t + b)      t only where nothing is padded with zeros

A MatMul of two matrices that gains a bias becomes a Gemm; one of higher rank takes scales only, also through the Add
of its bias, ``s * (x W + b) = x (W s) + s b``. Two maps of one kind in a row become one: ``(x * c) * d = x * (c d)``.
Neg is the map ``-1 * x``.

Of what stays, constants of several numbers are written so that they have an integer form, for which quantized sums and
products know no difference and no quotient: ``x - c = x + (-c)``, ``c - x = -x + c`` and ``x / c = x * (1 / c)``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.calibration.observers import Statistics
from qcomp.graph import Array
from qcomp.linear import Linear
from qcomp.pipeline import Pass

logger = logging.getLogger(__name__)

_SCALES, _SHIFTS = ("Mul", "Div"), ("Add", "Sub")
_MOST_ELEMENTS = 1 << 16
"""Larger constants, such as embeddings of positions, are no scales of channels and are not even loaded."""


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold Mul, Div, Add, Sub by constants and Neg into weights and biases: W' = W * s, b' = b * s + t."""

    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        split = [_split_difference(node, names) for node in tuple(model.graph)]
        gone: list[ir.Node] = []
        for node in model.graph:
            affine = _match(node)
            if affine and (_fold_before(affine, names) or _fold_through(affine, names) or _merge(affine, names)):
                gone.append(node)
        folded = set(gone)
        for node in reversed(model.graph):
            affine = None if node in folded else _match(node)
            if affine and _fold_after(affine, names):
                gone.append(node)
        graph.remove(model.graph, gone)
        written = [_write_plainly(node, names) for node in model.graph]
        return bool(gone) or any(split) or any(written)


@dataclass(frozen=True)
class _Affine:
    """``scale * data + shift``: what a node does to its one input that is not constant; float64, as its constant."""

    node: ir.Node
    data: ir.Value
    constant: ir.Value | None
    scale: Array
    shift: Array

    @property
    def result(self) -> ir.Value:
        return self.node.outputs[0]

    def vectors(self, axis: int | None, channels: int) -> tuple[Array, Array] | None:
        """Scale and shift along an axis of the data, ``(channels,)`` or ``(1,)`` each, or None."""
        scale, shift = self._along(self.scale, axis, channels), self._along(self.shift, axis, channels)
        return None if scale is None or shift is None else (scale, shift)

    def _along(self, array: Array, axis: int | None, channels: int) -> Array | None:
        rank = graph.rank(self.data)
        if rank is None or axis is None or array.ndim > rank:
            return None
        shape = (1,) * (rank - array.ndim) + array.shape
        alike = all(size == 1 for i, size in enumerate(shape) if i != axis)
        return array.reshape(-1) if alike and shape[axis] in (1, channels) else None


def _match(node: ir.Node) -> _Affine | None:
    """The node as an affine map of float32 data, or None."""
    if not graph.is_op(node, "Neg", *_SCALES, *_SHIFTS) or not graph.is_float(node.outputs[0]):
        return None
    if node.op_type == "Neg":
        data = node.inputs[0]
        return None if data is None else _Affine(node, data, None, -np.ones(()), np.zeros(()))
    first, second = node.inputs
    constants = [graph.constant_tensor(v) is not None for v in (first, second)]
    if first is None or second is None or sum(constants) != 1 or (constants[0] and node.op_type == "Div"):
        return None
    data, constant = (second, first) if constants[0] else (first, second)
    tensor = graph.constant_tensor(constant)
    if tensor is None or tensor.size > _MOST_ELEMENTS:
        return None
    scale, shift = _scale_shift(node.op_type, tensor.numpy().astype(np.float64), constants[0])
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    return _Affine(node, data, constant, scale, shift)


def _scale_shift(kind: str, constant: Array, first: bool) -> tuple[Array, Array]:
    """The map of an operator whose constant is its first or second input."""
    one, zero = np.ones(()), np.zeros(())
    if kind == "Mul":
        return constant, zero
    if kind == "Div":
        with np.errstate(divide="ignore"):
            return np.reciprocal(constant), zero
    if kind == "Add":
        return one, constant
    return (-one, constant) if first else (one, -constant)


def _split_difference(node: ir.Node, names: graph.Names) -> bool:
    """Write ``c - x`` as ``-x + c``, where c is several numbers; say whether it was."""
    affine = _match(node) if graph.is_op(node, "Sub") else None
    if affine is None or affine.scale > 0 or affine.shift.size == 1:
        return False
    negated = ir.node("Neg", [affine.data], name=names.fresh(f"{node.name}_negated"))
    negated.outputs[0].name = names.fresh(f"{affine.data.name}_negated")
    negated.outputs[0].shape, negated.outputs[0].type = affine.data.shape, affine.data.type
    graph.main_graph(node).insert_before(node, negated)
    node.replace_input_with(1, negated.outputs[0])
    node.op_type = "Add"
    return True


def _write_plainly(node: ir.Node, names: graph.Names) -> bool:
    """Write ``x - c`` as a sum and ``x / c`` as a product, where c is several numbers; say whether it was."""
    affine = _match(node) if graph.is_op(node, "Sub", "Div") else None
    array = None if affine is None else affine.shift if node.op_type == "Sub" else affine.scale
    if affine is None or array is None or array.size == 1 or not np.isfinite(array.astype(np.float32)).all():
        return False
    _set(affine, array.astype(np.float32), names)
    node.op_type = "Add" if node.op_type == "Sub" else "Mul"
    return True


def _fold_before(affine: _Affine, names: graph.Names) -> bool:
    linear = Linear.match(affine.data.producer())
    if linear is None or graph.only_user(affine.data) is not affine.node:
        return False
    vectors = affine.vectors(linear.output_channel_axis(), linear.channels)
    if vectors is None:
        return _refuse(affine, "its constant is not one number, or one an output channel")
    if np.any(vectors[1]) and not linear.can_shift_output():
        return False
    if not linear.affine_output(names, *vectors):
        return _refuse(affine, "the weights would not be finite")
    _replace_by(affine, affine.data)
    return True


def _fold_through(affine: _Affine, names: graph.Names) -> bool:
    """A scale behind the bias of a MatMul of higher rank goes through it into the weights."""
    add = _match_producer(affine, "Add")
    if add is None or np.any(affine.shift) or graph.only_user(add.data) is not add.node:
        return False
    linear = Linear.match(add.data.producer())
    if linear is None or linear.can_shift_output():
        return False
    axis, channels = linear.output_channel_axis(), linear.channels
    scale, bias = affine.vectors(axis, channels), add.vectors(axis, channels)
    if scale is None or bias is None:
        return False
    scaled = (bias[1] * scale[0]).astype(np.float32)
    if not np.isfinite(scaled).all() or not linear.affine_output(names, *scale):
        return False
    _set(add, scaled, names)
    _replace_by(affine, add.result)
    return True


def _merge(affine: _Affine, names: graph.Names) -> bool:
    """Two scales, or two shifts, in a row become one; the second's constant goes into the first."""
    kind = affine.node.op_type
    first = _match_producer(affine, *(_SHIFTS if kind in _SHIFTS else _SCALES))
    if first is None or (kind in _SHIFTS and (first.scale < 0 or affine.scale < 0)):
        return False
    both = first.shift + affine.shift if kind in _SHIFTS else first.scale * affine.scale
    larger = max(first.scale.size, first.shift.size, affine.scale.size, affine.shift.size)
    if both.size > larger:
        return False
    return _merge_into(first, affine, both.astype(np.float32), names)


def _merge_into(first: _Affine, second: _Affine, both: Array, names: graph.Names) -> bool:
    if not np.isfinite(both).all():
        return False
    _set(first, both, names)
    first.node.op_type = "Mul" if first.node.op_type in _SCALES else "Add"
    _replace_by(second, first.result)
    return True


def _match_producer(affine: _Affine, *kinds: str) -> _Affine | None:
    node = affine.data.producer()
    if node is None or not graph.is_op(node, *kinds) or graph.only_user(affine.data) is not affine.node:
        return None
    return _match(node)


def _fold_after(affine: _Affine, names: graph.Names) -> bool:
    linear = Linear.match(graph.only_user(affine.result))
    if linear is None or linear.node.inputs[0] is not affine.result or linear.node.graph is not affine.node.graph:
        return False
    if _ends_gelu(affine):
        return _refuse(affine, "it ends a Gelu, which runtimes fuse")
    vectors = _input_vectors(affine, linear)
    if vectors is None:
        return _refuse(affine, "its constant is not one number, or one an input channel")
    if np.any(vectors[1]) and not linear.can_shift_input():
        return _refuse(affine, f"{graph.describe(linear.node)} pads with zeros, or has no place for a bias")
    if not linear.affine_input(names, *vectors):
        return _refuse(affine, "the weights would not be finite")
    linear.node.replace_input_with(0, affine.data)
    graph.detach([affine.node])
    return True


def _input_vectors(affine: _Affine, linear: Linear) -> tuple[Array, Array] | None:
    """Scale and shift per input channel; a constant that widens its data from one channel to several is none."""
    axis, channels = linear.input_channel_axis(), linear.input_channels
    vectors, shape = affine.vectors(axis, channels), graph.static_shape(affine.data)
    if vectors is None or shape is None or axis is None:
        return None
    return vectors if shape[axis] == channels or max(v.size for v in vectors) == 1 else None


def _ends_gelu(affine: _Affine) -> bool:
    """Whether it is the last of ``0.5 * (x * (1 + erf(x / sqrt(2))))``."""
    product = affine.data.producer()
    if product is None or not graph.is_op(product, "Mul"):
        return False
    sums = [v.producer() for v in product.inputs if v is not None]
    ends = [v.producer() for n in sums if n is not None and graph.is_op(n, "Add") for v in n.inputs if v is not None]
    return any(graph.is_op(n, "Erf") for n in ends)


def _refuse(affine: _Affine, reason: str) -> bool:
    logger.info("%s: not folded: %s", graph.describe(affine.node), reason)
    return False


def _set(affine: _Affine, array: Array, names: graph.Names) -> None:
    index = 0 if affine.node.inputs[0] is affine.constant else 1
    graph.set_constant(affine.node, index, array, names, "constant")


def _replace_by(affine: _Affine, value: ir.Value) -> None:
    graph.take_over(affine.result, value)
    graph.detach([affine.node])
