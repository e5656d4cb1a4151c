"""A folded network as processes and streams between them, with forks where a result has several readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from qcomp.backends.hls.kernels import emit_layer
from qcomp.backends.hls.layers import Feature
from qcomp.backends.hls.lowering import Network
from qcomp.backends.hls.processes import Builder, Fold, Process, Stream

WIDEST_PORT = 64
"""Bits of the streams at the ends, at most."""


@dataclass(frozen=True)
class Design:
    """What is emitted.

    Args:
        folds: of each layer.
        processes: in an order in which producers come first; the first reads the input, the last writes the output.
        depths: of the FIFOs, by the stream's name, where they are known already.
    """

    network: Network
    folds: tuple[Fold, ...]
    processes: tuple[Process, ...]
    depths: dict[str, int] = field(default_factory=dict)

    @cached_property
    def streams(self) -> tuple[Stream, ...]:
        """All between two processes."""
        return tuple(s for p in self.processes for s in p.outputs)

    @cached_property
    def interval(self) -> int:
        """Cycles from one sample to the next: iterations of the slowest process."""
        return max(p.iterations for p in self.processes)

    @property
    def bottleneck(self) -> Process:
        """The slowest process."""
        return max(self.processes, key=lambda p: p.iterations)


def assemble(network: Network, folds: Sequence[Fold]) -> Design:
    """All layers with their foldings."""
    builder, results = Builder(), dict[int, list[Stream]]()
    readers = _readers(network)
    source = network.source
    first = builder.stream(source.bits, *_port(source, folds[readers[-1][0]].simd))
    builder.add(-1, "read_input", "source", _end(first), (), (first,))
    results[-1] = _forked(builder, -1, "input", first, len(readers[-1]))
    for number, (layer, fold) in enumerate(zip(network.layers, folds, strict=True)):
        inputs = tuple(results[n].pop(0) for n in layer.sources)
        made = emit_layer(builder, number, layer, fold, inputs)
        results[number] = _forked(builder, number, layer.name, made, len(readers[number]))
    last = results[network.last].pop(0)
    result = network.layers[network.last].result
    last = builder.converted(last, _port(result, last.lanes)[0], network.last, "output")
    builder.add(-1, "write_output", "sink", _end(last), (last,), ())
    return Design(network, tuple(folds), tuple(builder.processes))


def _readers(network: Network) -> dict[int, list[int]]:
    """For each layer, and -1 for the input, the layers that read it; the end counts as one more."""
    found: dict[int, list[int]] = {number: [] for number in range(-1, len(network.layers))}
    for number, layer in enumerate(network.layers):
        for source in layer.sources:
            found[source].append(number)
    found[network.last].append(len(network.layers))
    return found


def _port(feature: Feature, wanted: int) -> tuple[int, int]:
    """Lanes and words at an end, whose port has 8, 16, 32 or 64 bits: the lanes wanted there or more, if possible."""
    most = WIDEST_PORT // (8 * feature.dtype.itemsize)
    possible = [d for d in (1, 2, 4, 8) if d <= most and feature.size % d == 0]
    lanes = next((d for d in possible if d >= wanted), possible[-1])
    return lanes, feature.size // lanes


def _end(stream: Stream) -> dict[str, int]:
    return {"WORDS": stream.words, "LANES": stream.lanes, "BITS": stream.bits}


def _forked(builder: Builder, number: int, name: str, source: Stream, count: int) -> list[Stream]:
    """A stream for each reader."""
    found = []
    for index in range(count - 1):
        one, rest = (builder.stream(source.bits, source.lanes, source.words) for _ in range(2))
        sizes = {"BITS": source.bits, "LANES": source.lanes, "WORDS": source.words}
        builder.add(number, f"{name}_fork{index}", "fork", sizes, (source,), (one, rest))
        found.append(one)
        source = rest
    return [*found, source]
