"""A weight that linear layers read through Q/DQ: as rows of a matrix, the grid it may be rounded to, and writing it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, qdq
from qcomp.graph import Array
from qcomp.linear_qdq import BIAS_LIMIT
from qcomp.quantization.dyadic import SHIFT
from qcomp.quantization.saturation import saturates
from qcomp.rounding import bias, grid
from qcomp.rounding.columns import Columns, columns_of
from qcomp.rounding.grid import Grid

LARGEST = 4608
"""Inputs of a group above which second moments take too much memory: 512 channels under 3 x 3."""
ROOM = 4096
"""Steps of the accumulator by which a bias may grow for free."""
TRIED = 0.25
"""Scales are not tried below this fraction of the current one when accumulators are bounded."""


@dataclass(frozen=True)
class Layer:
    """One quantized weight and the layers that read it.

    Args:
        nodes: the readers, in the order of the graph.
        found: the weight's Q/DQ, still with its QuantizeLinear.
        columns: how the readers read their inputs.
    """

    nodes: tuple[ir.Node, ...]
    found: qdq.Reader
    columns: Columns

    @classmethod
    def read(cls, nodes: list[ir.Node]) -> Layer | str:
        """The layer of all readers of one weight, or why it is rounded to nearest."""
        found, columns = qdq.read(nodes[0].inputs[1]), columns_of(nodes[0])
        if isinstance(columns, str) or found is None:
            return columns if isinstance(columns, str) else "its weight is not quantized"
        for node in nodes[1:]:
            other = columns_of(node)
            if isinstance(other, str) or other.groups != columns.groups or _turned(node) != _turned(nodes[0]):
                return "layers that share its weight read it in different ways"
        layer = cls(tuple(nodes), found, columns)
        return layer._why_not() or layer

    def _why_not(self) -> str:
        source = graph.constant_tensor(self.found.source)
        shape = () if source is None else graph.shape_of(source)
        if source is None or 0 in shape or np.any(self.found.zero_point) or self.found.scale.ndim > 1:
            return "its weight has no elements, a zero point or scales of blocks"
        if self.found.axis not in (None, operators.weight_axis(self.nodes[0], shape)):
            return "its scales lie along an axis that is not that of its outputs"
        if int(np.prod(shape)) // self.channels > LARGEST:
            return f"more than {LARGEST} inputs take too much memory"
        return ""

    @property
    def channels(self) -> int:
        """Of the output."""
        shape = graph.static_shape(self.found.source) or ()
        return int((shape[0] if self.columns.kernel or _turned(self.nodes[0]) else shape[1]) or 0)

    @property
    def shape(self) -> tuple[int, int]:
        """Groups, and rows of a group."""
        return self.columns.groups, self.channels // self.columns.groups

    def weight(self, rows: Array) -> Array:
        """Rows as the weight is stored."""
        shape = tuple(d or 0 for d in graph.static_shape(self.found.source) or ())
        if not self.columns.kernel and not _turned(self.nodes[0]):
            return np.ascontiguousarray(rows.reshape(shape[::-1]).T)
        return rows.reshape(shape)

    def real(self, shape: tuple[int, ...]) -> Array:
        """The float weight as rows, float64 ``(*shape, inputs)``."""
        tensor = graph.constant_tensor(self.found.source)
        assert tensor is not None
        turned = not self.columns.kernel and not _turned(self.nodes[0])
        return graph.reading(
            tensor, lambda array: (array.T if turned else array).astype(np.float64).reshape(*shape, -1)
        )

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """The grid that the Q/DQ stand for, and what its scales may become; arrays have that shape."""
        info = np.iinfo(self.found.zero_point.dtype)
        low, high = self.found.bounds or (int(info.min), int(info.max))
        scale = np.broadcast_to(np.ravel(self.found.scale).astype(np.float64), (self.channels,)).reshape(shape)
        plain = Grid(low, high, scale, np.zeros(shape), pooled=self.found.axis is None)
        if len(self.nodes) > 1:
            return plain
        scales = scales_around(self.nodes[0])
        if scales is None:
            return replace(plain, kind="free")
        steps = self._bias_steps(scale.shape, scales[0])
        plain = replace(plain, least=1.25 * steps / BIAS_LIMIT)
        if all(is_power(s) for s in (*scales, self.found.scale) if s is not None):
            return replace(plain, kind="powers")
        if scales[1] is None:
            return replace(plain, kind="free")
        return self._dyadic(plain, scales[1] / scales[0], steps)

    def _dyadic(self, plain: Grid, ratio: float, steps: Array) -> Grid:
        activation = qdq.read(self.nodes[0].inputs[0])
        assert activation is not None
        inputs = int(np.prod([d or 1 for d in graph.static_shape(self.found.source) or ()])) // self.channels
        products = activation.largest * inputs * max(plain.high, -plain.low)
        bound = products + 2 * steps / (TRIED * plain.current) + ROOM
        unit = grid.unit_of(plain.current, ratio, bound)
        if unit is None:
            return replace(plain, kind="free")
        unit = np.full_like(unit, unit.max()) if plain.pooled else unit
        return replace(plain, kind="dyadic", unit=unit, coarsest=ratio / 2.0**SHIFT)

    def _bias_steps(self, shape: tuple[int, ...], scale: float) -> Array:
        """The magnitude of the bias over the activation's scale."""
        found = bias.real(self.nodes[0])
        return (
            np.zeros(shape)
            if found is None
            else np.abs(np.broadcast_to(found, (self.channels,))).reshape(shape) / scale
        )

    def is_exact(self, integers: Array, scale: Array) -> bool:
        """Whether the integer forms take these integers and scales as they would have taken the old scales."""
        scales = scales_around(self.nodes[0])
        activation = qdq.read(self.nodes[0].inputs[0])
        if scales is None or scales[1] is None or activation is None:
            return True
        steps = self._bias_steps(scale.shape, scales[0])
        bound = np.abs(integers).sum(axis=2) * activation.largest + 1.5 * steps / scale + ROOM
        return grid.is_exact(scale, scales[1] / scales[0], bound)

    def is_portable(self, integers: Array) -> bool:
        """Whether processors that add two products in 16 bits compute these exactly."""
        return not saturates(integers.reshape(self.channels, -1))

    def write(self, integers: Array, scale: Array, names: graph.Names) -> None:
        """Let the readers read these integers with these scales; the old Q is left for removal."""
        dequantize, target = self.found.dequantize, graph.main_graph(self.found.dequantize)
        stored = self.found.stored(self.weight(integers).astype(np.int8))
        dequantize.replace_input_with(0, graph.initializer(target, names, f"{self.found.source.name}_rounded", stored))
        old = dequantize.inputs[1]
        new = scale.ravel()[: self.found.scale.size].reshape(self.found.scale.shape).astype(np.float32)
        if old is not None and not np.array_equal(new, self.found.scale):
            dequantize.replace_input_with(1, graph.initializer(target, names, str(old.name), new))


