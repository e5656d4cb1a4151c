"""A walk over the layers of a quantized graph, side by side with the float model it was made from.

The layers come in stages: all whose inputs do not depend on one another. At each stage the visitor sees what the
layers read in both models, batch by batch, and may change their constants; only then do they run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcomp import graph, qdq
from qcomp.calibration.observers import Replay
from qcomp.graph import Array
from qcomp.rounding.segments import Segments, reads


@dataclass(frozen=True)
class Pair:
    """A value in a batch.

    Args:
        quantized: in the quantized model, as it is kept: integers where there are any.
        real: in the float model; empty where it is not wanted.
    """

    quantized: Array
    real: Array


Values = tuple[ir.Value, ir.Value | None]
"""A value of the quantized model, as it is kept, and the one of the float model that it stands for, if wanted."""
Visit = Callable[[list[ir.Node], Iterator[list[list[Pair]]]], None]
"""Called with the layers of a stage and, batch by batch, what is wanted of each of them."""


def walk(
    model: ir.Model, replay: Replay, wanted: Mapping[ir.Node, Sequence[Values]], samples: int, visit: Visit
) -> None:
    """Visit linear layers in the order of the graph.

    Args:
        model: the quantized model; every weight in front of the layers must be an integer constant already.
        replay: the float model and its samples.
        wanted: what to look at for each layer: its input, then others that are left out where they are not there yet.
        samples: how many samples at most.
        visit: see `Visit`; it may change weights and biases of the layers it is given.
    """
    stages, depth = _stages(model, wanted)
    there = {
        node: [v for i, v in enumerate(wanted[node]) if i == 0 or depth.get(v[0], 0) <= number]
        for number, nodes in stages.items()
        for node in nodes
    }
    order = [stages[number] for number in sorted(stages)]
    with tempfile.TemporaryDirectory(prefix="qcomp-") as folder:
        sides = []
        for side, whole in enumerate((model, replay.model)):
            place = Path(folder) / str(side)
            place.mkdir()
            cuts = [[v for node in nodes for pair in there[node] if (v := pair[side]) is not None] for nodes in order]
            sides.append(Segments(whole, cuts, place))
        count = 0
        for feeds in replay.batches(samples):
            count += 1
            for segments in sides:
                segments.begin(feeds)
        for index, nodes in enumerate(order):
            for segments in sides:
                segments.open(index)
            visit(nodes, _pairs(sides, index, count, [there[node] for node in nodes]))
            for segments in sides:
                segments.close(index)


def _pairs(sides: list[Segments], stage: int, batches: int, values: list[list[Values]]) -> Iterator[list[list[Pair]]]:
    for batch in range(batches):
        quantized, real = (segments.run(stage, batch) for segments in sides)
        yield [[Pair(quantized[a], np.zeros(0) if b is None else real[b]) for a, b in pairs] for pairs in values]


class Counterparts:
    """Finds values of the float model by those of the quantized one."""

    def __init__(self, replay: Replay) -> None:
        self._real = {str(v.name): v for v in replay.model.graph.inputs}
        self._real |= {str(v.name): v for node in replay.model.graph for v in node.outputs}

    def of(self, value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
        """What a node reads, as it is kept in the quantized model, and in the float one; None if either is unknown."""
        source = kept_of(value)
        if value is None or source is None:
            return None
        name = qdq.float_name(value)
        other = self._real.get(name) or self._real.get(name.removesuffix(qdq.RAW))
        return None if other is None else (source, other)


def kept_of(value: ir.Value | None) -> ir.Value | None:
    """What is kept of an activation: its integers where it is quantized; None of a constant."""
    found = qdq.read(value)
    source = value if found is None else found.dequantize.inputs[0]
    return None if source is None or graph.constant_tensor(source) is not None else source


def dequantized(value: ir.Value | None, array: Array) -> Array:
    """What a node reads where the array holds what is kept of it, float32."""
    found = qdq.read(value)
    if found is None:
        return array
    zero = np.float32(found.zero_point.reshape(()))
    real: Array = (array.astype(np.float32) - zero) * found.scale.reshape(())
    return real


def _stages(model: ir.Model, layers: Container[ir.Node]) -> tuple[dict[int, list[ir.Node]], dict[ir.Value, int]]:
    """The layers by how many of them lie in front of each, at most, in one line; the same number of every value."""
    depth: dict[ir.Value, int] = {}
    stages: dict[int, list[ir.Node]] = {}
    for node in model.graph:
        found = max((depth.get(v, 0) for v in reads(node)), default=0)
        if node in layers:
            stages.setdefault(found, []).append(node)
            found += 1
        if found:
            depth.update(dict.fromkeys(node.outputs, found))
    return stages, depth
