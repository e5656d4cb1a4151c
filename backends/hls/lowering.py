"""The integer graph as layers of a dataflow design: one function an operator, in a table keyed by operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.backends.hls import moves
from qcomp.backends.hls.layers import (
    Add,
    Concat,
    Feature,
    GlobalAverage,
    Layer,
    Linear,
    Multiply,
    Pool,
    Target,
)
from qcomp.backends.hls.reader import Reader
from qcomp.errors import UnsupportedError
from qcomp.expansion import reading
from qcomp.expansion.pooling import pool_window
from qcomp.expansion.window import Window as OnnxWindow
from qcomp.graph import Array
from qcomp.integer.requantize import LARGEST
from qcomp.quantization.dyadic import Dyadic, shift_half_even
from qcomp.quantization.qparams import IntArray

MOST_WEIGHTS = 1 << 26
"""Of one layer: no chip holds more."""


@dataclass(frozen=True)
class Network:
    """A design before it is folded.

    Args:
        layers: in an order in which sources come first.
        last: the layer whose result is the output.
        source, result: the streams in and out.
        quantize, dequantize: the operators at the ends, which stay outside; None behind an ArgMax.
    """

    layers: list[Layer]
    last: int
    source: Feature
    result: Feature
    quantize: ir.Node
    dequantize: ir.Node | None


def lower(model: ir.Model) -> Network:
    """The layers of an integer graph with one input and one output.

    Raises:
        UnsupportedError: an operator, or a shape, that has no hardware here.
    """
    reader = Reader(model)
    for node in _leading_to(model.graph, reader.end):
        kind = node.op_type if node.domain == "" else f"{node.domain}.{node.op_type}"
        if node in reader.ends or node in reader.merged or reader.is_constant(node):
            continue
        emit = TABLE.get(kind)
        if emit is None:
            hint = f"it takes {', '.join(sorted(k.split('.')[-1] for k in TABLE))}; keep the rest on the processor"
            raise UnsupportedError("has no hardware here", where=graph.describe(node), hint=hint)
        emit(reader, node)
    last, result = reader.result
    if last < 0:
        raise UnsupportedError("it has no layer in integers", where="the model", hint="qcomp inspect shows the graph")
    return Network(reader.layers, last, reader.source, result, reader.quantize, reader.dequantize)


def _leading_to(target: ir.Graph, end: ir.Value) -> list[ir.Node]:
    """The operators that a value is computed by, in the order of the graph; others have no stream to end in."""
    found: set[ir.Node] = set()
    stack = [end]
    while stack:
        node = stack.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            stack += [value for value in node.inputs if value is not None]
    return [node for node in target if node in found]


def _conv(reader: Reader, node: ir.Node) -> None:
    weight, zero, group = reading.weight(node, 3), reading.zero_point(node, 2), graph.attribute(node, "group", 1)
    source, number = reader.holding(node, 0, zero)
    if weight.ndim not in (3, 4):
        raise reading.refuse(node, "a convolution over three spatial axes", "it takes one or two")
    window = reader.window(node, OnnxWindow.of(node, weight.shape[2:]))
    rows, height, width = weight.shape[0], *reader.spatial(node, node.outputs[0])
    depthwise = group == rows == source.channels and weight.shape[1] == 1 and group > 1
    matrix = _channels_last(node, weight, group, source.channels, depthwise=depthwise)
    bias = reading.bias(node, 8, rows) - zero * matrix.sum(axis=1)
    target, result, bits = _target(reader, node, reading.factor(node, 4, outputs=(1, 6)), reading.zero_point(node, 7))
    made = reader.made(result, bits, height, width, rows)
    same = (height, width) == (source.height, source.width)
    whole = None if window.is_pointwise and same and not depthwise else window
    layer = Linear(
        *reader.head(node, "conv", (number,), made), whole, zero, matrix, bias, target, height * width, depthwise
    )
    reader.add(layer, result)


def _channels_last(node: ir.Node, weight: Array, group: int, channels: int, *, depthwise: bool) -> IntArray:
    """``(rows, taps * channels)``; groups filled up with zeros; ``(channels, taps)`` for a depthwise convolution."""
    rows, width = weight.shape[:2]
    if not depthwise and rows * math.prod(weight.shape[2:]) * channels > MOST_WEIGHTS:
        what = f"its {group} groups, filled up with zeros, are more than {MOST_WEIGHTS} weights"
        raise reading.refuse(node, what, "keep it on the processor")
    taps = weight.reshape(rows, width, -1).astype(np.int64)
    if depthwise:
        return taps[:, 0]
    full = np.zeros((rows, taps.shape[2], channels), np.int64)
    for row in range(rows):
        first = row // (rows // group) * width
        full[row, :, first : first + width] = taps[row].T
    return full.reshape(rows, -1)


def _gemm(reader: Reader, node: ir.Node) -> None:
    if graph.attribute(node, "alpha", 1.0) != 1.0 or graph.attribute(node, "transA", 0):
        raise reading.refuse(node, "alpha is not 1, or transA is set", "fold them into its operands")
    if len(node.inputs) < 9 or node.inputs[8] is None:
        raise reading.refuse(node, "it gives floats", "give it an output zero point")
    matrix = reading.weight(node, 3)
    matrix = matrix if graph.attribute(node, "transB", 0) else matrix.T
    _product(reader, node, matrix, reading.bias(node, 6, matrix.shape[0]), 8, (1, 7))


def _matmul(reader: Reader, node: ir.Node) -> None:
    if graph.constant(node.inputs[3]) is None:
        raise reading.refuse(node, "a product of two activations", "it takes constant weights")
    matrix = reading.weight(node, 3)
    if matrix.ndim != 2 or len(reading.sizes(node, node.inputs[0])) != 2:
        raise reading.refuse(node, "a product of more than two dimensions", "it takes rows and a matrix")
    _product(reader, node, matrix.T, np.zeros(matrix.shape[1], np.int64), 7, (1, 6))


def _product(
    reader: Reader, node: ir.Node, matrix: Array, bias: IntArray, zero_point: int, ones: Sequence[int]
) -> None:
    """Rows of a whole sample, whose columns are brought into the order in which its integers arrive."""
    source, number = reader.feature(node, 0)
    rows, columns = matrix.shape
    if columns != source.size:
        raise reading.refuse(node, f"reads rows of {columns} of {source.size} integers", "flatten its input")
    order = np.arange(columns).reshape(source.channels, source.pixels).T.reshape(-1)
    weight = matrix.astype(np.int64)[:, order]
    zero = reading.zero_point(node, 2)
    factor = reading.factor(node, 4, outputs=ones)
    target, result, bits = _target(reader, node, factor, reading.zero_point(node, zero_point))
    made = reader.made(result, bits, 1, 1, rows)
    layer = Linear(
        *reader.head(node, "gemm", (number,), made), None, zero, weight, bias - zero * weight.sum(axis=1), target, 1
    )
    reader.add(layer, result)


def _target(reader: Reader, node: ir.Node, factor: Dyadic, zero_point: int) -> tuple[Target, ir.Value, int]:
    """Requantization with a Clip behind the node in it; the value it gives, and the bits of that."""
    result, low, high = reader.absorb_clip(node)
    return Target(factor.multiplier, factor.shift, zero_point, low, high), result, max(high.bit_length(), 1)


def _add(reader: Reader, node: ir.Node) -> None:
    factors = [reading.factor(node, i, outputs=(6,)) for i in (1, 4)]
    shift = max(f.shift for f in factors)
    multipliers = [int(f.multiplier) << (shift - f.shift) for f in factors]
    if max(multipliers) >= 1 << 31:
        raise reading.refuse(node, "its factors are too far apart", "make them with dyadic-rescale")
    zeros = reading.zero_point(node, 2), reading.zero_point(node, 5)
    target, result, bits = _target(reader, node, Dyadic(np.array(1), shift), reading.zero_point(node, 7))
    constants = [graph.constant(node.inputs[i]) for i in (0, 3)]
    if any(c is not None for c in constants):
        _with_scalar(reader, node, constants, result, bits, lambda a, b: _summed(a, b, zeros, multipliers, target))
        return
    features, numbers = reader.pair(node, zeros)
    made = reader.like(result, features[0], bits)
    head = reader.head(node, "add", numbers, made)
    reader.add(Add(*head, zeros, (multipliers[0], multipliers[1]), target), result)


def _summed(a: IntArray, b: IntArray, zeros: Sequence[int], multipliers: Sequence[int], target: Target) -> IntArray:
    total = (a - zeros[0]) * multipliers[0] + (b - zeros[1]) * multipliers[1]
    return np.clip(shift_half_even(total, target.shift) + target.zero_point, target.low, target.high)


def _multiply(reader: Reader, node: ir.Node) -> None:
    factor, zeros = reading.factor(node, 1, outputs=(4, 6)), (reading.zero_point(node, 2), reading.zero_point(node, 5))
    target, result, bits = _target(reader, node, factor, reading.zero_point(node, 7))

    def multiplied(a: IntArray, b: IntArray) -> IntArray:
        raw = shift_half_even((a - zeros[0]) * (b - zeros[1]) * int(target.multiplier), target.shift)
        return np.clip(raw + target.zero_point, target.low, target.high)

    constants = [graph.constant(node.inputs[i]) for i in (0, 3)]
    if any(c is not None for c in constants):
        _with_scalar(reader, node, constants, result, bits, multiplied)
        return
    features, numbers = reader.pair(node, zeros)
    made = reader.like(result, features[0], bits)
    reader.add(Multiply(*reader.head(node, "multiply", numbers, made), zeros, target), result)


def _with_scalar(
    reader: Reader,
    node: ir.Node,
    constants: Sequence[Array | None],
    result: ir.Value,
    bits: int,
    function: Callable[[IntArray, IntArray], IntArray],
) -> None:
    """An activation and one number: a table."""
    index = 0 if constants[0] is None else 1
    other = constants[1 - index]
    if other is None or other.size != 1 or constants[index] is not None:
        raise reading.refuse(node, "a constant for each channel or position", "fold it into the layer before it")
    source, number = reader.feature(node, 3 * index)
    entries, constant = np.arange(1 << source.bits), np.full(1 << source.bits, int(other.reshape(())))
    table = function(*((entries, constant) if index == 0 else (constant, entries)))
    reader.look_up(node, number, source, result, table, bits)


def _table(reader: Reader, node: ir.Node) -> None:
    source, number = reader.feature(node, 0)
    entries = reading.array(node, 1, "table").astype(np.int64)[: 1 << source.bits]
    reader.look_up(node, number, source, node.outputs[0], entries)


def _clip(reader: Reader, node: ir.Node) -> None:
    source, number = reader.feature(node, 0)
    low, high = reader.bounds(node)
    if low <= 0 and high >= (1 << source.bits) - 1:
        reader.alias(node, source, number)
        return
    reader.look_up(node, number, source, node.outputs[0], np.clip(np.arange(1 << source.bits), low, high))


def _concat(reader: Reader, node: ir.Node) -> None:
    _joined(reader, node, [reader.feature(node, i) for i in range(len(node.inputs))])


def _rescaling_concat(reader: Reader, node: ir.Node) -> None:
    target_zero, parts = reading.zero_point(node, 1), []
    for index in range(2, len(node.inputs), 3):
        source, number = reader.feature(node, index)
        factor, zero = reading.factor(node, index + 1, outputs=(0,)), reading.zero_point(node, index + 2)
        raw = shift_half_even((np.arange(1 << source.bits) - zero) * int(factor.multiplier), factor.shift)
        table = np.clip(raw + target_zero, 0, LARGEST)
        if not np.array_equal(table, np.arange(1 << source.bits)):
            number, source = reader.table_layer(node, number, source, table, source.name)
        parts.append((source, number))
    _joined(reader, node, parts)


def _joined(reader: Reader, node: ir.Node, parts: Sequence[tuple[Feature, int]]) -> None:
    """Two at a time, the channels behind one another."""
    rank = len(reading.sizes(node, node.outputs[0]))
    if graph.attribute(node, "axis", 1) % rank != 1 or len({(f.height, f.width) for f, _ in parts}) > 1:
        raise reading.refuse(node, "a Concat along another axis than the channels", "keep it on the processor")
    if any(len(f.shape) == 1 and f.pixels > 1 for f, _ in parts):
        raise reading.refuse(node, "a Concat of flattened images", "join before flattening")
    source, number = parts[0]
    for other, which in parts[1:]:
        channels, bits = source.channels + other.channels, max(source.bits, other.bits)
        made = reader.made(node.outputs[0], bits, source.height, source.width, channels)
        number = reader.append(Concat(*reader.head(node, "concat", (number, which), made)))
        source = made
    reader.define(node.outputs[0], number, source)


def _max_pool(reader: Reader, node: ir.Node) -> None:
    source, number = reader.feature(node, 0)
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise reading.refuse(node, "its indices are read", "it gives the values alone")
    height, width = reader.spatial(node, node.outputs[0])
    sizes, declared = ([s or 0 for s in reading.sizes(node, v)[2:]] for v in (node.inputs[0], node.outputs[0]))
    found = pool_window(node, tuple(sizes))
    if found is None or found.out_sizes(sizes) != tuple(declared):
        raise reading.refuse(node, "a window that begins in the padding behind the image", "leave out ceil_mode")
    window = reader.window(node, found)
    made = reader.made(node.outputs[0], source.bits, height, width, source.channels)
    reader.add(Pool(*reader.head(node, "max_pool", (number,), made), window), node.outputs[0])


def _global_average(reader: Reader, node: ir.Node) -> None:
    zero = reading.zero_point(node, 2)
    source, number = reader.holding(node, 0, zero)
    if graph.attribute(node, "channels_last", 0):
        raise reading.refuse(node, "channels_last is set", "leave it 0")
    factor = reading.factor(node, 1, source.pixels, outputs=(3,))
    target, result, bits = _target(reader, node, factor, reading.zero_point(node, 4))
    made = reader.made(result, bits, 1, 1, source.channels)
    reader.add(GlobalAverage(*reader.head(node, "global_average", (number,), made), zero, target), result)


TABLE: dict[str, Callable[[Reader, ir.Node], None]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "com.microsoft.QGemm": _gemm,
    "com.microsoft.QLinearAdd": _add,
    "com.microsoft.QLinearMul": _multiply,
    "com.microsoft.QLinearConcat": _rescaling_concat,
    "com.microsoft.QLinearGlobalAveragePool": _global_average,
    "qcomp.Table": _table,
    "qcomp.Softmax": moves.softmax,
    "Clip": _clip,
    "Concat": _concat,
    "MaxPool": _max_pool,
    "Slice": moves.slices,
    "Pad": moves.pad,
    "Reshape": moves.reshape,
    "Flatten": moves.reshape,
    "Squeeze": moves.reshape,
    "Unsqueeze": moves.reshape,
    "Identity": moves.reshape,
    "ArgMax": moves.arg_max,
}
