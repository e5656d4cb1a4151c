"""QLinearConv as one product of matrices, channels-last: MatMulInteger runs at full speed where ConvInteger does not.

- Pointwise: the activation's rows of channels times the weight.
- Other kernels: padding, the taps of each output behind one another, ``[N, outputs, taps * C]``
  (`qcomp.expansion.windows`), and one product.
- Groups: as that, with the groups as a batch of products.
- Depthwise: `qcomp.expansion.depthwise`.

The input's zero point is not subtracted: ``sum((x - z) * w) = sum(x * w) - z * sum(w)``, where padding holds z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.expansion import depthwise, reading, windows
from qcomp.expansion.products import weighted_sums
from qcomp.expansion.requantize import Sums, Target, requantize
from qcomp.expansion.site import Context, repeats, tiled
from qcomp.expansion.window import Window
from qcomp.graph import Array


@dataclass(frozen=True)
class Layer:
    """A QLinearConv.

    Args:
        result: what the expansion computes, behind a merged Clip.
        weight: int8 ``(OC, C / group, *kernel)``.
        zero_point: of the input.
        sizes: the spatial sizes of the input, None where dynamic.
    """

    node: ir.Node
    source: ir.Value
    result: ir.Value
    weight: Array
    group: int
    window: Window
    zero_point: int
    sizes: tuple[int | None, ...]
    sums: Sums
    target: Target

    @property
    def name(self) -> str:
        """The prefix of new values."""
        return str(self.result.name)

    @property
    def static(self) -> tuple[int, ...] | None:
        """The spatial sizes, where all are known."""
        known = tuple(s for s in self.sizes if s is not None)
        return known if len(known) == len(self.sizes) else None


def conv(context: Context, node: ir.Node) -> None:
    """Expand a QLinearConv.

    Raises:
        UnsupportedError: its parameters are not those of the integer graph.
    """
    layer = _layer(context, node)
    channels = layer.weight.shape[0]
    if layer.group == 1:
        _dense(context, layer)
    elif layer.group == channels and layer.weight.shape[1] == 1 and layer.static is not None:
        depthwise.conv(context, layer)
    else:
        _grouped(context, layer)


def _layer(context: Context, node: ir.Node) -> Layer:
    source = reading.input_of(node, 0)
    weight, zero = reading.weight(node, 3), reading.zero_point(node, 2)
    sizes = reading.sizes(node, source)[2:]
    bias = reading.bias(node, 8, weight.shape[0])
    factor, out_zero = reading.factor(node, 4, outputs=(1, 6)), reading.zero_point(node, 7)
    window, group = Window.of(node, weight.shape[2:]), graph.attribute(node, "group", 1)
    result, low, high = context.absorb_clip(node)
    sums = weighted_sums(node, weight.reshape(weight.shape[0], -1), zero, bias)
    return Layer(node, source, result, weight, group, window, zero, sizes, sums, Target(factor, out_zero, low, high))


def _dense(context: Context, layer: Layer) -> None:
    if layer.static is None:
        _dense_dynamic(context, layer)
        return
    matrix = _matrix(layer.weight)
    if layer.window.is_pointwise:
        rows = context.forms.pixels(layer.source)
    else:
        rows, matrix = windows.windows(context, layer, matrix)
    raw = _product(context, layer, rows, matrix)
    outs, channels = layer.window.out_sizes(layer.static), layer.weight.shape[0]
    context.note_macs(raw, layer.result, math.prod(outs) * layer.weight.size)
    count = repeats(math.prod(outs), channels)
    made = (math.prod(outs) // count, count * channels)
    raw = context.emitter.reshape(raw, (0, *made), f"{layer.name}_rows")
    new = requantize(context.emitter, raw, layer.sums, layer.target, layer.name, tiled(count))
    context.replace_last(layer.node, layer.result, new, made)


def _dense_dynamic(context: Context, layer: Layer) -> None:
    rows = _taps_behind_one_another(context, layer)
    raw = _product(context, layer, rows, _matrix(layer.weight))
    new = requantize(context.emitter, raw, layer.sums, layer.target, layer.name)
    context.replace_last(layer.node, layer.result, new, _made(layer))


def _grouped(context: Context, layer: Layer) -> None:
    """The groups become a batch: ``[N, G, *outputs, taps * C / G] x [G, .., taps * C / G, OC / G]``."""
    emitter, name, dims = context.emitter, layer.name, len(layer.sizes)
    channels, width = layer.weight.shape[0] // layer.group, layer.weight.shape[1]
    rows = _taps_behind_one_another(context, layer)
    keep, inner = (0,) * (dims + 1), dims + 1
    split = emitter.reshape(rows, (*keep, layer.window.taps, layer.group, width), f"{name}_groups")
    order = (0, dims + 2, *range(1, dims + 1), inner, dims + 3)
    batch = emitter.transpose(split, order, f"{name}_group_first")
    joined = emitter.reshape(batch, (*keep, 0, layer.window.taps * width), f"{name}_group_rows")
    weights = layer.weight.reshape(layer.group, channels, width, -1).transpose(0, 3, 2, 1)
    matrices = weights.reshape(layer.group, *(1,) * (dims - 1), -1, channels)
    raw = _product(context, layer, joined, matrices)
    new = requantize(
        emitter, raw, layer.sums, layer.target, name, lambda a: a.reshape(layer.group, *(1,) * dims, channels)
    )
    back = emitter.transpose(new, (0, *range(2, dims + 2), 1, dims + 2), f"{name}_group_last")
    made = _made(layer)
    shaped = emitter.reshape(back, (*keep, made[-1]), f"{name}_channels_last")
    context.replace_last(layer.node, layer.result, shaped, made)


def _taps_behind_one_another(context: Context, layer: Layer) -> ir.Value:
    """``[N, *outputs, taps * C]``, by slices."""
    emitter, window = context.emitter, layer.window
    padded = window.pad(emitter, context.forms.last(layer.source), layer.zero_point, layer.name)
    if window.is_pointwise:
        return padded
    parts = window.slices(emitter, padded, layer.name)
    return parts[0] if len(parts) == 1 else emitter.op("Concat", parts, f"{layer.name}_taps", axis=-1)


def _made(layer: Layer) -> tuple[int, ...]:
    """``(*outputs, OC)``, 0 where dynamic."""
    sizes = reading.sizes(layer.node, layer.result)[2:]
    return (*(s or 0 for s in sizes), layer.weight.shape[0])


def _matrix(weight: Array) -> Array:
    """``(OC, C, *kernel)`` as ``(taps * C, OC)``."""
    channels, width = weight.shape[:2]
    return weight.reshape(channels, width, -1).transpose(2, 1, 0).reshape(-1, channels)


def _product(context: Context, layer: Layer, rows: ir.Value, matrix: Array) -> ir.Value:
    constant = context.emitter.constant(np.ascontiguousarray(matrix), f"{layer.name}_weight")
    return context.emitter.op("MatMulInteger", [rows, constant], f"{layer.name}_product")
