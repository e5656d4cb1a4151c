"""Reads the integer graph: which layer gives a value, the shape of its stream, and what bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.backends.hls.layers import Feature, Layer, Lookup, Window
from qcomp.errors import UnsupportedError
from qcomp.expansion import reading
from qcomp.expansion.window import Window as OnnxWindow
from qcomp.integer.requantize import LARGEST
from qcomp.quantization.qparams import IntArray


class Reader:
    """One a model.

    Raises:
        UnsupportedError: not one input that is quantized at once and one output that is dequantized at last.
    """

    def __init__(self, model: ir.Model) -> None:
        self.layers: list[Layer] = []
        self.merged: set[ir.Node] = set()
        self._made: dict[ir.Value, tuple[int, Feature]] = {}
        self.quantize, self.dequantize = _ends(model.graph)
        self.end = model.graph.outputs[0] if self.dequantize is None else reading.input_of(self.dequantize, 0)
        value = self.quantize.outputs[0]
        self.source = self._feature_of(self.quantize, value, LARGEST.bit_length())
        self._made[value] = (-1, self.source)

    @property
    def ends(self) -> tuple[ir.Node, ...]:
        """The operators that stay outside."""
        return (self.quantize,) if self.dequantize is None else (self.quantize, self.dequantize)

    @property
    def result(self) -> tuple[int, Feature]:
        """The layer that gives the output, and its stream."""
        return self._made[self.end]

    def is_constant(self, node: ir.Node) -> bool:
        """Whether a node computes with constants alone."""
        return all(graph.constant(value) is not None for value in node.outputs)

    def feature(self, node: ir.Node, index: int) -> tuple[Feature, int]:
        """The stream of an input, and the layer that gives it.

        Raises:
            UnsupportedError: it is a constant, or computed by nothing that has hardware.
        """
        found = self._made.get(reading.input_of(node, index))
        if found is None:
            raise reading.refuse(node, f"its input {index} is no activation", "it takes streams of uint8")
        return found[1], found[0]

    def holding(self, node: ir.Node, index: int, zero_point: int) -> tuple[Feature, int]:
        """As `feature`, in as many bits as the zero point needs, which padding and differences are in."""
        source, number = self.feature(node, index)
        if zero_point < 1 << source.bits:
            return source, number
        number, source = self.table_layer(node, number, source, np.arange(1 << source.bits), source.name, 8)
        return source, number

    def pair(self, node: ir.Node, zero_points: tuple[int, int]) -> tuple[tuple[Feature, Feature], tuple[int, int]]:
        """The two streams of a sum or product, of one shape.

        Raises:
            UnsupportedError: one is broadcast.
        """
        (one, a), (two, b) = (self.holding(node, i, z) for i, z in zip((0, 3), zero_points, strict=True))
        if one.shape != two.shape or one.order != two.order:
            what = f"{one.shape} and {two.shape}, which do not arrive in the same order"
            raise reading.refuse(node, what, "it takes two of the same shape, both flattened or neither")
        return (one, two), (a, b)

    def window(self, node: ir.Node, found: OnnxWindow) -> Window:
        """A window over one or two axes, over two."""
        if len(found.kernel) > 2:
            raise reading.refuse(node, "three spatial axes", "it takes one or two")

        def two(values: Sequence[int], filling: int) -> tuple[int, int]:
            return (filling, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))

        return Window(two(found.kernel, 1), two(found.strides, 1), two(found.dilations, 1), two(found.begin, 0))

    def spatial(self, node: ir.Node, value: ir.Value) -> tuple[int, int]:
        """Height and width of a value ``[N, C, *spatial]``."""
        return self._sizes(node, value)[1:]

    def _sizes(self, node: ir.Node, value: ir.Value) -> tuple[int, int, int]:
        """Channels, height and width."""
        batch, *sizes = reading.sizes(node, value)
        if None in sizes or not 1 <= len(sizes) <= 3:
            text = ", ".join("?" if s is None else str(s) for s in (batch, *sizes))
            raise reading.refuse(node, f"its shape [{text}] is not fixed, or not [N, C, H, W]", "fix the input's shape")
        channels, *spatial = (int(s or 1) for s in sizes)
        height, width = (1, 1, *spatial)[-2:] if len(spatial) < 2 else spatial
        return channels, height, width

    def _feature_of(self, node: ir.Node, value: ir.Value, bits: int) -> Feature:
        channels, height, width = self._sizes(node, value)
        return Feature(str(value.name), self._shape(node, value), height, width, channels, bits)

    def _shape(self, node: ir.Node, value: ir.Value) -> tuple[int, ...]:
        return tuple(int(s or 1) for s in reading.sizes(node, value)[1:])

    def made(self, value: ir.Value, bits: int, height: int, width: int, channels: int) -> Feature:
        """The stream of a new value, or of its first channels."""
        shape = graph.static_shape(value)
        spatial = () if shape is None or len(shape) == 2 else (height, width)[4 - len(shape) :]
        return Feature(str(value.name), (channels, *spatial), height, width, channels, bits)

    def like(self, value: ir.Value, source: Feature, bits: int) -> Feature:
        """A stream of the same shape."""
        return replace(source, name=str(value.name), bits=bits)

    def head(
        self, node: ir.Node, kind: str, sources: tuple[int, ...], made: Feature
    ) -> tuple[str, str, tuple[int, ...], tuple[Feature, ...], Feature]:
        """What every layer begins with."""
        features = tuple(self.source if n < 0 else self.layers[n].result for n in sources)
        return graph.describe(node), f"layer_{len(self.layers):03}_{kind}", sources, features, made

    def append(self, layer: Layer) -> int:
        """A layer without a value of its own; its number."""
        self.layers.append(layer)
        return len(self.layers) - 1

    def add(self, layer: Layer, value: ir.Value) -> None:
        """The layer that gives a value."""
        self.define(value, self.append(layer), layer.result)

    def define(self, value: ir.Value, number: int, feature: Feature) -> None:
        """Let a layer stand for a value."""
        self._made[value] = (number, feature)

    def alias(self, node: ir.Node, source: Feature, number: int, shape: tuple[int, ...] | None = None) -> None:
        """A node that leaves its stream as it is, whatever its shape is called."""
        shape = source.shape if shape is None else shape
        self.define(node.outputs[0], number, replace(source, name=str(node.outputs[0].name), shape=shape))

    def absorb_clip(self, node: ir.Node) -> tuple[ir.Value, int, int]:
        """The value that a node gives, behind a Clip that alone reads it, and its bounds."""
        result = node.outputs[0]
        found = reading.clip_behind(result)
        if found is None:
            return result, 0, LARGEST
        clip, low, high = found
        self.merged.add(clip)
        return clip.outputs[0], max(low, 0), min(high, LARGEST)

    def bounds(self, clip: ir.Node) -> tuple[int, int]:
        """The constant bounds of a Clip; the upper one where they are crossed."""
        low, high = reading.bounds(clip)
        if low is None or high is None:
            raise reading.refuse(clip, "its bounds are not constant", "make them initializers")
        return min(low, high), high

    def table_layer(
        self, node: ir.Node, number: int, source: Feature, table: IntArray, name: str, bits: int | None = None
    ) -> tuple[int, Feature]:
        """Append a table; its number and its stream."""
        wide = bits or max(int(table.max(initial=1)).bit_length(), 1)
        made = replace(source, name=name, bits=wide)
        layer = Lookup(*self.head(node, "table", (number,), made), np.asarray(table, np.int64))
        return self.append(layer), made

    def look_up(
        self, node: ir.Node, number: int, source: Feature, value: ir.Value, table: IntArray, bits: int | None = None
    ) -> None:
        """A table that gives a value."""
        self.define(value, *self.table_layer(node, number, source, table, str(value.name), bits))

    def numbers(self, node: ir.Node, index: int) -> Any:
        """A constant input as a list of integers; None where it is left out."""
        if index >= len(node.inputs) or node.inputs[index] is None:
            return None
        return [int(v) for v in reading.array(node, index, "parameter").reshape(-1)]


def _ends(target: ir.Graph) -> tuple[ir.Node, ir.Node | None]:
    hint = (
        "a design has one stream in and one out, and nothing in it stays in float: leave out --allow-float and --keep"
    )
    if len(target.inputs) != 1 or len(target.outputs) != 1:
        what = f"{len(target.inputs)} inputs and {len(target.outputs)} outputs"
        raise UnsupportedError(what, where="the model", hint=hint)
    first, last = graph.only_user(target.inputs[0]), target.outputs[0].producer()
    if first is None or not graph.is_op(first, "QuantizeLinear"):
        raise UnsupportedError("its input is not quantized first", where="the model", hint=hint)
    if last is not None and graph.is_op(last, "ArgMax"):
        return first, None
    if last is None or not graph.is_op(last, "DequantizeLinear"):
        where = "the model" if last is None else graph.describe(last)
        raise UnsupportedError("the output is not dequantized last", where=where, hint=hint)
    return first, last
