"""When the kernels of `library/` read and write: the iterations of their pipelined loops, one a cycle.

Each kernel's comment says the same; a test holds the C simulation's order of reads and writes against these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from qcomp.quantization.qparams import IntArray

Constants = Mapping[str, int]
GUARD = 8
"""Cycles between the last word of a row that is read and the first window that may hold it."""


DIVISION = 62
"""Iterations of a division."""


@dataclass(frozen=True)
class Schedule:
    """The iterations of a process for one sample.

    Args:
        iterations: in all.
        reads: for each input, the iteration of each word, int64, ascending.
        writes: for each output alike.
    """

    iterations: int
    reads: tuple[IntArray, ...]
    writes: tuple[IntArray, ...]

    def repeated(self, samples: int) -> Schedule:
        """For so many samples, one after the other."""
        starts = np.arange(samples)[:, None] * self.iterations
        reads, writes = (tuple((starts + a).reshape(-1) for a in arrays) for arrays in (self.reads, self.writes))
        return Schedule(self.iterations * samples, reads, writes)


def schedule_of(kernel: str, constants: Constants) -> Schedule:
    """The schedule of a kernel with its constants."""
    return TABLE[kernel](constants)


def iterations_of(kernel: str, c: Constants) -> int:
    """Of a kernel for one sample, without the schedule."""
    return ITERATIONS[kernel](c)


def _each(count: int, inputs: int = 1, outputs: int = 1) -> Schedule:
    every = np.arange(count)
    return Schedule(count, (every,) * inputs, (every,) * outputs)


def _last_of(count: int, size: int) -> Schedule:
    """Reads each time, writes in the last iteration of every ``size``."""
    return Schedule(count, (np.arange(count),), (np.arange(size - 1, count, size),))


def _convert(c: Constants) -> Schedule:
    if c["LANES_IN"] >= c["LANES_OUT"]:
        ratio = c["LANES_IN"] // c["LANES_OUT"]
        count = c["WORDS_IN"] * ratio
        return Schedule(count, (np.arange(0, count, ratio),), (np.arange(count),))
    return _last_of(c["WORDS_IN"], c["LANES_OUT"] // c["LANES_IN"])


def rows_needed(c: Constants, row: int) -> int:
    """Rows of the input that the output rows up to this one need."""
    return min(max(row * c["STRIDE_H"] + (c["KH"] - 1) * c["DILATION_H"] + 1 - c["TOP"], 0), c["H"])


def window_iterations(c: Constants) -> int:
    """Of the loop over an output row."""
    return max(c["OW"] * c["KH"] * c["KW"] * c["GROUPS"], c["STRIDE_H"] * c["W"] * c["GROUPS"] + GUARD)


def _window(c: Constants) -> Schedule:
    row, emit, count = c["W"] * c["GROUPS"], c["OW"] * c["KH"] * c["KW"] * c["GROUPS"], window_iterations(c)
    first = rows_needed(c, 0) * row
    start = first
    reads: list[IntArray] = [np.arange(first)]
    for out in range(c["OH"]):
        wanted = (rows_needed(c, out + 1) - rows_needed(c, out)) * row
        reads.append(start + _spread(wanted, count - GUARD))
        start += count
    left = (c["H"] - rows_needed(c, c["OH"])) * row
    reads.append(start + np.arange(left))
    rows = first + np.arange(c["OH"]) * count
    writes = (rows[:, None] + np.arange(emit)).reshape(-1)
    return Schedule(start + left, (np.concatenate(reads),), (writes,))


def _spread(wanted: int, count: int) -> IntArray:
    """So many of ``count`` iterations, evenly: those where a counter that grows by ``wanted`` passes ``count``."""
    return -(-np.arange(1, wanted + 1) * count // max(wanted, 1)) - 1


def _matrix_vector(c: Constants) -> Schedule:
    folds, steps = c["MH"] // c["PE"], c["MW"] // c["SIMD"]
    pixel = np.arange(c["PIXELS"]) * folds * steps
    reads = (pixel[:, None] + np.arange(steps)).reshape(-1)
    count = c["PIXELS"] * folds * steps
    return Schedule(count, (reads,), (np.arange(steps - 1, count, steps),))


def _requantize_sums(c: Constants) -> Schedule:
    each = c["PE"] // c["LANES"]
    return Schedule(c["WORDS"] * each, (np.arange(0, c["WORDS"] * each, each),), (np.arange(c["WORDS"] * each),))


def _concat(c: Constants) -> Schedule:
    both = c["A_WORDS"] + c["B_WORDS"]
    pixel = np.arange(c["PIXELS"])[:, None] * both
    one = (pixel + np.arange(c["A_WORDS"])).reshape(-1)
    two = (pixel + np.arange(c["A_WORDS"], both)).reshape(-1)
    return Schedule(c["PIXELS"] * both, (one, two), (np.arange(c["PIXELS"] * both),))


def _slice(c: Constants) -> Schedule:
    rows = c["H0"] + c["SH"] * np.arange(c["OH"])
    columns = c["W0"] + c["SW"] * np.arange(c["OW"])
    kept = (rows[:, None, None] * c["W"] + columns[:, None]) * c["GROUPS"] + np.arange(c["G0"], c["G1"])
    count = c["H"] * c["W"] * c["GROUPS"]
    return Schedule(count, (np.arange(count),), (kept.reshape(-1),))


def _pad(c: Constants) -> Schedule:
    height, width = c["TOP"] + c["H"] + c["BOTTOM"], c["LEFT"] + c["W"] + c["RIGHT"]
    groups = c["BEFORE"] + c["GROUPS"] + c["AFTER"]
    rows = np.arange(c["TOP"], c["TOP"] + c["H"])[:, None, None] * width
    inside = (rows + np.arange(c["LEFT"], c["LEFT"] + c["W"])[:, None]) * groups
    reads = (inside + np.arange(c["BEFORE"], c["BEFORE"] + c["GROUPS"])).reshape(-1)
    return Schedule(height * width * groups, (reads,), (np.arange(height * width * groups),))


def _softmax(c: Constants) -> Schedule:
    row = 3 * c["CHANNELS"] + DIVISION
    pixel = np.arange(c["PIXELS"])[:, None] * row
    reads = (pixel + np.arange(c["CHANNELS"])).reshape(-1)
    writes = (pixel + np.arange(row - c["CHANNELS"], row)).reshape(-1)
    return Schedule(c["PIXELS"] * row, (reads,), (writes,))


def _global_average(c: Constants) -> Schedule:
    count = c["PIXELS"] * c["GROUPS"]
    return Schedule(count, (np.arange(count),), (np.arange(count - c["GROUPS"], count),))


TABLE: dict[str, Callable[[Constants], Schedule]] = {
    "source": lambda c: _each(c["WORDS"], inputs=0),
    "sink": lambda c: _each(c["WORDS"], outputs=0),
    "fork": lambda c: _each(c["WORDS"], outputs=2),
    "convert": _convert,
    "window": _window,
    "matrix_vector": _matrix_vector,
    "depthwise": lambda c: _last_of(c["PIXELS"] * c["GROUPS"] * c["TAPS"], c["TAPS"]),
    "requantize_sums": _requantize_sums,
    "add": lambda c: _each(c["WORDS"], inputs=2),
    "multiply": lambda c: _each(c["WORDS"], inputs=2),
    "lookup": lambda c: _each(c["WORDS"]),
    "concat": _concat,
    "max_pool": lambda c: _last_of(c["PIXELS"] * c["GROUPS"] * c["TAPS"], c["TAPS"]),
    "global_average": _global_average,
    "slice": _slice,
    "pad": _pad,
    "softmax": _softmax,
    "arg_max": lambda c: _last_of(c["PIXELS"] * c["GROUPS"], c["GROUPS"]),
}


def _windows(c: Constants) -> int:
    rest = rows_needed(c, 0) + c["H"] - rows_needed(c, c["OH"])
    return rest * c["W"] * c["GROUPS"] + c["OH"] * window_iterations(c)


ITERATIONS: dict[str, Callable[[Constants], int]] = {
    "source": lambda c: c["WORDS"],
    "sink": lambda c: c["WORDS"],
    "fork": lambda c: c["WORDS"],
    "convert": lambda c: c["WORDS_IN"] * max(c["LANES_IN"] // c["LANES_OUT"], 1),
    "window": _windows,
    "matrix_vector": lambda c: c["PIXELS"] * (c["MH"] // c["PE"]) * (c["MW"] // c["SIMD"]),
    "depthwise": lambda c: c["PIXELS"] * c["GROUPS"] * c["TAPS"],
    "requantize_sums": lambda c: c["WORDS"] * (c["PE"] // c["LANES"]),
    "add": lambda c: c["WORDS"],
    "multiply": lambda c: c["WORDS"],
    "lookup": lambda c: c["WORDS"],
    "concat": lambda c: c["PIXELS"] * (c["A_WORDS"] + c["B_WORDS"]),
    "max_pool": lambda c: c["PIXELS"] * c["GROUPS"] * c["TAPS"],
    "global_average": lambda c: c["PIXELS"] * c["GROUPS"],
    "slice": lambda c: c["H"] * c["W"] * c["GROUPS"],
    "pad": lambda c: (
        (c["TOP"] + c["H"] + c["BOTTOM"]) * (c["LEFT"] + c["W"] + c["RIGHT"]) * (c["BEFORE"] + c["GROUPS"] + c["AFTER"])
    ),
    "softmax": lambda c: c["PIXELS"] * (3 * c["CHANNELS"] + DIVISION),
    "arg_max": lambda c: c["PIXELS"] * c["GROUPS"],
}
