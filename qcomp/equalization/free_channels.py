"""Which channels of a network share one scale that no output shows.

Every output channel of a linear operator begins a variable: a positive scale. What is positively homogeneous channel by
channel, ``f(s x) = s f(x)``, hands it on; an elementwise join (Add, Max ...) makes the variables of its inputs one;
Concat and Split along the channels keep their slices apart. A linear operator reads the variables of its input, whose
scale its weights take back. Whatever else reads a value holds its variables at 1, and so does being seen outside: as
an output of the graph, or in a subgraph. Inputs of the graph and constants have no variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import onnx_ir as ir

from qcomp import graph, operators
from qcomp.equalization import homogeneous
from qcomp.graph import Array
from qcomp.linear import Linear

_JOINS = ("Add", "Sub", "Sum", "Max", "Min", "Mean")


@dataclass(frozen=True)
class Channels:
    """The variable of each channel of a value, int ``(channels,)``, and the axis of the channels, from the front."""

    variables: Array
    axis: int


@dataclass(frozen=True)
class Site:
    """A linear operator, the variables of its output channels, and of its input channels where it has any."""

    linear: Linear
    outputs: Array
    inputs: Array | None


@dataclass(frozen=True)
class Clamp:
    """A Clip between linear operators: what it reads, and the constant bounds."""

    value: ir.Value
    channels: Channels
    low: float
    high: float


@dataclass
class FreeChannels:
    """The variables of a network.

    Args:
        sites: the linear operators, in the order of the graph.
        clamps: the Clips that channels pass through; whether they let a scale pass is for the statistics to say.
        of: the channels of every value that has variables, by its ``id``.
        held: whether a variable must stay 1, bool ``(variables,)``.
    """

    sites: list[Site] = field(default_factory=list)
    clamps: list[Clamp] = field(default_factory=list)
    of: dict[int, Channels] = field(default_factory=dict)
    held: Array = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def count(self) -> int:
        """How many variables there are."""
        return len(self.held)


def find(model: ir.Model) -> FreeChannels:
    """The variables of a model, in one walk through its main graph."""
    walk = _Walk()
    for node in model.graph:
        walk.visit(node)
    walk.hold(model.graph.outputs)
    return walk.settled()


class _Walk:
    def __init__(self) -> None:
        self.found = FreeChannels()
        self.count = 0
        self.held: list[Array] = []
        self.joined: nx.Graph[int] = nx.Graph()

    def visit(self, node: ir.Node) -> None:
        for body in graph.subgraphs(node):
            self._hold_what_is_read_in(body)
        linear = Linear.match(node)
        if linear is not None:
            self._begin(linear)
        elif not self._passes(node):
            self.hold(node.inputs)

    def hold(self, values: Iterable[ir.Value | None]) -> None:
        self.held += [found.variables for v in values if (found := self._of(v)) is not None]

    def settled(self) -> FreeChannels:
        """What was found, with one variable for those that are joined; one that is held holds the others."""
        one = np.arange(self.count)
        for component in nx.connected_components(self.joined):
            one[list(component)] = min(component)
        held = np.zeros(self.count, bool)
        for variables in self.held:
            held[one[variables]] = True
        old = self.found
        return FreeChannels(
            [Site(s.linear, one[s.outputs], None if s.inputs is None else one[s.inputs]) for s in old.sites],
            [Clamp(c.value, Channels(one[c.channels.variables], c.channels.axis), c.low, c.high) for c in old.clamps],
            {key: Channels(one[c.variables], c.axis) for key, c in old.of.items()},
            held[one],
        )

    def _of(self, value: ir.Value | None) -> Channels | None:
        return self.found.of.get(id(value))

    def _hold_what_is_read_in(self, body: ir.Graph) -> None:
        self.hold(body.outputs)
        for node in ir.traversal.RecursiveGraphIterator(body):
            self.hold(node.inputs)
            for inner in graph.subgraphs(node):
                self.hold(inner.outputs)

    def _fresh(self, count: int) -> Array:
        self.count += count
        return np.arange(self.count - count, self.count)

    def _begin(self, linear: Linear) -> None:
        data, axis = linear.node.inputs[0], linear.output_channel_axis()
        read = self._of(data)
        if read is not None and not (
            read.axis == linear.input_channel_axis() and len(read.variables) == linear.input_channels
        ):
            self.hold([data])
            read = None
        outputs = self._fresh(linear.channels)
        self.found.sites.append(Site(linear, outputs, None if read is None else read.variables))
        if axis is not None:
            self.found.of[id(linear.node.outputs[0])] = Channels(outputs, axis)

    def _passes(self, node: ir.Node) -> bool:
        """Let the variables of the inputs reach the outputs; False, with nothing done, where they do not."""
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]) and not graph.is_op(node, "Split"):
            return False
        if graph.is_op(node, *_JOINS):
            return self._join(node)
        if graph.is_op(node, "Concat"):
            return self._concatenate(node)
        if graph.is_op(node, "Split"):
            return self._split(node)
        read = self._of(node.inputs[0]) if node.inputs else None
        if read is None or not (self._clamps(node, read) or homogeneous.hands_on(node, read.axis)):
            return False
        self.found.of[id(node.outputs[0])] = read
        return True

    def _clamps(self, node: ir.Node, read: Channels) -> bool:
        bounds = operators.clamp_bounds(node) if graph.is_op(node, "Clip") else None
        if bounds is None or node.inputs[0] is None:
            return False
        self.found.clamps.append(Clamp(node.inputs[0], read, *bounds))
        return True

    def _join(self, node: ir.Node) -> bool:
        parts = [found for v in node.inputs if (found := self._of(v)) is not None]
        ranks = {graph.rank(v) for v in node.inputs}
        return len(parts) == len(node.inputs) and len(ranks) == 1 and None not in ranks and self._unite(node, parts)

    def _unite(self, node: ir.Node, parts: Sequence[Channels]) -> bool:
        first = parts[0]
        if any(part.axis != first.axis or len(part.variables) != len(first.variables) for part in parts):
            return False
        for part in parts[1:]:
            self.joined.add_edges_from(zip(first.variables.tolist(), part.variables.tolist(), strict=True))
        self.found.of[id(node.outputs[0])] = first
        return True

    def _concatenate(self, node: ir.Node) -> bool:
        """Slices of the channels; one without variables, such as an input of the graph, gets held ones."""
        known = [found for v in node.inputs if (found := self._of(v)) is not None]
        axis = homogeneous.axis_of(node, 0)
        if not known or axis is None:
            return False
        if any(part.axis != axis for part in known):
            return len(known) == len(node.inputs) and self._unite(node, known)
        slices = [self._slice(value, axis) for value in node.inputs]
        there = [variables for variables in slices if variables is not None]
        if len(there) < len(slices):
            return False
        self.found.of[id(node.outputs[0])] = Channels(np.concatenate(there), axis)
        return True

    def _slice(self, value: ir.Value | None, axis: int) -> Array | None:
        found, shape = self._of(value), graph.static_shape(value)
        if found is not None:
            return found.variables
        size = shape[axis] if shape is not None else None
        if size is None:
            return None
        self.held.append(self._fresh(size))
        return self.held[-1]

    def _split(self, node: ir.Node) -> bool:
        read, axis = self._of(node.inputs[0]), homogeneous.axis_of(node, 0)
        if read is None or axis is None:
            return False
        sizes = [(graph.static_shape(out) or (None,) * (axis + 1))[axis] for out in node.outputs]
        known = [size for size in sizes if size is not None]
        parts = [read.variables] * len(sizes)
        if axis == read.axis:
            if len(known) < len(sizes) or sum(known) != len(read.variables):
                return False
            parts = np.split(read.variables, np.cumsum(known)[:-1])
        self.found.of.update({id(o): Channels(p, read.axis) for o, p in zip(node.outputs, parts, strict=True)})
        return True
