"""Channels computed several times: from the linear operators that compute them to the linear operators that read them.

Where everything between a Conv, Gemm or MatMul and its readers treats each channel alone, channel ``c`` may be
computed ``k`` times, and the readers share its weights among the copies:

    V f(W x)  =  V' f(W' x)      rows of W repeated, columns of V repeated, those of one channel with the sum of V's

`find` walks the graph once and notes for each value whose channels it holds (`Layout`); `Flows.repeat` rewrites.
Copies stand beside their original, so that Concat needs no care.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, repeating
from qcomp.graph import Array
from qcomp.linear import Linear
from qcomp.operators import Role

_LINEARLY = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout")
_FLATTENING = ("Flatten", "Squeeze", "Reshape")
_SHIFTS, _SCALES = ("Add", "Sub"), ("Mul", "Div")


@dataclass(frozen=True)
class Layout:
    """Whose channels a value holds.

    Args:
        axis: of the channels, from the front.
        sources: the linear operators, whose channels lie one behind the other.
    """

    axis: int
    sources: tuple[ir.Node, ...]


@dataclass
class Flows:
    """What `find` found.

    Args:
        layouts: of every value that holds channels of linear operators.
        readers: the linear operators that read such values.
        between: the operators in between with something to repeat: depthwise Conv, constants of channels, Reshape.
        why_not: the reason for each source whose channels cannot be repeated.
    """

    layouts: dict[ir.Value, Layout] = field(default_factory=dict)
    readers: list[Linear] = field(default_factory=list)
    between: list[ir.Node] = field(default_factory=list)
    why_not: dict[ir.Node, str] = field(default_factory=dict)

    def layout(self, linear: Linear) -> Layout:
        """That of what a reader reads."""
        value = linear.node.inputs[0]
        assert value is not None
        return self.layouts[value]

    def counts(self, layout: Layout, copies: Mapping[ir.Node, Array]) -> Array:
        """How often each channel of a layout is computed, int ``(channels,)``."""
        return np.concatenate([copies.get(s, np.ones(_channels(s), int)) for s in layout.sources])

    def allowed(self, layout: Layout) -> Array:
        """Which channels of a layout may be repeated, bool ``(channels,)``."""
        return np.concatenate([np.full(_channels(s), s not in self.why_not) for s in layout.sources])

    def repeat(
        self,
        copies: Mapping[ir.Node, Array],
        names: graph.Names,
        shared: Callable[[Linear, Array], Array],
        *,
        divided: bool = False,
    ) -> None:
        """Compute channels several times.

        Args:
            copies: for each source to change, how often each channel is computed, int ``(channels,)``.
            names: the pass's.
            shared: the weights of a reader, already repeated, from the reader as it is and the counts of its inputs.
            divided: the copies hold equal parts of the channel, else all of it.
        """
        touched = {v: c for v, layout in self.layouts.items() if (c := self.counts(layout, copies)).max(initial=1) > 1}
        for linear in self.readers:
            if (value := linear.node.inputs[0]) in touched and value is not None:
                graph.set_constant(linear.node, 1, shared(linear, touched[value]).astype(np.float32), names, "weight")
        for node in self.between:
            if (value := node.outputs[0]) in touched:
                repeating.between(node, self.layouts[value].axis, touched[value], names, divided=divided)
        for node in copies:
            if (value := node.outputs[0]) in touched:
                repeating.outputs(node, touched[value], names, divided=divided)
        for value, counts in touched.items():
            repeating.widen(value, self.layouts[value].axis, int(counts.sum()))


def find(target: ir.Graph, *, linearly: bool = False) -> Flows:
    """Whose channels each value of a graph holds, and which may be repeated.

    Args:
        target: the main graph.
        linearly: the copies are to hold parts of a channel: only what commutes with a positive factor may lie between.
    """
    flows, walk = Flows(), _Walk(linearly)
    for node in target:
        walk.step(node, flows)
    for value, layout in flows.layouts.items():
        if value.is_graph_output():
            _refuse(flows, layout, f"{value.name!r} is an output of the graph")
        for user, _ in value.uses():
            if user.graph is not target:
                _refuse(flows, layout, f"{graph.describe(user)} reads {value.name!r} in a subgraph")
    return flows


def _refuse(flows: Flows, layout: Layout, reason: str) -> None:
    for source in layout.sources:
        flows.why_not.setdefault(source, reason)


def _channels(node: ir.Node) -> int:
    return Linear(node).channels


@dataclass(frozen=True)
class _Walk:
    """One step of `find` at a time; see there."""

    linearly: bool

    def step(self, node: ir.Node, flows: Flows) -> None:
        """Note the node's result, and what it prevents."""
        linear = Linear.match(node)
        data = node.inputs[0] if node.inputs else None
        if linear is not None and _is_whole(linear):
            self._linear(linear, flows)
            return
        known = [flows.layouts[v] for v in node.inputs if v in flows.layouts]
        if not known:
            return
        result = self._result(node, linear, data, known, flows)
        if result is None or len(node.outputs) > 1:
            for layout in known:
                _refuse(flows, layout, f"{graph.describe(node)} mixes its channels or depends on their number")
        else:
            flows.layouts[node.outputs[0]] = result

    def _linear(self, linear: Linear, flows: Flows) -> None:
        value, axis = linear.node.inputs[0], linear.output_channel_axis()
        assert value is not None
        layout = flows.layouts.get(value)
        if layout is not None and layout.axis == linear.input_channel_axis():
            flows.readers.append(linear)
        elif layout is not None:
            _refuse(flows, layout, f"{graph.describe(linear.node)} reads them along another axis")
        if axis is not None and graph.is_float(linear.node.outputs[0]) and len(linear.node.outputs) == 1:
            flows.layouts[linear.node.outputs[0]] = Layout(axis, (linear.node,))

    def _result(
        self, node: ir.Node, linear: Linear | None, data: ir.Value | None, known: list[Layout], flows: Flows
    ) -> Layout | None:
        """The layout of the node's result; None where channels cannot be repeated through it."""
        layout = flows.layouts.get(data) if data is not None else None
        if graph.is_op(node, "Concat"):
            return _joined(node, known)
        if graph.is_op(node, *_SHIFTS, *_SCALES):
            return self._binary(node, known, flows)
        if layout is None or len(known) != 1:
            return None
        if linear is not None and _is_depthwise(linear):
            flows.between.append(node)
            return layout
        if graph.is_op(node, *_FLATTENING):
            return _flattened(node, layout, flows)
        if graph.is_op(node, "Pad"):
            return layout if _pads_zeros(node, layout.axis) else None
        pools = "Pool" in node.op_type
        return layout if self._treats_alone(node) and (layout.axis == 1 or not pools) else None

    def _treats_alone(self, node: ir.Node) -> bool:
        if graph.is_op(node, *_LINEARLY):
            return True
        unary = operators.role(node) in (Role.UNARY, Role.CLAMP) and not graph.is_op(node, "PRelu")
        return unary and not self.linearly

    def _binary(self, node: ir.Node, known: list[Layout], flows: Flows) -> Layout | None:
        """With a constant, one number or one a channel; or of two values that hold the same channels."""
        if len(known) == 2:
            alike = known[0] == known[1] and graph.rank(node.inputs[0]) == graph.rank(node.inputs[1])
            return known[0] if alike and not (self.linearly and graph.is_op(node, *_SCALES)) else None
        constants = [v for v in node.inputs if graph.constant_tensor(v) is not None]
        rank = graph.rank(node.outputs[0])
        divisor = self.linearly and graph.is_op(node, "Div") and node.inputs[0] in constants
        if not constants or rank is None or divisor:
            return None
        shape = graph.static_shape(constants[0]) or ()
        rest = [d for i, d in enumerate(shape, rank - len(shape)) if i != known[0].axis]
        fits = len(shape) <= rank and all(d == 1 for d in rest) and rank == _rank_of(known[0], node, flows)
        if fits:
            flows.between.append(node)
        return known[0] if fits else None


