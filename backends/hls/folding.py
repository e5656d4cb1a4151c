"""How far each layer is unrolled, SIMD inputs times PE outputs a cycle, so that the pipeline is balanced and fits.

The search follows FINN (Umuroglu et al. 2017, arXiv:1612.07119; Blott et al. 2018, "FINN-R", arXiv:1809.04570): for a
number of cycles a sample, every layer takes the cheapest folding that keeps to it; the least number that fits the
board is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from qcomp.backends.hls import costs
from qcomp.backends.hls.boards import ALL, Board
from qcomp.backends.hls.design import Design, assemble
from qcomp.backends.hls.flow import Flow, analyse
from qcomp.backends.hls.kernels import sum_cycles
from qcomp.backends.hls.layers import ArgMax, Layer, Linear, Pad, Slice, Softmax
from qcomp.backends.hls.lowering import Network
from qcomp.backends.hls.processes import WIDEST, Fold
from qcomp.backends.hls.schedules import DIVISION, GUARD
from qcomp.errors import OptionError, UnsupportedError

LONGEST = 1 << 23
"""Cycles a sample, at most: 84 ms at 100 MHz; the walk over the schedule holds a few times as many numbers."""
CLOSE = 1.001
"""The ratio at which the bisection ends."""
SLOWER = 1.05
"""The next interval that is tried where FIFOs do not fit."""


@dataclass(frozen=True)
class _Option:
    fold: Fold
    cycles: int
    cost: float


Choices = Sequence[list[_Option]]
"""The foldings of each layer."""


def fold(network: Network, board: Board, interval: int | None = None) -> tuple[Design, Flow]:
    """The fastest design that fits, or the smallest that gives a sample every so many cycles; with its flow.

    Args:
        interval: cycles from one sample to the next, at most.

    Raises:
        UnsupportedError: nothing fits; it says what is over, by how much, and which board would do.
        OptionError: no folding is that fast.
    """
    choices = [_options(layer) for layer in network.layers]
    if interval is None:
        return _with_fifos(network, choices, _fastest(network, choices, board), board)
    design = _checked(_within(network, choices, interval, board), board)
    _check_length(design)
    flow = analyse(design)
    return _checked(replace(design, depths=flow.depths), board), flow


def _within(network: Network, choices: Choices, interval: int, board: Board) -> Design:
    """A design that keeps to an interval; converters between layers may ask for faster layers than that."""
    asked, fastest = interval, math.inf
    while asked:
        design = _at(network, choices, asked, board)
        if design.interval <= interval:
            return design
        fastest, asked = min(fastest, design.interval), asked * 3 // 4
    rate = math.floor(board.clock_mhz * 1e7 / fastest) / 10
    what = f"{interval} cycles a sample are too few: the fastest folding takes {fastest:.0f}"
    raise OptionError(what, where="rate", hint=f"ask for {rate} or less")


def _check_length(design: Design) -> None:
    if design.interval > LONGEST:
        what = f"takes {design.interval} cycles a sample in {design.bottleneck.name}, more than {LONGEST}"
        raise UnsupportedError(what, where="hls", hint="take a larger board, a higher rate, or smaller inputs")


def _slowest(choices: Choices) -> int:
    return max(option.cycles for options in choices for option in options)


def _fastest(network: Network, choices: Choices, board: Board) -> int:
    """The interval to ask for whose design fits and is the fastest, ports and converters included."""
    slowest = _slowest(choices)
    design = _checked(_at(network, choices, slowest, board), board)
    low, high, found = 1.0, float(slowest), {slowest: design.interval}
    while high / low > CLOSE:
        middle = math.sqrt(low * high)
        design = _at(network, choices, int(middle), board)
        if costs.total(design).over(board):
            low = middle
        else:
            high, found[int(middle)] = middle, design.interval
    reached = min(found.values())
    design = _at(network, choices, reached, board)
    if not costs.total(design).over(board):
        found[reached] = design.interval
    return max(asked for asked, interval in found.items() if interval == reached)


def _with_fifos(network: Network, choices: Choices, interval: int, board: Board) -> tuple[Design, Flow]:
    """From this interval on, the first at which the FIFOs fit too."""
    slowest = _slowest(choices)
    while True:
        design = _at(network, choices, interval, board)
        _check_length(design)
        flow = analyse(design)
        design = replace(design, depths=flow.depths)
        if not costs.total(design).over(board):
            return design, flow
        if interval >= slowest:
            return _checked(design, board), flow
        interval = min(int(interval * SLOWER) + 1, slowest)


def _at(network: Network, choices: Choices, interval: int, board: Board) -> Design:
    """The cheapest folding of every layer; products of the smallest layers in LUTs as long as DSP slices are short."""
    folds = [_cheapest(options, interval) for options in choices]
    design = assemble(network, folds)
    short = costs.total(design).dsp - int(board.dsp * costs.SHARE["dsp"])
    order = sorted(range(len(folds)), key=lambda n: _products(network.layers[n], folds[n]))
    for number in order:
        at_once = _products(network.layers[number], folds[number])
        if short > 0 and at_once:
            folds[number] = replace(folds[number], in_luts=True)
            short -= at_once
    return assemble(network, folds) if any(f.in_luts for f in folds) else design


def _products(layer: Layer, fold: Fold) -> int:
    if not isinstance(layer, Linear):
        return 0
    return fold.pe if layer.depthwise else fold.simd * fold.pe


def _checked(design: Design, board: Board) -> Design:
    over = costs.total(design).over(board)
    if not over:
        return design
    fitting = next((b for b in ALL if not costs.total(design).over(b)), None)
    what = "does not fit: " + ", ".join(f"{name} {used} of {there}" for name, (used, there) in over.items())
    hint = f"the smallest board that would do: {fitting.name}" if fitting else "no board of the list would do"
    raise UnsupportedError(what, where=f"board={board.name}", hint=hint)


@cache
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def _cheapest(options: list[_Option], interval: int) -> Fold:
    """The folding with the least hardware that keeps to the interval; the fastest where none does."""
    fitting = [o for o in options if o.cycles <= interval]
    if fitting:
        return min(fitting, key=lambda o: (o.cost, o.cycles)).fold
    return min(options, key=lambda o: (o.cycles, o.cost)).fold


def _options(layer: Layer) -> list[_Option]:
    return [_Option(f, cycles(layer, f), costs.of_layer(layer, f)) for f in _folds(layer)]


def _folds(layer: Layer) -> Sequence[Fold]:
    channels = [f.channels for f in layer.features]
    lanes = [d for d in _divisors(math.gcd(*channels)) if d <= WIDEST]
    if isinstance(layer, Linear) and not layer.depthwise:
        rows = [d for d in _divisors(len(layer.weight)) if d <= WIDEST]
        return [Fold(simd, pe) for simd in lanes for pe in rows]
    if isinstance(layer, Softmax):
        return [Fold(1, 1)]
    if isinstance(layer, Slice):
        lanes = [d for d in lanes if layer.first % d == 0 and layer.result.channels % d == 0]
    if isinstance(layer, Pad):
        lanes = [d for d in lanes if layer.before % d == 0 and layer.result.channels % d == 0]
    return [Fold(d, 1 if isinstance(layer, ArgMax) else d) for d in lanes]


def cycles(layer: Layer, fold: Fold) -> int:
    """Of the slowest process of a layer, for one sample."""
    lanes, result = fold.simd, layer.result
    own = max(f.size // lanes for f in layer.features)
    if not isinstance(layer, Linear):
        own = max(own, result.size // fold.pe)
    window = getattr(layer, "window", None)
    if window is not None:
        image = layer.features[0]
        groups = image.channels // lanes
        row = max(result.width * window.taps * groups, window.strides[0] * image.width * groups + GUARD)
        own = max(own, result.height * row + (window.kernel[0] - 1) * window.dilations[0] * image.width * groups)
    if isinstance(layer, Softmax):
        own = result.pixels * (3 * result.channels + DIVISION)
    if isinstance(layer, Linear):
        own = max(own, sum_cycles(layer, fold))
    return own
