"""Depthwise convolution as products of matrices: each channel's outputs, a tile at a time, times a banded matrix.

A tile of 4 x 4 outputs of a 3 x 3 kernel reads 6 x 6 inputs; the matrix ``(36, 16)`` of a channel holds its nine
weights once a column. So the product multiplies four times as often as need be, at the speed of matrices, which is far
above that of a multiplication and an addition for each tap.

    [N, pixels, C] -> Gather -> [N, tiles * 36, C] -> Transpose -> [N, C, tiles, 36] x [C, 36, 16] -> [N, C, tiles, 16]

The requantization runs there, with one constant a channel; the result is transposed back, and a Gather brings the
outputs of tiles into the order of the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qcomp.expansion.requantize import requantize
from qcomp.expansion.site import Context, columns
from qcomp.expansion.window import Window, flat_positions
from qcomp.graph import Array
from qcomp.quantization.qparams import IntArray

if TYPE_CHECKING:
    from qcomp.expansion.convolution import Layer

LANES = 16
"""The columns that ONNX Runtime's kernel computes at once; a tile that does not fill them is slower to prepare."""
_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 14, 16)
_MOST_COLUMNS = 64


def conv(context: Context, layer: Layer) -> None:
    """Expand a QLinearConv of one channel a group, one output a channel, and static sizes."""
    assert layer.static is not None
    emitter, name, channels = context.emitter, layer.name, layer.weight.shape[0]
    window, outs = layer.window, layer.window.out_sizes(layer.static)
    tile = choose(window, outs)
    sizes = window.padded_sizes(layer.static)
    pixels = window.pad_pixels(emitter, context.forms.pixels(layer.source), layer.zero_point, name)
    reads = window.in_source(_reads(window, tile, outs, sizes), layer.static)
    indices = emitter.constant(reads.reshape(-1), f"{name}_positions")
    taken = emitter.op("Gather", [pixels, indices], f"{name}_taps", axis=1)
    first = emitter.transpose(taken, (0, 2, 1), f"{name}_channels_first")
    rows = emitter.reshape(first, (0, channels, *reads.shape), f"{name}_tiles")
    matrix = emitter.constant(_banded(layer.weight, window, tile), f"{name}_weight")
    raw = emitter.op("MatMulInteger", [rows, matrix], f"{name}_product")
    context.note_macs(raw, layer.result, math.prod(outs) * layer.weight.size)
    new = requantize(emitter, raw, layer.sums, layer.target, name, columns(2))
    flat_tiles = emitter.reshape(new, (0, channels, reads.shape[0] * math.prod(tile)), f"{name}_flat")
    last = emitter.transpose(flat_tiles, (0, 2, 1), f"{name}_channels_last")
    order = _order(tile, outs)
    if not np.array_equal(order, np.arange(reads.shape[0] * math.prod(tile))):
        places = emitter.constant(order, f"{name}_order")
        last = emitter.op("Gather", [last, places], f"{name}_in_order", axis=1)
    context.replace_last(layer.node, layer.result, last, (math.prod(outs), channels))


def choose(window: Window, outs: Sequence[int]) -> tuple[int, ...]:
    """The tile with the least cost."""
    return min(_tiles(len(outs)), key=lambda tile: _cost(window, tile, outs))


def _tiles(dims: int) -> Iterator[tuple[int, ...]]:
    for tile in itertools.product(_EDGES, repeat=dims):
        if math.prod(tile) <= _MOST_COLUMNS:
            yield tile


def _cost(window: Window, tile: tuple[int, ...], outs: Sequence[int]) -> float:
    """Nanoseconds a channel, fitted to measurements in ONNX Runtime on an x86 core with VNNI."""
    tiles = math.prod(-(-n // t) for n, t in zip(outs, tile, strict=True))
    terms, count = math.prod(_extent(window, tile)), math.prod(tile)
    blocks = -(-count // LANES)
    product = 50 + (90 if count % LANES else 0) + 0.5 * terms * blocks + tiles * (2 + 0.13 * terms) * (1 + blocks) / 2
    return product + 0.15 * tiles * terms + 1.3 * tiles * count


def _extent(window: Window, tile: tuple[int, ...]) -> tuple[int, ...]:
    """The inputs that a tile reads along each axis."""
    axes = zip(tile, window.strides, window.kernel, window.dilations, strict=True)
    return tuple((t - 1) * s + (k - 1) * d + 1 for t, s, k, d in axes)


def _reads(window: Window, tile: tuple[int, ...], outs: Sequence[int], sizes: tuple[int, ...]) -> IntArray:
    """Flat indices into the padded input, ``(tiles, terms)``; what lies beyond it is read at its edge, for nothing."""
    parts = []
    for axis, (edge, extent) in enumerate(zip(tile, _extent(window, tile), strict=True)):
        starts = np.arange(0, outs[axis], edge) * window.strides[axis]
        parts.append(np.minimum(starts[:, None] + np.arange(extent), sizes[axis] - 1))
    result = np.zeros((1, 1), np.int64)
    for part, size in zip(parts, sizes, strict=True):
        pairs = result[:, None, :, None] * size + part[None, :, None, :]
        result = pairs.reshape(pairs.shape[0] * pairs.shape[1], -1)
    return result


def _banded(weight: Array, window: Window, tile: tuple[int, ...]) -> Array:
    """int8 ``(C, terms, outputs of a tile)``: what each output of a tile multiplies each input with."""
    extent = _extent(window, tile)
    wide = np.zeros((weight.shape[0], math.prod(extent), math.prod(tile)), np.int8)
    taps = flat_positions([np.arange(k) * d for k, d in zip(window.kernel, window.dilations, strict=True)], extent)
    starts = flat_positions([np.arange(t) * s for t, s in zip(tile, window.strides, strict=True)], extent)
    for column, start in enumerate(starts):
        wide[:, start + taps, column] = weight.reshape(weight.shape[0], -1)
    return wide


def _order(tile: tuple[int, ...], outs: Sequence[int]) -> IntArray:
    """Where each output, in the order of the image, stands in the order of tiles."""
    tiles, places = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for edge, size in zip(tile, outs, strict=True):
        at = np.arange(size)
        tiles = (tiles[:, None] * -(-size // edge) + at // edge).reshape(-1)
        places = (places[:, None] * edge + at % edge).reshape(-1)
    return tiles * math.prod(tile) + places