def _turned(node: ir.Node) -> bool:
    """Whether the rows of a matrix product's weight are its outputs."""
    return bool(graph.is_op(node, "Gemm") and graph.attribute(node, "transB", 0))


def scales_around(node: ir.Node) -> tuple[float, float | None] | None:
    """The scale of a layer's input and, where it is quantized, of its result; None where the input is in float."""
    activation = qdq.read(node.inputs[0])
    if activation is None or activation.scale.size != 1:
        return None
    result = bias.last(node).outputs[0]
    clamp = graph.only_user(result)
    if clamp is not None and graph.is_op(clamp, "Relu", "Clip"):
        result = clamp.outputs[0]
    found = [graph.scalar(user.inputs[1]) for user, _ in result.uses() if graph.is_op(user, "QuantizeLinear")]
    return float(activation.scale.reshape(())), next((s for s in found if s is not None), None)


def limits(node: ir.Node) -> tuple[float, float]:
    """Between which values the result of a layer counts: beyond them a clamp or its quantization cuts it off."""
    value = bias.last(node).outputs[0]
    user = graph.only_user(value)
    if user is not None and graph.is_op(user, "Relu", "Clip"):
        return operators.clamp_bounds(user) or (-np.inf, np.inf)
    for kind in ("QuantizeLinear", "Clip"):
        if user is not None and graph.is_op(user, kind):
            value = user.outputs[0]
            user = next((n for n, _ in value.uses()), None)
    found = qdq.read(user.outputs[0]) if user is not None and graph.is_op(user, "DequantizeLinear") else None
    if found is None or found.quantize is None or found.scale.size != 1:
        return -np.inf, np.inf
    info = np.iinfo(found.zero_point.dtype)
    low, high = found.bounds or (int(info.min), int(info.max))
    scale, zero = float(found.scale.reshape(())), int(found.zero_point.reshape(()))
    return scale * (low - zero), scale * (high - zero)


def added_to(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The result of a layer as the Add behind it reads it, and the other operand; None where no Add alone reads it."""
    value = bias.last(node).outputs[0]
    user = graph.only_user(value)
    for kind in ("QuantizeLinear", "Clip", "DequantizeLinear"):
        if user is not None and graph.is_op(user, kind):
            value = user.outputs[0]
            user = graph.only_user(value)
    if user is None or not graph.is_op(user, "Add"):
        return None
    other = user.inputs[1] if user.inputs[0] is value else user.inputs[0]
    same = other is not None and other.shape is not None and value.shape == other.shape
    return (value, other) if other is not None and same and graph.constant_tensor(other) is None else None


def is_power(scale: Array | float) -> bool:
    """Whether all scales are powers of two."""
    return bool((np.frexp(np.asarray(scale))[0] == 0.5).all())
