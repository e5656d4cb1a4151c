"""MaxPool and QLinearGlobalAveragePool on uint8, channels-last.

ONNX Runtime's MaxPool of uint8 takes thirty times as long as that of floats: the maximum over a window is a Max of
shifted slices, along one axis at a time, of whole rows of channels. A sum over positions is a product with ones.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.expansion import reading
from qcomp.expansion.emitter import TO_THE_END
from qcomp.expansion.requantize import Sums, Target, requantize
from qcomp.expansion.site import Context
from qcomp.expansion.window import Window
from qcomp.integer.requantize import LARGEST


def max_pool(context: Context, node: ir.Node) -> bool:
    """Expand a MaxPool of uint8; say whether it could be.

    It stays where it gives indices, where its padding follows from a dynamic size, and where ``ceil_mode`` drops a
    window, which runtimes and onnx's shape inference do not agree on.
    """
    source = reading.input_of(node, 0)
    sizes = reading.sizes(node, source)[2:]
    window = pool_window(node, sizes)
    if window is None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    result, emitter, static = node.outputs[0], context.emitter, None not in sizes
    outs = tuple(s or 0 for s in reading.sizes(node, result)[2:])
    if static and outs != window.out_sizes([s or 0 for s in sizes]):
        return False
    name = str(result.name)
    value = window.pad(emitter, context.forms.last(source), 0, name)
    for axis in range(len(sizes) - 1, -1, -1):
        value = _max_along(context, value, window, axis, name)
    context.replace_last(node, result, value, (*outs, reading.sizes(node, source)[1] or 0))
    return True


def pool_window(node: ir.Node, sizes: tuple[int | None, ...]) -> Window | None:
    """The window with all padding explicit; None where that depends on a dynamic size."""
    kernel = tuple(graph.attribute(node, "kernel_shape", ()))
    static = [s for s in sizes if s is not None]
    ceil, auto = graph.attribute(node, "ceil_mode", 0), graph.attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER") or (ceil and len(static) < len(sizes)):
        return None
    window = Window.of(node, kernel)
    if not ceil:
        return window
    return _rounded_up(window, static)


def _rounded_up(window: Window, sizes: list[int]) -> Window:
    """Padding behind such that the last window, which may begin in the image or the padding before it, is whole."""
    end = []
    for i, size in enumerate(sizes):
        span = (window.kernel[i] - 1) * window.dilations[i] + 1
        stride, padded = window.strides[i], size + window.begin[i] + window.end[i]
        count = -(-(padded - span) // stride) + 1
        count -= (count - 1) * stride >= size + window.begin[i]
        end.append(max((count - 1) * stride + span - size - window.begin[i], 0))
    return Window(window.kernel, window.strides, window.dilations, window.begin, tuple(end))


def _max_along(context: Context, value: ir.Value, window: Window, axis: int, name: str) -> ir.Value:
    """The maximum over a window along one spatial axis."""
    kernel, stride, dilation = window.kernel[axis], window.strides[axis], window.dilations[axis]
    emitter, parts = context.emitter, []
    if kernel == stride == 1:
        return value
    for tap in range(kernel):
        behind = (kernel - 1 - tap) * dilation
        bounds = emitter.ints(tap * dilation), emitter.ints(-behind if behind else TO_THE_END)
        inputs = [value, *bounds, emitter.ints(axis + 1), emitter.ints(stride)]
        parts.append(emitter.op("Slice", inputs, f"{name}_slice"))
    return parts[0] if len(parts) == 1 else emitter.op("Max", parts, f"{name}_max")


def global_average(context: Context, node: ir.Node) -> None:
    """Expand a QLinearGlobalAveragePool: the sum over all positions is a product with ones.

    Raises:
        UnsupportedError: a spatial size is dynamic, or its parameters are not those of the integer graph.
    """
    source = reading.input_of(node, 0)
    _, channels, *spatial = reading.sizes(node, source)
    static = [s for s in spatial if s is not None]
    if len(static) < len(spatial) or graph.attribute(node, "channels_last", 0):
        raise reading.refuse(node, "its spatial size is dynamic", "give the model a fixed height and width")
    count, zero = math.prod(static), reading.zero_point(node, 2)
    factor, target_zero = reading.factor(node, 1, count, outputs=(3,)), reading.zero_point(node, 4)
    result, low, high = context.absorb_clip(node)
    emitter, name = context.emitter, str(result.name)
    ones = emitter.constant(np.ones((1, count), np.uint8), f"{name}_ones")
    raw = emitter.op("MatMulInteger", [ones, context.forms.pixels(source)], f"{name}_sum")
    context.note_macs(raw, source, 0)
    sums = Sums(np.array(0), np.array(LARGEST * count), np.array(-zero * count))
    new = requantize(emitter, raw, sums, Target(factor, target_zero, low, high), name)
    context.replace_last(node, result, new, (1, channels or 0))
