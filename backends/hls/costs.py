"""What a design takes of a chip, estimated before any synthesis.

The terms follow FINN-R (Blott et al. 2018, arXiv:1809.04570, section 4): products in DSP slices, adder trees and
requantization in LUTs, memories by the shapes that a block RAM takes. They are estimates: vendors' tools pack better
or worse by tens of percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from qcomp.backends.hls.boards import Board
from qcomp.backends.hls.design import Design
from qcomp.backends.hls.kernels import requantized_at_once
from qcomp.backends.hls.layers import Layer, Linear
from qcomp.backends.hls.processes import Fold, Process, Stream

SHAPES = ((1, 16384), (2, 8192), (4, 4096), (9, 2048), (18, 1024), (36, 512))
"""Width and depth of an 18 kbit block RAM."""
SHALLOW = 64
"""Words of a memory that LUTs hold instead."""
DSP_WIDE, DSP_NARROW = 25, 18
"""Signed operands of a DSP slice."""
SHARE = {"dsp": 1.0, "bram18": 0.95, "lut": 0.75, "ff": 0.75}
"""Of a board, at most; the rest is left to the tools, the DMA and the clock."""
BASE, WINDOW, SMALL = 300, 350, 100
"""LUTs of the control of a matrix-vector unit, of a window, and of any other process."""
FF_PER_LUT = 1.2


@dataclass(frozen=True)
class Resources:
    """DSP slices, 18 kbit block RAMs, LUTs and flip-flops."""

    dsp: int = 0
    bram18: int = 0
    lut: int = 0
    ff: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.dsp + other.dsp, self.bram18 + other.bram18, self.lut + other.lut, self.ff + other.ff)

    def over(self, board: Board) -> dict[str, tuple[int, int]]:
        """What is more than the board's share, as used and there."""
        used = {name: (getattr(self, name), int(getattr(board, name) * part)) for name, part in SHARE.items()}
        return {name: pair for name, pair in used.items() if pair[0] > pair[1]}


def total(design: Design) -> Resources:
    """Of all processes and FIFOs."""
    parts = [of_process(p) for p in design.processes]
    return _sum([*parts, *(of_fifo(s, design.depths.get(s.name, 2)) for s in design.streams)])


def _sum(parts: Iterable[Resources]) -> Resources:
    return sum(parts, Resources())


def of_process(process: Process) -> Resources:
    """Of one process with its memories."""
    found = KERNELS.get(process.kernel, _plumbing)(process.constants)
    return Resources(found.dsp, found.bram18, found.lut, int(found.lut * FF_PER_LUT))


