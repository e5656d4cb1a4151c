"""Writing and reading Q/DQ nodes: the one form in which quantization lives on the graph.

A quantized value ``x`` stands as ``x -> QuantizeLinear -> x_quantized -> DequantizeLinear -> x_dequantized``; where
the type does not fill its container, or a Relu is not implied by the range, an integer Clip stands between the two.

A weight that is to be stored in 4 bits has a Cast to INT4 as the last of them: no operator but DequantizeLinear and
Cast knows that type. What rounds the weight puts INT4 in place of all three, see `Reader.stored`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.graph import DEQUANTIZED, QUANTIZED, Array, Names
from qcomp.quantization.qparams import QParams, spread

RAW = "_float"
"""The suffix of what an operator computes where its dequantized form has the name of a graph output."""
CLIPPED = "_clipped"
"""The suffix of what the integer Clip of a quantized value gives."""
PACKED = "_packed"
"""The suffix of a quantized weight in a 4-bit container."""
FLOAT_REASON = "qcomp.float"
"""The key of a node's metadata that says why it stays in float."""
NOT_LOWERED = "qcomp.not_lowered"
"""The key of a node's metadata that says why no pass put operators with an integer form in its place."""


@dataclass(frozen=True)
class Scale:
    """The initializers that the Q/DQ nodes of one scale group share."""

    params: QParams
    scale: ir.Value
    zero_point: ir.Value


class Writer:
    """Adds Q/DQ nodes to a graph; one a pass."""

    def __init__(self, target: ir.Graph) -> None:
        self.graph = target
        self.names = Names(target)
        self._first = next(iter(target), None)

    def scale(self, params: QParams, name: str) -> Scale:
        """Register the initializers of one scale group."""
        scale = graph.initializer(self.graph, self.names, f"{name}_scale", params.scale)
        zero = graph.initializer(self.graph, self.names, f"{name}_zero_point", params.zero_point)
        return Scale(params, scale, zero)

    def quantize(self, value: ir.Value, scale: Scale, name: str) -> ir.Value:
        """``QuantizeLinear``, right behind what produces the value."""
        inputs, attributes = [value, scale.scale, scale.zero_point], _attributes(scale.params)
        return self.add("QuantizeLinear", inputs, name + QUANTIZED, attributes, scale.zero_point.dtype, after=value)

    def dequantize(self, value: ir.Value, scale: Scale, name: str, *, biased: bool = True) -> ir.Value:
        """``DequantizeLinear``, right behind what produces the value."""
        inputs, attributes = [value, scale.scale, *([scale.zero_point] if biased else [])], _attributes(scale.params)
        return self.add("DequantizeLinear", inputs, name + DEQUANTIZED, attributes, ir.DataType.FLOAT, after=value)

    def weight(self, value: ir.Value, params: QParams, *, packed: bool = False, biased: bool = True) -> ir.Value:
        """A constant, quantized and dequantized.

        Args:
            value: a float initializer.
            params: symmetric.
            packed: store it in 4 bits.
            biased: write the zero points, which are all 0, into the DequantizeLinear too.
        """
        name, kind = str(value.name), params.qtype
        scale = self.scale(params, name)
        integers = self.clip(self.quantize(value, scale, name), kind.qmin, kind.qmax, scale, name)
        if packed:
            to = {"to": int(ir.DataType.INT4)}
            integers = self.add("Cast", [integers], f"{name}{PACKED}", to, ir.DataType.INT4, after=integers)
        return self.dequantize(integers, scale, name, biased=biased and not packed)

    def clip(self, value: ir.Value, low: int, high: int, scale: Scale, name: str) -> ir.Value:
        """An integer ``Clip`` of a quantized value."""
        kind = scale.params.qtype.container
        bounds = [
            graph.initializer(self.graph, self.names, f"{name}_{end}", np.asarray(bound, kind))
            for end, bound in (("least", low), ("greatest", high))
        ]
        return self.add("Clip", [value, *bounds], f"{name}{CLIPPED}", {}, scale.zero_point.dtype, after=value)

    def constant(self, array: Array | ir.TensorProtocol, name: str) -> ir.Value:
        """A new initializer."""
        return graph.initializer(self.graph, self.names, name, array)

    def add(
        self,
        op: str,
        inputs: list[ir.Value],
        name: str,
        attributes: dict[str, int],
        dtype: ir.DataType | None,
        *,
        after: ir.Value,
    ) -> ir.Value:
        """A node with one output of the shape of its first input, right behind the producer of ``after``."""
        out = ir.Value(
            name=self.names.fresh(name), shape=inputs[0].shape, type=None if dtype is None else ir.TensorType(dtype)
        )
        node = ir.node(op, inputs, attributes, outputs=[out], name=self.names.fresh(f"{name}_{op}"))
        producer = after.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        else:
            self._prepend(node)
        return out

    def _prepend(self, node: ir.Node) -> None:
        """Put the node before what was first when the pass began, or, where that is gone, before what is now."""
        if self._first is not None and self._first.graph is not self.graph:
            self._first = next(iter(self.graph), None)
        if self._first is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._first, node)


