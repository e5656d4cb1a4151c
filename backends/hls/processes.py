"""The processes of a dataflow region: each runs one kernel, reads streams and writes streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcomp.backends.hls.schedules import Schedule, iterations_of, schedule_of
from qcomp.quantization.qparams import IntArray

WIDEST = 64
"""Lanes of a word at most: wider ones do not route."""


@dataclass(frozen=True)
class Stream:
    """Words of some channels each.

    Args:
        words: a sample.
        signed: accumulators, not activations.
    """

    name: str
    bits: int
    lanes: int
    words: int
    signed: bool = False

    @property
    def width(self) -> int:
        """Bits of a word."""
        return self.bits * self.lanes


@dataclass(frozen=True)
class Rom:
    """Constants on chip.

    Args:
        kind: ``rom_word`` (unsigned) or ``rom_int``.
        bits: of each entry.
        values: of any shape.
        packed: bits of each of the values that are put into one entry along the last axis, in as many words as that
            takes; 0 for one value an entry.
    """

    name: str
    kind: str
    bits: int
    values: IntArray
    packed: int = 0

    @property
    def entries(self) -> NDArray[Any]:
        """The entries as they are written, int64 or uint64."""
        if not self.packed:
            return self.values
        lanes, each = self.values.shape[-1], self.bits // self.packed
        words = -(-lanes // each)
        padded = np.zeros((*self.values.shape[:-1], words * each), np.uint64)
        padded[..., :lanes] = (self.values & ((1 << self.packed) - 1)).astype(np.uint64)
        shifts = (np.arange(each) * self.packed).astype(np.uint64)
        parts = padded.reshape(*self.values.shape[:-1], words, each) << shifts
        joined: NDArray[Any] = np.bitwise_or.reduce(parts, axis=-1)
        return joined


@dataclass(frozen=True)
class Process:
    """One kernel call.

    Args:
        name: of its function, an identifier.
        layer: the number of the layer it belongs to; -1 for the ends.
        kernel: the template of `library/`.
        constants: members of its struct of constants.
    """

    name: str
    layer: int
    kernel: str
    constants: Mapping[str, int]
    inputs: tuple[Stream, ...]
    outputs: tuple[Stream, ...]
    roms: tuple[Rom, ...] = ()

    @property
    def iterations(self) -> int:
        """Cycles for one sample, once it runs."""
        return iterations_of(self.kernel, self.constants)

    @property
    def schedule(self) -> Schedule:
        """When it reads and writes."""
        return schedule_of(self.kernel, self.constants)


@dataclass(frozen=True)
class Fold:
    """How much of a layer is computed at once.

    Args:
        simd: inputs of a word; lanes of the input for what is no matrix.
        pe: sums that are formed at once; lanes of the output for what is no matrix.
        in_luts: products in LUTs, not in DSP slices.
    """

    simd: int
    pe: int
    in_luts: bool = False


@dataclass
class Builder:
    """Collects processes and streams."""

    processes: list[Process] = field(default_factory=list)
    count: int = 0

    def stream(self, bits: int, lanes: int, words: int, *, signed: bool = False) -> Stream:
        """A new one."""
        self.count += 1
        return Stream(f"stream_{self.count:03}", bits, lanes, words, signed)

    def add(
        self,
        layer: int,
        name: str,
        kernel: str,
        constants: Mapping[str, int],
        inputs: tuple[Stream, ...],
        outputs: tuple[Stream, ...],
        roms: tuple[Rom, ...] = (),
    ) -> None:
        """A new process."""
        self.processes.append(Process(name, layer, kernel, dict(constants), inputs, outputs, roms))

    def converted(self, source: Stream, lanes: int, layer: int, name: str) -> Stream:
        """The same integers in words of so many lanes.

        Where neither number divides the other, by way of words that hold a multiple of both, or a divisor of both.
        """
        multiple, size = math.lcm(source.lanes, lanes), source.words * source.lanes
        by_way_of = multiple if size % multiple == 0 and multiple <= WIDEST else math.gcd(source.lanes, lanes)
        for wanted in (by_way_of, lanes):
            if wanted == source.lanes:
                continue
            made = self.stream(source.bits, wanted, size // wanted)
            label = f"{name}_{'split' if wanted < source.lanes else 'join'}_{made.name[7:]}"
            sizes = {"BITS": source.bits, "LANES_IN": source.lanes, "LANES_OUT": wanted, "WORDS_IN": source.words}
            self.add(layer, label, "convert", sizes, (source,), (made,))
            source = made
        return source
