"""The flow of words through a design, cycle by cycle: how deep FIFOs must be, and when a sample has passed.

Every process runs as soon as its words are there. The time of iteration ``i`` is
``t(i) = max(t(i - 1) + 1, when its words arrive)``, which a running maximum gives for all iterations at once.

FIFOs get the depth that they reach in this schedule while samples follow one another, the input spread over the
interval. A word counts from the iteration that writes it to the one that reads it, so the schedule is one that these
depths allow. Then no other schedule deadlocks either: networks of deterministic processes with blocking reads and
writes deadlock in every schedule or in none (Kahn 1974, "The semantics of a simple language for parallel programming";
Parks 1995, "Bounded scheduling of process networks"). And no FIFO is so short that it slows the slowest process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qcomp.backends.hls.design import Design
from qcomp.backends.hls.processes import Process
from qcomp.backends.hls.schedules import Schedule
from qcomp.quantization.qparams import IntArray

LATENCY = {
    "matrix_vector": 8,
    "depthwise": 6,
    "requantize_sums": 8,
    "add": 8,
    "multiply": 8,
    "global_average": 10,
    "window": 4,
}
"""Cycles from a read to the write that depends on it, in the pipeline of a kernel; 2 for the others."""
FEW = 2
SAMPLES = 3
"""That follow one another in the walk: depths are largest where one ends and the next begins."""


@dataclass(frozen=True)
class Flow:
    """The schedule of one sample.

    Args:
        latency: cycles from the first word in to the last word out.
        depths: of the FIFOs, by the stream's name.
        first: the cycle in which each process writes its first word, by its name.
    """

    latency: int
    depths: dict[str, int]
    first: dict[str, int]


def analyse(design: Design) -> Flow:
    """Walk the schedule: of a few samples at the pace of the slowest process for depths, of one for times."""
    held, _, _ = _walk(design, SAMPLES, design.interval)
    _, first, last = _walk(design, 1, 0)
    return Flow(last, {name: max(most, FEW) for name, most in held.items()}, first)


def _walk(design: Design, samples: int, interval: int) -> tuple[dict[str, int], dict[str, int], int]:
    """The most words that each FIFO holds, the cycle of each process's first word, and that of the end.

    Args:
        interval: over which the words of a sample of the input are spread; 0 for a word each cycle.
    """
    written: dict[str, IntArray] = {}
    arrivals: dict[str, IntArray] = {}
    held: dict[str, int] = {}
    first: dict[str, int] = {}
    last = 0
    for process in design.processes:
        schedule = process.schedule.repeated(samples)
        times = _times(process, schedule, arrivals, interval * samples)
        for stream, reads in zip(process.inputs, schedule.reads, strict=True):
            held[stream.name] = _most(written.pop(stream.name), times[reads])
            del arrivals[stream.name]
        wait = LATENCY.get(process.kernel, 2)
        for stream, writes in zip(process.outputs, schedule.writes, strict=True):
            written[stream.name] = times[writes]
            arrivals[stream.name] = times[writes] + wait
            first[process.name] = int(times[writes[0]]) + wait
        last = int(times[-1]) + 1
    return held, first, last


def _times(process: Process, schedule: Schedule, arrivals: Mapping[str, IntArray], spread: int) -> IntArray:
    """When each iteration runs."""
    steps = np.arange(schedule.iterations)
    if process.kernel == "source":
        return np.maximum(steps * spread // schedule.iterations, steps)
    earliest = np.zeros(schedule.iterations, np.int64)
    for stream, reads in zip(process.inputs, schedule.reads, strict=True):
        earliest[reads] = np.maximum(earliest[reads], arrivals[stream.name])
    found: IntArray = np.maximum.accumulate(earliest - steps) + steps
    return found


def _most(written: IntArray, read: IntArray) -> int:
    """The most words that a FIFO holds, from the iterations that write them to those that read them."""
    before = np.searchsorted(read, written, side="left")
    return int((np.arange(1, len(written) + 1) - before).max(initial=0))