def _attributes(params: QParams) -> dict[str, int]:
    found = {} if params.axis is None else {"axis": params.axis}
    return found if params.block is None else {**found, "block_size": params.block}


@dataclass(frozen=True)
class Reader:
    """A quantized value as found on the graph, from its DequantizeLinear backwards.

    Args:
        dequantize: the DequantizeLinear node.
        clip: the integer Clip before it, if any.
        quantize: the QuantizeLinear node, or None where the integers are an initializer or come from elsewhere.
        source: the float value before the QuantizeLinear, or the integers where there is none.
        cast: the Cast to INT4 before the DequantizeLinear, if any.
    """

    dequantize: ir.Node
    clip: ir.Node | None
    quantize: ir.Node | None
    source: ir.Value
    cast: ir.Node | None = None

    @property
    def between(self) -> list[ir.Node]:
        """The nodes from the source to the DequantizeLinear, which goes without them once the source is rounded."""
        return [node for node in (self.cast, self.clip, self.quantize) if node is not None]

    @property
    def scale(self) -> Array:
        """float32: a scalar, a vector, or of blocks the rank of the tensor."""
        array = graph.constant(self.dequantize.inputs[1])
        assert array is not None
        return array

    @property
    def axis(self) -> int | None:
        """The channel axis, or that along which blocks lie; None per tensor."""
        return int(graph.attribute(self.dequantize, "axis", 1)) if self.scale.ndim else None

    @property
    def block(self) -> int | None:
        """How many elements along the axis share a scale; None where it is not one of blocks."""
        return int(graph.attribute(self.dequantize, "block_size", 0)) or None

    def along(self, array: Any, shape: tuple[int, ...]) -> Any:
        """The scale, or an array of its shape, so that it broadcasts against a tensor of that shape."""
        return spread(array, self.axis, self.block, shape)

    @property
    def dtype(self) -> ir.DataType:
        """Of the integers that the DequantizeLinear reads."""
        return ir.DataType.INT4 if self.cast is not None else ir.DataType.from_numpy(self.zero_point.dtype)

    def stored(self, integers: Array) -> ir.TensorProtocol:
        """Rounded integers as `dtype` says."""
        kept = integers.astype(ml_dtypes.int4) if self.cast is not None else integers
        return ir.tensor(np.ascontiguousarray(kept).reshape(integers.shape))

    @property
    def zero_point(self) -> Array:
        """Integers of the container, the shape of the scale."""
        inputs = self.dequantize.inputs
        array = graph.constant(inputs[2]) if len(inputs) > 2 else None
        return np.zeros(self.scale.shape, np.int8) if array is None else array

    @property
    def largest(self) -> int:
        """The largest magnitude of the integers less their zero point."""
        info = np.iinfo(self.zero_point.dtype)
        low, high = self.bounds or (int(info.min), int(info.max))
        zero = self.zero_point.astype(np.int64)
        return int(np.maximum(high - zero, zero - low).max())

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The bounds of the integer Clip."""
        if self.clip is None:
            return None
        low, high = (graph.constant(v) for v in self.clip.inputs[1:3])
        assert low is not None
        assert high is not None
        return int(low), int(high)


def read(value: ir.Value | None) -> Reader | None:
    """The quantized value behind a DequantizeLinear's output; None where the value is no such output."""
    dequantize = None if value is None else value.producer()
    if dequantize is None or not graph.is_op(dequantize, "DequantizeLinear"):
        return None
    integers = dequantize.inputs[0]
    assert integers is not None
    node = integers.producer()
    cast = node if node is not None and graph.is_op(node, "Cast") and integers.dtype == ir.DataType.INT4 else None
    integers = cast.inputs[0] if cast is not None else integers
    assert integers is not None
    node = integers.producer()
    clip = node if node is not None and graph.is_op(node, "Clip") else None
    before = clip.inputs[0] if clip is not None else integers
    producer = None if before is None else before.producer()
    quantize = producer if producer is not None and graph.is_op(producer, "QuantizeLinear") else None
    source = quantize.inputs[0] if quantize is not None else integers
    assert source is not None
    return Reader(dequantize, clip, quantize, source, cast)


def float_name(value: ir.Value) -> str:
    """The name of the float value that a dequantized one stands for: the key of its statistics."""
    return str(value.name).removesuffix(DEQUANTIZED)


def why_float(node: ir.Node) -> str | None:
    """The reason that an earlier choice noted for leaving the node in float, or None."""
    return node.metadata_props.get(FLOAT_REASON)