def _rank_of(layout: Layout, node: ir.Node, flows: Flows) -> int | None:
    return next((graph.rank(v) for v in node.inputs if v in flows.layouts), None)


def _is_whole(linear: Linear) -> bool:
    """Whether every output reads every input."""
    return linear.groups == 1 and (linear.kind != "MatMul" or len(linear.weight_shape) == 2)


def _is_depthwise(linear: Linear) -> bool:
    return linear.kind == "Conv" and linear.groups == linear.channels == linear.input_channels


def _joined(node: ir.Node, known: list[Layout]) -> Layout | None:
    axis, rank = int(graph.attribute(node, "axis", 0)), graph.rank(node.outputs[0])
    axes = {layout.axis for layout in known}
    if rank is None or axes != {axis % rank} or len(known) != len(node.inputs):
        return None
    return Layout(axis % rank, tuple(s for layout in known for s in layout.sources))


def _pads_zeros(node: ir.Node, axis: int) -> bool:
    pads, rank = graph.constant(node.inputs[1]), graph.rank(node.outputs[0])
    value = graph.scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
    if pads is None or rank is None or pads.size != 2 * rank or value != 0.0:
        return False
    constant = graph.attribute(node, "mode", "constant") == "constant"
    return constant and not pads.reshape(2, -1)[:, axis].any()


def _flattened(node: ir.Node, layout: Layout, flows: Flows) -> Layout | None:
    """``[N, C, 1, 1]`` to ``[N, C]``; a Reshape's target is changed with the channels."""
    before, after = graph.static_shape(node.inputs[0]), graph.static_shape(node.outputs[0])
    if before is None or after is None or layout.axis != 1 or len(after) != 2 or after[1] != before[1]:
        return None
    if any(d != 1 for d in before[2:]):
        return None
    if graph.is_op(node, "Reshape"):
        target = graph.constant(node.inputs[1])
        if target is None or target.shape != (2,):
            return None
        flows.between.append(node)
    return layout
