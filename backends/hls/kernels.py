"""Each kind of layer as calls of the kernels of `library/`, with the constants and ROMs that these expect."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qcomp.backends.hls import layers as kinds
from qcomp.backends.hls.layers import Layer, Linear, Target, Window
from qcomp.backends.hls.processes import Builder, Fold, Rom, Stream
from qcomp.quantization.qparams import IntArray


def emit_layer(builder: Builder, number: int, layer: Layer, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    """Add the processes of a layer; the stream of its result.

    Args:
        inputs: of the sources, in whatever lanes.
    """
    ready = tuple(builder.converted(s, fold.simd, number, f"{layer.name}_input{i}") for i, s in enumerate(inputs))
    return EMIT[type(layer)](builder, number, layer, fold, ready)


def _requantization(target: Target, bits: int) -> dict[str, int]:
    limits = {"LOW": target.low, "HIGH": target.high, "YBITS": bits}
    return {"SHIFT": target.shift, "ZERO": target.zero_point} | limits


def _window(
    builder: Builder, number: int, layer: Layer, window: Window, padding: int, source: Stream, *, by_group: bool
) -> Stream:
    """The windows of an image."""
    image, result = layer.features[0], layer.result
    groups = image.channels // source.lanes
    sizes = {"H": image.height, "W": image.width, "GROUPS": groups, "LANES": source.lanes, "BITS": source.bits}
    sizes |= {"PAD": padding, "CHANNEL_MAJOR": int(by_group)}
    for name, pair in (("K", window.kernel), ("STRIDE_", window.strides), ("DILATION_", window.dilations)):
        sizes |= {f"{name}H": pair[0], f"{name}W": pair[1]}
    sizes |= {"TOP": window.begin[0], "LEFT": window.begin[1], "OH": result.height, "OW": result.width}
    made = builder.stream(source.bits, source.lanes, result.pixels * window.taps * groups)
    builder.add(number, f"{layer.name}_window", "window", sizes, (source,), (made,))
    return made


def _linear(builder: Builder, number: int, layer: Linear, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    source = inputs[0]
    if layer.window is not None:
        source = _window(builder, number, layer, layer.window, layer.padding, source, by_group=layer.depthwise)
    return (_depthwise if layer.depthwise else _matrix)(builder, number, layer, fold, source)


def _matrix(builder: Builder, number: int, layer: Linear, fold: Fold, source: Stream) -> Stream:
    rows, columns = layer.weight.shape
    sizes = {"MW": columns, "MH": rows, "SIMD": fold.simd, "PE": fold.pe}
    tiles = layer.weight.reshape(rows // fold.pe, fold.pe, columns // fold.simd, fold.simd).transpose(0, 2, 1, 3)
    weights = packed("weights", tiles.reshape(-1, fold.pe, fold.simd), layer.weight_bits)
    return _sums(builder, number, layer, fold, source, "matrix_vector", sizes, weights)


def _depthwise(builder: Builder, number: int, layer: Linear, fold: Fold, source: Stream) -> Stream:
    channels, taps = layer.weight.shape
    sizes = {"GROUPS": channels // fold.pe, "PE": fold.pe, "TAPS": taps}
    tiles = layer.weight.reshape(channels // fold.pe, fold.pe, taps).transpose(0, 2, 1)
    weights = packed("weights", tiles.reshape(-1, fold.pe), layer.weight_bits)
    return _sums(builder, number, layer, fold, source, "depthwise", sizes, weights)


def _sums(
    builder: Builder,
    number: int,
    layer: Linear,
    fold: Fold,
    source: Stream,
    kernel: str,
    sizes: dict[str, int],
    weights: Rom,
) -> Stream:
    """Accumulators, then their requantization, which has as few multipliers as keep pace."""
    bits = {"XBITS": layer.features[0].bits, "WBITS": layer.weight_bits, "ACC": layer.accumulator_bits}
    constants = {"PIXELS": layer.pixels} | sizes | bits | {"IN_LUTS": int(fold.in_luts)}
    bias = Rom("bias", "rom_int", layer.accumulator_bits, layer.bias.reshape(-1, fold.pe))
    words = layer.pixels * len(layer.weight) // fold.pe
    sums = builder.stream(layer.accumulator_bits, fold.pe, words, signed=True)
    builder.add(number, f"{layer.name}_sums", kernel, constants, (source,), (sums,), (weights, bias))
    lanes = requantized_at_once(layer, fold)
    multiplier = np.broadcast_to(layer.target.multiplier.reshape(-1), (len(layer.weight),)).reshape(-1, lanes)
    widths = {"ACC": layer.accumulator_bits, "MBITS": max(int(multiplier.max()).bit_length(), 1)}
    constants = {"WORDS": words, "PE": fold.pe, "LANES": lanes, "ROWS": len(layer.weight)} | widths
    constants |= _requantization(layer.target, layer.result.bits)
    made = builder.stream(layer.result.bits, lanes, words * fold.pe // lanes)
    rom = Rom("multiplier", "rom_word", widths["MBITS"], multiplier)
    builder.add(number, layer.name, "requantize_sums", constants, (sums,), (made,), (rom,))
    return made


def sum_cycles(layer: Linear, fold: Fold) -> int:
    """Of the sums of a layer, for one sample."""
    return layer.macs // (fold.pe if layer.depthwise else fold.simd * fold.pe)


def requantized_at_once(layer: Linear, fold: Fold) -> int:
    """The fewest sums a cycle, a divisor of PE, that take no longer than forming them."""
    size, most = layer.result.size, sum_cycles(layer, fold)
    return next(d for d in range(1, fold.pe + 1) if fold.pe % d == 0 and size // d <= most)


def packed(name: str, weights: IntArray, bits: int) -> Rom:
    """Weights along the last axis packed into words of at most 64 bits, two's complement, the first at bit 0."""
    each = min(weights.shape[-1], 64 // bits)
    return Rom(name, "rom_word", each * bits, weights, bits)


def _add(builder: Builder, number: int, layer: kinds.Add, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    return _of_two(builder, number, layer, inputs, "add", {"MA": layer.multipliers[0], "MB": layer.multipliers[1]})


def _multiply(builder: Builder, number: int, layer: kinds.Multiply, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    return _of_two(builder, number, layer, inputs, "multiply", {"MULTIPLIER": int(layer.target.multiplier)})


def _of_two(
    builder: Builder,
    number: int,
    layer: kinds.Add | kinds.Multiply,
    inputs: tuple[Stream, ...],
    kernel: str,
    factors: dict[str, int],
) -> Stream:
    """A sum or product of two streams, word by word."""
    one, two = inputs
    constants = {"WORDS": one.words, "LANES": one.lanes, "ABITS": one.bits, "BBITS": two.bits}
    constants |= {"ZA": layer.zero_points[0], "ZB": layer.zero_points[1]}
    constants |= _requantization(layer.target, layer.result.bits) | factors
    made = builder.stream(layer.result.bits, one.lanes, one.words)
    builder.add(number, layer.name, kernel, constants, inputs, (made,))
    return made


def _lookup(builder: Builder, number: int, layer: kinds.Lookup, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    return _table(builder, number, layer.name, inputs[0], layer.table, layer.result.bits)


def _table(builder: Builder, number: int, name: str, source: Stream, table: IntArray, bits: int) -> Stream:
    """A function of each integer."""
    made = builder.stream(bits, source.lanes, source.words)
    constants = {"WORDS": source.words, "LANES": source.lanes, "XBITS": source.bits, "YBITS": bits}
    builder.add(number, name, "lookup", constants, (source,), (made,), (Rom("table", "rom_word", bits, table),))
    return made


def _concat(builder: Builder, number: int, layer: kinds.Concat, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    bits, pixels = layer.result.bits, layer.result.pixels
    one, two = (_widened(builder, s, bits, number, f"{layer.name}_input{i}") for i, s in enumerate(inputs))
    sizes = {"PIXELS": pixels, "A_WORDS": one.words // pixels, "B_WORDS": two.words // pixels}
    made = builder.stream(bits, one.lanes, one.words + two.words)
    builder.add(number, layer.name, "concat", sizes | {"BITS": bits, "LANES": one.lanes}, (one, two), (made,))
    return made


def _widened(builder: Builder, source: Stream, bits: int, number: int, name: str) -> Stream:
    """The same integers in more bits."""
    if source.bits == bits:
        return source
    return _table(builder, number, f"{name}_widen", source, np.arange(1 << source.bits), bits)


def _max_pool(builder: Builder, number: int, layer: kinds.Pool, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    windows = _window(builder, number, layer, layer.window, 0, inputs[0], by_group=True)
    groups, taps = layer.result.channels // windows.lanes, layer.window.taps
    sizes = {"PIXELS": layer.result.pixels, "GROUPS": groups, "TAPS": taps}
    made = builder.stream(windows.bits, windows.lanes, layer.result.pixels * groups)
    constants = sizes | {"LANES": windows.lanes, "BITS": windows.bits}
    builder.add(number, layer.name, "max_pool", constants, (windows,), (made,))
    return made


def _global_average(
    builder: Builder, number: int, layer: kinds.GlobalAverage, fold: Fold, inputs: tuple[Stream, ...]
) -> Stream:
    source = inputs[0]
    pixels = layer.features[0].pixels
    groups = source.words // pixels
    constants = {"PIXELS": pixels, "GROUPS": groups, "LANES": source.lanes, "XBITS": source.bits}
    constants |= {"ZX": layer.zero_point, "MULTIPLIER": int(layer.target.multiplier)}
    constants |= _requantization(layer.target, layer.result.bits)
    made = builder.stream(layer.result.bits, source.lanes, groups)
    builder.add(number, layer.name, "global_average", constants, inputs, (made,))
    return made


def _slice(builder: Builder, number: int, layer: kinds.Slice, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    source, image, result = inputs[0], layer.features[0], layer.result
    lanes = source.lanes
    sizes = {"H": image.height, "W": image.width, "GROUPS": image.channels // lanes, "BITS": source.bits}
    sizes |= {"H0": layer.start[0], "SH": layer.step[0], "OH": result.height}
    sizes |= {"W0": layer.start[1], "SW": layer.step[1], "OW": result.width, "LANES": lanes}
    sizes |= {"G0": layer.first // lanes, "G1": (layer.first + result.channels) // lanes}
    made = builder.stream(source.bits, lanes, result.size // lanes)
    builder.add(number, layer.name, "slice", sizes, inputs, (made,))
    return made


def _pad(builder: Builder, number: int, layer: kinds.Pad, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    image, result = layer.features[0], layer.result
    source = _widened(builder, inputs[0], result.bits, number, f"{layer.name}_input")
    lanes, (top, left) = source.lanes, layer.begin
    sizes = {"H": image.height, "W": image.width, "GROUPS": image.channels // lanes, "TOP": top, "LEFT": left}
    sizes |= {"BOTTOM": result.height - image.height - top, "RIGHT": result.width - image.width - left}
    behind = result.channels - image.channels - layer.before
    sizes |= {"BEFORE": layer.before // lanes, "AFTER": behind // lanes, "PAD": layer.value}
    made = builder.stream(result.bits, lanes, result.size // lanes)
    builder.add(number, layer.name, "pad", sizes | {"BITS": result.bits, "LANES": lanes}, (source,), (made,))
    return made


def _arg_max(builder: Builder, number: int, layer: kinds.ArgMax, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    source = inputs[0]
    pixels = layer.result.pixels
    sizes = {"PIXELS": pixels, "GROUPS": source.words // pixels, "LANES": source.lanes, "BITS": source.bits}
    made = builder.stream(16, 1, pixels)
    builder.add(number, layer.name, "arg_max", sizes, inputs, (made,))
    return made


def _softmax(builder: Builder, number: int, layer: kinds.Softmax, fold: Fold, inputs: tuple[Stream, ...]) -> Stream:
    source, pixels = inputs[0], layer.result.pixels
    bits = max(int(layer.table.max(initial=1)).bit_length(), 1)
    sizes = {"PIXELS": pixels, "CHANNELS": layer.result.channels, "BITS": source.bits}
    made = builder.stream(8, 1, layer.result.size)
    table = Rom("table", "rom_word", bits, layer.table)
    numerator = Rom("numerator", "rom_word", 62, np.array([layer.numerator]))
    constants = sizes | {"TABLE_BITS": bits, "SHIFT": layer.shift}
    builder.add(number, layer.name, "softmax", constants, inputs, (made,), (table, numerator))
    return made


EMIT: dict[type[Layer], Callable[..., Stream]] = {
    Linear: _linear,
    kinds.Add: _add,
    kinds.Multiply: _multiply,
    kinds.Lookup: _lookup,
    kinds.Concat: _concat,
    kinds.Pool: _max_pool,
    kinds.GlobalAverage: _global_average,
    kinds.Slice: _slice,
    kinds.Pad: _pad,
    kinds.ArgMax: _arg_max,
    kinds.Softmax: _softmax,
}
