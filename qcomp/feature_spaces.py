"""Feature spaces: which values of a graph hold one vector of features, and who writes and reads it.

Where every operator between linear ones commutes with a rotation of the features (residual Adds, moves, means over
positions, attention's sums, a normalization without scales), the features ``x`` may be kept as ``x R`` instead
(computational invariance: Ashkboos et al. 2024, SliceGPT, arXiv:2401.15024): those who write them give ``W R``, those
who read them take ``R^T W``. `find` walks the graph once and collects such spaces.

Axes count from the end, -1 the last, so that they hold for operands that are broadcast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import onnx_ir as ir

from qcomp import feature_axes, graph
from qcomp.linear import Linear
from qcomp.scaled_features import Scaled, scaled

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True)
class Constant:
    """A constant that holds features: the input of a node, and their axis from the end and their number there."""

    node: ir.Node
    index: int
    axis: int
    size: int


@dataclass
class Space:
    """One vector of features.

    Args:
        size: how many features a rotation may mix; larger vectors consist of blocks.
        writers: the linear operators that compute it.
        readers: those that read it.
        constants: that are added to it, or start it.
        scaled: the normalizations that pass it on once their scale is in the weights of their readers.
        keeps_ones: whether a mean over the features is taken away, which only some rotations leave alone.
        residual: whether it is a sum of several, or normalized.
        attention: whether it is queries and keys, or values.
        why_not: why it cannot be rotated, or nothing.
    """

    size: int
    writers: list[Linear] = field(default_factory=list)
    readers: list[Linear] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    scaled: list[Scaled] = field(default_factory=list)
    keeps_ones: bool = False
    residual: bool = False
    attention: bool = False
    why_not: str = ""

    def parts(self) -> int:
        """How many operators and constants it has."""
        return len(self.writers) + len(self.readers) + len(self.constants) + len(self.scaled)

    def take(self, other: Space) -> None:
        """Become the union with another space."""
        self.size = math.gcd(self.size, other.size)
        self.writers += other.writers
        self.readers += other.readers
        self.constants += other.constants
        self.scaled += other.scaled
        self.keeps_ones |= other.keeps_ones
        self.residual |= other.residual
        self.attention |= other.attention
        self.why_not = self.why_not or other.why_not


def find(target: ir.Graph) -> list[Space]:
    """The feature spaces of the main graph, those that cannot be rotated among them."""
    walk = _Walk(target)
    for node in target:
        walk.step(node)
    for value in walk.values:
        users = [user for user, _ in value.uses()]
        if value.is_graph_output() or any(user.graph is not target for user in users):
            walk.refuse(value, f"{value.name!r} is read in a subgraph or is an output")
    return walk.spaces()


class _Walk:
    """What is known so far: the space and axis of every value with features."""

    def __init__(self, target: ir.Graph) -> None:
        self._graph = target
        self.values: dict[ir.Value, tuple[Space, int]] = {}
        self._parents: dict[int, Space] = {}
        self._all: list[Space] = []

    def spaces(self) -> list[Space]:
        """Those that are not part of a larger one."""
        return [space for space in self._all if id(space) not in self._parents]

    def refuse(self, value: ir.Value, reason: str) -> None:
        """No rotation for the space of a value."""
        space = self.space(value)
        space.why_not = space.why_not or reason

    def space(self, value: ir.Value) -> Space:
        """That of a value with features."""
        found = self.values[value][0]
        while id(found) in self._parents:
            parent = self._parents[id(found)]
            self._parents[id(found)] = self._parents.get(id(parent), parent)
            found = parent
        return found

    def axis(self, value: ir.Value | None) -> int | None:
        """Of the features, from the end; None where there are none."""
        return self.values[value][1] if value is not None and value in self.values else None

    def step(self, node: ir.Node) -> None:
        """Take in a node: what it does to the features it reads."""
        linear = Linear.match(node)
        if linear is not None and linear.groups == 1 and (linear.kind != "MatMul" or len(linear.weight_shape) == 2):
            self._linear(linear)
            return
        known = [v for v in node.inputs if v is not None and v in self.values]
        if not known:
            self._start(node)
        elif not self._pass(node, known):
            for value in known:
                self.refuse(value, f"{graph.describe(node)} does not commute with a rotation")

    def _linear(self, linear: Linear) -> None:
        data, out = linear.node.inputs[0], linear.node.outputs[0]
        assert data is not None
        found, wanted = self.axis(data), linear.input_channel_axis()
        if found is not None:
            rank = graph.rank(data)
            if rank is None or wanted is None or wanted - rank != found:
                self.refuse(data, f"{graph.describe(linear.node)} reads another axis")
            else:
                self.space(data).readers.append(linear)
        axis, rank = linear.output_channel_axis(), graph.rank(out)
        if axis is not None and rank is not None and graph.is_float(out):
            self._new(out, axis - rank, linear.channels).writers.append(linear)

    def _new(self, value: ir.Value, axis: int, size: int) -> Space:
        space = Space(size)
        self._all.append(space)
        self.values[value] = (space, axis)
        return space

    def _start(self, node: ir.Node) -> None:
        """Rows of a table, or a constant that is repeated, begin a space."""
        if not graph.is_op(node, "Gather", "Expand") or not graph.is_float(node.outputs[0]):
            return
        shape, out = graph.static_shape(node.inputs[0]), graph.static_shape(node.outputs[0])
        rows = graph.is_op(node, "Expand") or (graph.attribute(node, "axis", 0) == 0 and len(shape or ()) == 2)
        if graph.constant_tensor(node.inputs[0]) is None or not shape or not out or not rows or out[-1] != shape[-1]:
            return
        size = shape[-1]
        if size is not None:
            self._new(node.outputs[0], -1, size).constants.append(Constant(node, 0, -1, size))

    def _pass(self, node: ir.Node, known: list[ir.Value]) -> bool:
        """Let the features through a node, where it commutes with a rotation of them."""
        if len(node.outputs) != 1:
            return False
        if graph.is_op(node, "Add", "Sub"):
            return self._sum(node, known)
        if graph.is_op(node, "MatMul"):
            return self._product(node)
        if graph.is_op(node, "Concat"):
            return self._concat(node, known)
        if len(set(known)) != 1 or node.inputs.count(known[0]) != 1 or node.inputs[0] is not known[0]:
            return self._scale(node, known)
        return self._one(node, known[0])

    def _one(self, node: ir.Node, value: ir.Value) -> bool:
        axis = self.values[value][1]
        if graph.is_op(node, "Transpose"):
            return self._transpose(node, value, axis)
        if graph.is_op(node, *feature_axes.MOVES):
            return self._move(node, value, axis)
        if graph.is_op(node, "Shape"):
            return True
        if graph.is_op(node, *NORMS) or graph.is_op(node, "SimplifiedLayerNormalization", domain="com.microsoft"):
            return self._norm(node, value, axis)
        return self._scale(node, [value])

    def _follow(self, node: ir.Node, value: ir.Value, axis: int) -> bool:
        self.values[node.outputs[0]] = (self.space(value), axis)
        return True

    def _transpose(self, node: ir.Node, value: ir.Value, axis: int) -> bool:
        perm, rank = graph.attribute(node, "perm", None), graph.rank(value)
        if rank is None:
            return False
        order = list(perm) if perm is not None else list(range(rank))[::-1]
        return self._follow(node, value, order.index(rank + axis) - rank)

    def _move(self, node: ir.Node, value: ir.Value, axis: int) -> bool:
        """Features stay on their axis; of the last one a Reshape may make larger or smaller blocks."""
        kept, last = feature_axes.kept(node, axis), feature_axes.size(node.outputs[0], -1)
        if graph.is_op(node, "Reshape", "Flatten") and axis == -1 and last:
            space = self.space(value)
            space.size, kept = math.gcd(space.size, last), -1
        return kept is not None and self._follow(node, value, kept)

    def _sum(self, node: ir.Node, known: list[ir.Value]) -> bool:
        axis = self.values[known[0]][1]
        if len(known) == 2:
            if self.values[known[1]][1] != axis or feature_axes.size(known[0], axis) != feature_axes.size(
                known[1], axis
            ):
                return False
            self._join(known[0], known[1])
            self.space(known[0]).residual = True
            return self._follow(node, known[0], axis)
        index = 1 - node.inputs.index(known[0])
        other, size = node.inputs[index], feature_axes.size(known[0], axis)
        if graph.constant_tensor(other) is None or size is None or feature_axes.size(node.outputs[0], axis) != size:
            return False
        self.space(known[0]).constants.append(Constant(node, index, axis, size))
        return self._follow(node, known[0], axis)

    def _join(self, first: ir.Value, second: ir.Value) -> None:
        """Make the spaces of two values one; the smaller moves into the larger, for linear cost."""
        two, one = sorted((self.space(first), self.space(second)), key=Space.parts)
        if one is not two:
            one.take(two)
            self._parents[id(two)] = one

    def _product(self, node: ir.Node) -> bool:
        """Attention: ``Q K^T`` reads both along the features, ``P V`` mixes positions."""
        first, second = node.inputs
        axes = self.axis(first), self.axis(second)
        assert first is not None
        assert second is not None
        if axes == (-1, -2):
            self._join(first, second)
            self.space(first).attention = True
            return True
        if axes != (None, -1):
            return False
        self.space(second).attention = True
        return self._follow(node, second, -1)

    def _concat(self, node: ir.Node, known: list[ir.Value]) -> bool:
        rank, axis = graph.rank(node.outputs[0]), self.values[known[0]][1]
        if rank is None or int(graph.attribute(node, "axis", 0)) % rank == rank + axis:
            return False
        size = feature_axes.size(known[0], axis)
        if size is None or any(self.values[v][1] != axis or feature_axes.size(v, axis) != size for v in known):
            return False
        others = [i for i, v in enumerate(node.inputs) if v not in self.values]
        if any(graph.constant_tensor(node.inputs[i]) is None for i in others):
            return False
        for value in known[1:]:
            self._join(known[0], value)
        self.space(known[0]).constants += [Constant(node, i, axis, size) for i in others]
        return self._follow(node, known[0], axis)

    def _norm(self, node: ir.Node, value: ir.Value, axis: int) -> bool:
        last = int(graph.attribute(node, "axis", -1)) in (-1, (graph.rank(value) or 0) - 1)
        if axis != -1 or not last:
            return False
        space, found = self.space(value), scaled(node)
        if found is None:
            return False
        space.scaled.append(found)
        space.keeps_ones |= node.op_type == "LayerNormalization"
        space.residual = True
        return self._follow(node, value, axis)

    def _scale(self, node: ir.Node, known: list[ir.Value]) -> bool:
        """A factor for all features alike, the squares of an RMS normalization, and its scales."""
        value = known[0]
        axis = self.values[value][1]
        if graph.is_op(node, "Pow", "Mul") and feature_axes.is_mean_square(node, value, axis):
            return True
        if not graph.is_op(node, "Mul", "Div") or len(known) != 1 or node.inputs.count(value) != 1:
            return False
        other = node.inputs[1 - node.inputs.index(value)]
        if graph.is_op(node, "Div") and node.inputs[0] is not value:
            return False
        if feature_axes.size(other, axis) == 1:
            return self._follow(node, value, axis)
        found = scaled(node) if axis == -1 and graph.is_op(node, "Mul") else None
        if found is not None:
            self.space(value).scaled.append(found)
        return found is not None and self._follow(node, value, axis)
