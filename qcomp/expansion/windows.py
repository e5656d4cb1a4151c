"""Puts the taps of each output of a dense convolution behind one another, in the faster of two ways.

- *Slices*: one Slice a tap and a Concat of them.
- *Gather*: one Gather of rows of channels by constant indices; fewer operators, but slower for each row.

Both pay for each copy of a tap's channels, however few. Where C is small, ``f`` neighbouring pixels of a row count as
one unit of ``f * C`` channels: an input ``[H, W / f, f * C]``, of which ``g`` outputs of a row (``g * stride = f``)
read the same ``u`` units, and a kernel of ``kh * u`` units, with zeros where an output does not read. That is fewer and
longer copies, against products with zeros.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcomp.expansion.window import Window
from qcomp.graph import Array

if TYPE_CHECKING:
    from qcomp.expansion.convolution import Layer
    from qcomp.expansion.site import Context

SLICED, GATHERED = (3.6, 0.032), (7.7, 0.012)
"""Nanoseconds of a copy and of each byte of it, as measured in ONNX Runtime 1.31 on an x86 core."""
PRODUCT, OPERATOR = 1 / 170, 1000.0
"""Nanoseconds of a product, with VNNI, and of an operator."""
_MOST_OUTPUTS = 16


@dataclass(frozen=True)
class Units:
    """How the last axis is read.

    Args:
        pixels: f, of a unit.
        outputs: g, that read the same units.
        count: u, that they read.
        stride: between the units of neighbouring groups of outputs.
        size: pixels of a row, padding included, so that it holds whole units.
    """

    pixels: int
    outputs: int
    count: int
    stride: int
    size: int

    def copies(self, window: Window, outs: tuple[int, ...]) -> int:
        """How many units are copied."""
        return math.prod(outs) // self.outputs * window.taps // window.kernel[-1] * self.count

    def sliced(self, layer: Layer, outs: tuple[int, ...]) -> float:
        """Nanoseconds of slices and products."""
        copies, length = self.copies(layer.window, outs), self.pixels * int(layer.weight.shape[1])
        products = copies * length * self.outputs * int(layer.weight.shape[0])
        operators = layer.window.taps // layer.window.kernel[-1] * self.count + 1
        return copies * (SLICED[0] + SLICED[1] * length) + products * PRODUCT + operators * OPERATOR

    def gathered(self, layer: Layer, outs: tuple[int, ...]) -> float:
        """Nanoseconds of a Gather of single pixels and products."""
        copies, length = self.copies(layer.window, outs), int(layer.weight.shape[1])
        products = copies * length * int(layer.weight.shape[0])
        return copies * (GATHERED[0] + GATHERED[1] * length) + products * PRODUCT + 3 * OPERATOR


def choose(layer: Layer) -> Units | None:
    """The fastest units for slices; None where a Gather is faster."""
    assert layer.static is not None
    outs = layer.window.out_sizes(layer.static)
    candidates = _candidates(layer.window, layer.static[-1], outs[-1])
    best = min(candidates, key=lambda units: units.sliced(layer, outs))
    return best if best.sliced(layer, outs) < candidates[0].gathered(layer, outs) else None


def _candidates(window: Window, size: int, outs: int) -> list[Units]:
    """Single pixels first."""
    kernel, stride = window.kernel[-1], window.strides[-1]
    padded = size + window.begin[-1] + window.end[-1]
    found = [Units(1, 1, kernel, stride, padded)]
    if window.dilations[-1] > 1 or kernel == 1:
        return found
    for outputs in (g for g in range(1, _MOST_OUTPUTS + 1) if outs % g == 0 and g * stride > 1):
        pixels = outputs * stride
        count = -(-((outputs - 1) * stride + kernel) // pixels)
        whole = max((outs // outputs - 1 + count) * pixels, -(-padded // pixels) * pixels)
        found.append(Units(pixels, outputs, count, 1, whole))
    return found


def windows(context: Context, layer: Layer, matrix: Array) -> tuple[ir.Value, Array]:
    """The taps ``[N, ..., terms]`` of all groups of g outputs, and the matrix ``(terms, g * OC)`` to multiply them by.

    Args:
        matrix: int8 ``(taps * C, OC)``, whose rows are those of single pixels.
    """
    units = choose(layer)
    if units is None:
        return _gathered(context, layer), matrix
    return _sliced(context, layer, units), _folded(layer, matrix, units)


def _gathered(context: Context, layer: Layer) -> ir.Value:
    emitter, name, window, width = context.emitter, layer.name, layer.window, layer.weight.shape[1]
    assert layer.static is not None
    positions = window.in_source(window.positions(layer.static), layer.static)
    pixels = window.pad_pixels(emitter, context.forms.pixels(layer.source), layer.zero_point, name)
    indices = emitter.constant(positions.reshape(-1), f"{name}_positions")
    taken = emitter.op("Gather", [pixels, indices], f"{name}_taps", axis=1)
    return emitter.reshape(taken, (0, positions.shape[0], window.taps * width), f"{name}_windows")


def _sliced(context: Context, layer: Layer, units: Units) -> ir.Value:
    emitter, name, window = context.emitter, layer.name, layer.window
    assert layer.static is not None
    extra = units.size - window.padded_sizes(layer.static)[-1]
    widened = replace(window, end=(*window.end[:-1], window.end[-1] + extra))
    source = widened.pad(emitter, context.forms.last(layer.source), layer.zero_point, name)
    if units.pixels > 1:
        *sizes, _ = widened.padded_sizes(layer.static)
        shape = (0, *sizes, units.size // units.pixels, units.pixels * layer.weight.shape[1])
        source = emitter.reshape(source, shape, f"{name}_units")
    outs = window.out_sizes(layer.static)
    groups = (*outs[:-1], outs[-1] // units.outputs)
    kernel, strides = (*window.kernel[:-1], units.count), (*window.strides[:-1], units.stride)
    axes, steps = emitter.ints(*range(1, len(kernel) + 1)), emitter.ints(*strides)
    parts = []
    for tap in itertools.product(*(range(k) for k in kernel)):
        starts = [t * d for t, d in zip(tap, window.dilations, strict=True)]
        ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, groups, strides, strict=True)]
        parts.append(
            emitter.op("Slice", [source, emitter.ints(*starts), emitter.ints(*ends), axes, steps], f"{name}_tap")
        )
    return parts[0] if len(parts) == 1 else emitter.op("Concat", parts, f"{name}_taps", axis=-1)


def _folded(layer: Layer, matrix: Array, units: Units) -> Array:
    """The matrix of a group of outputs: output i reads pixel ``i * stride + tap``."""
    kernel, stride = layer.window.kernel[-1], layer.window.strides[-1]
    if units.pixels == 1:
        return matrix
    rows, width, channels = layer.window.taps // kernel, layer.weight.shape[1], layer.weight.shape[0]
    wide = np.zeros((rows, units.count * units.pixels, width, units.outputs, channels), np.int8)
    taps = matrix.reshape(rows, kernel, width, channels)
    for i in range(units.outputs):
        wide[:, i * stride : i * stride + kernel, :, i] = taps
    return wide.reshape(-1, units.outputs * channels)