def of_fifo(stream: Stream, depth: int) -> Resources:
    """Of a FIFO: shift registers up to a depth of 64, block RAM beyond."""
    if depth <= SHALLOW:
        return Resources(lut=stream.width * -(-depth // 32) + 20, ff=stream.width + 20)
    return Resources(bram18=_blocks(stream.width, depth), lut=60, ff=60)


def memory(width: int, depth: int) -> Resources:
    """Of a memory that is read a word a cycle."""
    if depth <= SHALLOW or width * depth <= 1024:
        return Resources(lut=-(-width * depth // 64) if depth > 1 else 0)
    return Resources(bram18=_blocks(width, depth))


def _blocks(width: int, depth: int) -> int:
    return min(-(-width // wide) * -(-depth // deep) for wide, deep in SHAPES)


def products(first: int, second: int) -> int:
    """DSP slices of a signed product of so many bits."""
    wide, narrow = max(first, second), min(first, second)
    return min(
        -(-(wide - 1) // (a - 1)) * -(-(narrow - 1) // (b - 1))
        for a, b in ((DSP_WIDE, DSP_NARROW), (DSP_NARROW, DSP_WIDE))
    )


def _sums(simd: int, pe: int, c: Mapping[str, int]) -> Resources:
    """Products, adder trees and accumulators of PE rows."""
    trees = pe * (simd * (c["XBITS"] + c["WBITS"]) + c["ACC"])
    if not c["IN_LUTS"]:
        return Resources(pe * simd, 0, BASE + trees)
    return Resources(lut=BASE + trees + pe * simd * in_luts(c["XBITS"], c["WBITS"]))


def in_luts(x_bits: int, w_bits: int) -> int:
    """LUTs of a product."""
    return x_bits * w_bits * 11 // 10


def _matrix_vector(c: Mapping[str, int]) -> Resources:
    tiles = c["MH"] // c["PE"] * (c["MW"] // c["SIMD"])
    weights = memory(c["PE"] * c["SIMD"] * c["WBITS"], tiles)
    bias = memory(c["PE"] * c["ACC"], c["MH"] // c["PE"])
    vector = memory(c["SIMD"] * c["XBITS"], c["MW"] // c["SIMD"]) if c["MH"] > c["PE"] else Resources()
    return _sum([_sums(c["SIMD"], c["PE"], c), weights, bias, vector])


def _depthwise(c: Mapping[str, int]) -> Resources:
    weights = memory(c["PE"] * c["WBITS"], c["GROUPS"] * c["TAPS"])
    return _sum([_sums(1, c["PE"], c), weights, memory(c["PE"] * c["ACC"], c["GROUPS"])])


def _requantize_sums(c: Mapping[str, int]) -> Resources:
    logic = c["LANES"] * 3 * (c["ACC"] + c["MBITS"]) + (c["PE"] > c["LANES"]) * c["PE"] * c["ACC"]
    dsp = c["LANES"] * products(c["ACC"], c["MBITS"] + 1)
    return Resources(dsp, 0, SMALL + logic) + memory(c["LANES"] * c["MBITS"], c["ROWS"] // c["LANES"])


def _window(c: Mapping[str, int]) -> Resources:
    rows = (c["KH"] - 1) * c["DILATION_H"] + 1 + c["STRIDE_H"]
    return Resources(lut=WINDOW) + memory(c["LANES"] * c["BITS"], rows * c["W"] * c["GROUPS"])


def _of_two(c: Mapping[str, int]) -> Resources:
    bits = max(c["ABITS"], c["BBITS"]) + 1
    widths = [c[name].bit_length() + 1 for name in ("MA", "MB", "MULTIPLIER") if name in c]
    if "MULTIPLIER" in c:
        widths, bits = [*widths, bits], 2 * bits
    dsp = c["LANES"] * sum(products(bits, width) for width in widths)
    return Resources(dsp, 0, SMALL + c["LANES"] * 4 * (bits + max(widths)))


def _global_average(c: Mapping[str, int]) -> Resources:
    acc = c["XBITS"] + c["PIXELS"].bit_length()
    multiplier = c["MULTIPLIER"].bit_length() + 1
    logic = Resources(c["LANES"] * products(acc + 1, multiplier), 0, SMALL + c["LANES"] * 3 * (acc + multiplier))
    return logic + memory(c["LANES"] * acc, c["GROUPS"])


def _lookup(c: Mapping[str, int]) -> Resources:
    return Resources(lut=SMALL + c["LANES"] * c["YBITS"] * (1 << c["XBITS"]) // 64)


def _softmax(c: Mapping[str, int]) -> Resources:
    return Resources(products(48, c["TABLE_BITS"] + 1), 2, 4000) + memory(c["BITS"], c["CHANNELS"])


def _plumbing(c: Mapping[str, int]) -> Resources:
    lanes = max((value for name, value in c.items() if name.startswith("LANES")), default=1)
    return Resources(lut=SMALL + 10 * lanes)


KERNELS: dict[str, Callable[[Mapping[str, int]], Resources]] = {
    "matrix_vector": _matrix_vector,
    "depthwise": _depthwise,
    "requantize_sums": _requantize_sums,
    "window": _window,
    "add": _of_two,
    "multiply": _of_two,
    "global_average": _global_average,
    "lookup": _lookup,
    "softmax": _softmax,
}


def of_layer(layer: Layer, fold: Fold) -> float:
    """One number to compare foldings of a layer by: slices and memories in the proportion in which chips have them."""
    if not isinstance(layer, Linear):
        return float(fold.simd)
    simd = 1 if layer.depthwise else fold.simd
    lanes = requantized_at_once(layer, fold)
    multiplier = int(layer.target.multiplier.max()).bit_length() + 1
    bits = {"XBITS": layer.features[0].bits, "WBITS": layer.weight_bits, "ACC": layer.accumulator_bits, "IN_LUTS": 0}
    logic = _sums(simd, fold.pe, bits) + memory(
        simd * fold.pe * layer.weight_bits, layer.weight.size // (simd * fold.pe)
    )
    dsp = logic.dsp + lanes * products(layer.accumulator_bits, multiplier)
    return 240 * dsp + 190 * logic.bram18 + logic.lut
