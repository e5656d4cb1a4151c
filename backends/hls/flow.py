"""The flow of words through a design, cycle by cycle: how deep FIFOs must be, and when a sample has passed.

Every process runs as soon as its words are there. The time of iteration
``i`` is ``t(i) = max(t(i - 1) + 1, when its words arrive)``, which a running maximum gives for all iterations at once.

Where branches part and meet again, a FIFO that is too short stops the design for ever. Processes wait for one another
in a ring only along a cycle of the graph without directions; the FIFOs on such cycles get the depth that they reach in
this schedule, with which it is possible. Networks of deterministic processes with blocking reads and writes deadlock in
every schedule or in none (Kahn 1974, "The semantics of a simple language for parallel programming"; Parks 1995,
"Bounded scheduling of process networks"). All other FIFOs hold a few words: who waits there holds back only what lies
before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np

from qcomp.backends.hls.design import Design
from qcomp.backends.hls.processes import Process
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
SHIFT_REGISTER = 32
"""Words that a FIFO of shift registers holds at the price of one."""
SLACK = 4
"""Words more on cycles, for pipelines that hold some."""


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
    """Walk the schedule of one sample: for depths at the pace of the slowest process, for times as fast as it goes."""
    held, _, _ = _walk(design, design.interval)
    on_cycles = _on_cycles(design)
    depths = {
        name: most + SLACK if name in on_cycles else min(max(most, FEW), SHIFT_REGISTER) for name, most in held.items()
    }
    _, first, last = _walk(design, 1)
    return Flow(last, depths, first)


def _walk(design: Design, interval: int) -> tuple[dict[str, int], dict[str, int], int]:
    """The most words that each FIFO holds, the cycle of each process's first word, and that of the end.

    Args:
        interval: over which the words of the input are spread.
    """
    arrivals: dict[str, IntArray] = {}
    held: dict[str, int] = {}
    first: dict[str, int] = {}
    last = 0
    for process in design.processes:
        times, schedule = _times(process, arrivals, interval), process.schedule
        for stream, reads in zip(process.inputs, schedule.reads, strict=True):
            held[stream.name] = _most(arrivals.pop(stream.name), times[reads])
        wait = LATENCY.get(process.kernel, 2)
        for stream, writes in zip(process.outputs, schedule.writes, strict=True):
            arrivals[stream.name] = times[writes] + wait
            first[process.name] = int(times[writes[0]]) + wait
        last = int(times[-1]) + 1
    return held, first, last


def _on_cycles(design: Design) -> set[str]:
    """The streams on cycles of the graph without directions."""
    found: nx.Graph[str] = nx.Graph()
    for process in design.processes:
        found.add_edges_from((f"process {process.name}", s.name) for s in (*process.inputs, *process.outputs))
    bridges = {name for pair in nx.bridges(found) for name in pair}
    return {s.name for s in design.streams} - bridges


def _times(process: Process, arrivals: Mapping[str, IntArray], interval: int) -> IntArray:
    schedule = process.schedule
    earliest = np.zeros(schedule.iterations, np.int64)
    if process.kernel == "source":
        return np.arange(schedule.iterations) * max(interval // schedule.iterations, 1)
    for stream, reads in zip(process.inputs, schedule.reads, strict=True):
        earliest[reads] = np.maximum(earliest[reads], arrivals[stream.name])
    steps = np.arange(schedule.iterations)
    found: IntArray = np.maximum.accumulate(earliest - steps) + steps
    return found


def _most(written: IntArray, read: IntArray) -> int:
    """The most words that a FIFO holds."""
    before = np.searchsorted(read, written, side="left")
    return int((np.arange(1, len(written) + 1) - before).max(initial=0))
