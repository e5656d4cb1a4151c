"""Operators that move integers: slices, padding, shapes, and the place of the largest."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.backends.hls.layers import ArgMax, Feature, Pad, Slice, Softmax
from qcomp.backends.hls.reader import Reader
from qcomp.expansion import reading


def slices(reader: Reader, node: ir.Node) -> None:
    """Slice of rows, columns and channels."""
    source, number = reader.feature(node, 0)
    sizes = (1, *source.shape)
    starts, ends = reader.numbers(node, 1), reader.numbers(node, 2)
    axes = reader.numbers(node, 3) or list(range(len(starts)))
    steps = reader.numbers(node, 4) or [1] * len(starts)
    ranges = [range(s) for s in sizes]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if axis % len(sizes) == 0 or step < 1 or (len(source.shape) == 1 and source.pixels > 1):
            raise reading.refuse(node, "slices samples, backwards, or a flattened image", "keep it on the processor")
        ranges[axis % len(sizes)] = range(*slice(start, end, step).indices(sizes[axis % len(sizes)]))
    channels, *spatial = ranges[1:]
    rows, columns = [range(1), range(1), *spatial][-2:]
    if channels.step != 1 or not all(map(len, ranges)):
        raise reading.refuse(node, "takes every other channel, or nothing", "keep it on the processor")
    made = reader.made(node.outputs[0], source.bits, len(rows), len(columns), len(channels))
    head = reader.head(node, "slice", (number,), made)
    reader.add(Slice(*head, (rows.start, columns.start), (rows.step, columns.step), channels.start), node.outputs[0])


def pad(reader: Reader, node: ir.Node) -> None:
    """Pad by a constant."""
    source, number = reader.feature(node, 0)
    amounts = reader.numbers(node, 1)
    rank = len(source.shape) + 1
    axes = [a % rank for a in reader.numbers(node, 3) or range(rank)]
    if graph.attribute(node, "mode", "constant") != "constant" or min(amounts) < 0:
        raise reading.refuse(node, "its mode is not constant, or it crops", "keep it on the processor")
    begin, end = (dict(zip(axes, half, strict=True)) for half in np.reshape(amounts, (2, -1)).tolist())
    if begin.get(0, 0) or end.get(0, 0) or (len(source.shape) == 1 and source.pixels > 1):
        raise reading.refuse(node, "pads samples, or a flattened image", "keep it on the processor")
    value = graph.scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0
    if value is None:
        raise reading.refuse(node, "its value is not constant", "make it an initializer")
    before = [begin.get(a, 0) for a in range(1, rank)]
    behind = [end.get(a, 0) for a in range(1, rank)]
    top, left = [0, 0, *before[1:]][-2:]
    height, width = (
        s + b + e for s, b, e in zip((source.height, source.width), (top, left), [0, 0, *behind[1:]][-2:], strict=True)
    )
    bits = max(source.bits, int(value).bit_length())
    made = reader.made(node.outputs[0], bits, height, width, source.channels + before[0] + behind[0])
    reader.add(Pad(*reader.head(node, "pad", (number,), made), (top, left), before[0], int(value)), node.outputs[0])


def reshape(reader: Reader, node: ir.Node) -> None:
    """Shapes that leave the order of a sample's integers as it is, or flatten it for a product behind."""
    source, number = reader.feature(node, 0)
    _, *sizes = reading.sizes(node, node.outputs[0])
    shape = tuple(int(s) for s in sizes if s is not None)
    fixed = len(shape) == len(sizes) and math.prod(shape) == source.size
    if fixed and (len(shape) == 1 or shape == source.shape or (source.pixels == 1 and shape[0] == source.channels)):
        reader.alias(node, source, number, shape)
        return
    raise reading.refuse(node, f"makes {shape} of {source.shape}", "it takes flattening to [N, C * H * W]")


def softmax(reader: Reader, node: ir.Node) -> None:
    """``qcomp.Softmax`` over the channels."""
    source, number = reader.feature(node, 0)
    axes = [int(a) % (len(source.shape) + 1) for a in graph.attribute(node, "axes", ())]
    if axes != [1] or (len(source.shape) == 1 and source.pixels > 1):
        raise reading.refuse(node, "not over the channels", "take axis=1, or an input of [N, C]")
    table = reading.array(node, 1, "table").astype(np.int64)[: 1 << source.bits]
    numerator, shift = (int(reading.array(node, i, "constant").reshape(())) for i in (2, 3))
    made = reader.like(node.outputs[0], source, 8)
    reader.add(Softmax(*reader.head(node, "softmax", (number,), made), table, numerator, shift), node.outputs[0])


def arg_max(reader: Reader, node: ir.Node) -> None:
    """The place of the largest channel."""
    source, number = reader.feature(node, 0)
    last = bool(graph.attribute(node, "select_last_index", 0))
    if graph.attribute(node, "axis", 0) % (len(source.shape) + 1) != 1 or last or source.channels >= 1 << 16:
        raise reading.refuse(node, "not the first largest channel", "take axis=1 and the first index")
    if len(source.shape) == 1 and source.pixels > 1:
        raise reading.refuse(node, "of a flattened image", "take it before flattening")
    shape = tuple(int(s or 1) for s in reading.sizes(node, node.outputs[0])[1:])
    made = Feature(str(node.outputs[0].name), shape, source.height, source.width, 1, 16)
    reader.add(ArgMax(*reader.head(node, "arg_max", (number,), made)), node.outputs[0])
