"""Which quantized values share one scale, and the scale of each group, from the statistics.

Where nothing but activations decide the factor of a requantization (``x_scale * y_scale / out_scale`` of a product,
``x_scale / out_scale / count`` of a mean), the scale of the result is chosen so that the factor is dyadic. That of a
linear operator with weights follows from the weights' scales, see `qcomp.linear_qdq`.

Powers of two need no such choice, but for a mean: one over its count is the operator's own arithmetic, which no scale
can take from it. Integer forms multiply by the nearest dyadic number there, so that a result halfway between two
integers may become the other one; both forms agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, qdq
from qcomp.calibration.observers import Statistics
from qcomp.errors import CalibrationError
from qcomp.operators import Role
from qcomp.quantization import dyadic, power_of_two, ranges
from qcomp.quantization.histogram import Histogram
from qcomp.quantization.qparams import QParams
from qcomp.quantization.qtype import QType
from qcomp.quantization.ranges import Range

FEWEST_BITS = 8
"""Below so many bits what an operator in float gives has the range that was seen, not the one it may have."""
LOST_IN_CONCAT = 4.0
"""An input whose range is this many times narrower than the output's keeps a scale of its own: 2 bits are lost."""


@dataclass(frozen=True)
class Ranges:
    """The range of a value by one method, from the statistics, from mathematics, or of a constant.

    Args:
        stats: histograms of the values.
        method: of `qcomp.quantization.ranges`.
        qtype: the type of activations.
        powers: whether scales are powers of two.
        ends: the type of what is an input or output of the model; None for that of all others.
    """

    stats: Statistics
    method: str
    qtype: QType
    powers: bool = False
    ends: QType | None = None

    def of(self, value: ir.Value, *, clip: bool = True) -> Range:
        """The range ``(low, high)``, which holds zero.

        Args:
            value: a float value.
            clip: False takes all that was seen: clipped class scores would tie where the decision falls.

        Raises:
            CalibrationError: no statistics were collected for the value.
        """
        array = graph.constant(value)
        if array is not None:
            return float(array.min(initial=0.0)), float(array.max(initial=0.0))
        fixed, producer = _fixed_range(value, self.qtype), value.producer()
        if fixed is not None:
            return fixed
        histogram = self.stats.histogram(value)
        if histogram is None or histogram.exponent is None:
            where = graph.describe(producer) if producer is not None else f"input {value.name!r}"
            raise CalibrationError(f"no statistics of {value.name!r}", where=where, hint="give calibration data")
        low, high = ranges.method(self.method if clip else "minmax")(histogram, self.qtype)
        least = operators.least_output(producer)
        return (low if least is None else least), high

    def params(self, values: Sequence[ir.Value], *, clip: bool) -> QParams:
        """The parameters that values of one scale share.

        Args:
            values: at least one.
            clip: as `of`.
        """
        found = _union(self.of(value, clip=clip) for value in values)
        if not self.powers:
            return QParams.asymmetric(*found, self.qtype)
        merged, fixed = Histogram(), False
        for value in values:
            bounds = _fixed_range(value, self.qtype)
            fixed |= bounds is not None
            merged.merge(self._distribution(value) if bounds is None else power_of_two.uniform(*bounds))
        may_clip = fixed or (clip and self.method != "minmax")
        return power_of_two.activation(merged, found, self.qtype, clip=may_clip)

    def _distribution(self, value: ir.Value) -> Histogram:
        array, histogram = graph.constant(value), Histogram()
        if array is None:
            return self.stats.histogram(value) or histogram
        if array.size:
            histogram.update(array, float(array.min()), float(array.max()))
        return histogram


def _fixed_range(value: ir.Value, qtype: QType) -> Range | None:
    """The range that mathematics gives; of few bits only where an integer form needs it: most values lie far below."""
    producer = value.producer()
    if producer is None or (qtype.bits < FEWEST_BITS and qdq.why_float(producer) is not None):
        return None
    return operators.FIXED_RANGES.get(producer.op_type)


def assign(values: Iterable[ir.Value], nodes: Iterable[ir.Node], finder: Ranges) -> dict[int, tuple[QParams, ir.Value]]:
    """The parameters of every value, by ``id``, with the value whose name the shared scale takes.

    Values that operators of `Role.SAME_SCALE` connect share one object: connected components of a throw-away graph.
    """
    members = {id(v): v for v in values}
    links: nx.Graph[int] = nx.Graph()
    links.add_nodes_from(members)
    copies: set[int] = set()
    for node in nodes:
        for source, out in _links(node, members, finder):
            links.add_edge(id(source), id(out))
            if _copies(node):
                copies.add(id(out))
    found: dict[int, tuple[QParams, ir.Value]] = {}
    order = {key: index for index, key in enumerate(members)}
    for component in nx.connected_components(links):
        ordered = [members[key] for key in sorted(component, key=order.__getitem__)]
        sources = [v for v in ordered if id(v) not in copies] or ordered
        decides = any(v.is_graph_output() for v in ordered)
        outermost = decides or any(v.is_graph_input() for v in ordered)
        chosen = replace(finder, qtype=finder.ends) if outermost and finder.ends is not None else finder
        params = chosen.params(sources, clip=not decides)
        found.update({id(v): (params, ordered[0]) for v in ordered})
    return found


def align(found: dict[int, tuple[QParams, ir.Value]], nodes: Iterable[ir.Node], result: Result) -> None:
    """Enlarge scales, in place, until the factors of products and means of activations are dyadic.

    A scale that several computing operators share is left to the weights of the others.

    Args:
        found: what `assign` gave.
        nodes: the computing operators, in the order of the graph.
        result: the value that stands for what a node computes.
    """
    computing = [node for node in nodes if operators.computes(node)]
    makers = Counter(id(found[id(out)][0]) for node in computing if id(out := result(node)) in found)
    members: dict[int, list[int]] = {}
    for key, (params, _) in found.items():
        members.setdefault(id(params), []).append(key)
    for node in computing:
        inputs = [found[id(v)][0] for _, v in operators.activations(node) if id(v) in found]
        factor, old = _factor(node, inputs), found.get(id(result(node)), (None,))[0]
        if factor is None or old is None or makers[id(old)] > 1 or any(p is old for p in inputs):
            continue
        new = _enlarged(node, old, factor)
        makers[id(new)], members[id(new)] = 1, members[id(old)]
        found.update((key, (new, found[key][1])) for key in members[id(old)])


Result = Callable[[ir.Node], ir.Value]


def _factor(node: ir.Node, inputs: list[QParams]) -> float | None:
    """What the accumulator of a product or a mean of activations stands for, in real numbers."""
    if node.op_type in ("MatMul", "Mul") and len(inputs) == 2:
        return float(inputs[0].scale) * float(inputs[1].scale)
    count = operators.averaged(node) if node.op_type in ("GlobalAveragePool", "ReduceMean") else None
    return None if count is None else float(inputs[0].scale) / count


def _enlarged(node: ir.Node, old: QParams, factor: float) -> QParams:
    """The parameters with the next larger scale by which the factor over it is dyadic, of a mean with an odd one."""
    unit = 2.0 ** (dyadic.PRODUCT_SHIFT if node.op_type == "Mul" else dyadic.SHIFT)
    steps = np.floor(factor / float(old.scale) * unit)
    if node.op_type in ("GlobalAveragePool", "ReduceMean"):
        steps -= 1 - steps % 2
    if not 1 <= steps <= dyadic.LARGEST_MULTIPLIER:
        return old
    return replace(old, scale=np.asarray(factor / steps * unit, np.float32))


def _copies(node: ir.Node) -> bool:
    """Whether the output lies in the range of the input: not of a Concat, nor of a Clip whose bounds exclude zero."""
    bounds = operators.clamp_bounds(node) if graph.is_op(node, "Relu", "Clip") else None
    return not graph.is_op(node, "Concat") and (bounds is None or bounds[0] <= 0 <= bounds[1])


def _links(node: ir.Node, members: Mapping[int, ir.Value], finder: Ranges) -> Iterable[tuple[ir.Value, ir.Value]]:
    role = operators.role(node)
    if role is None or operators.computes(node):
        return
    sources = [v for _, v in operators.activations(node) if id(v) in members]
    outs = [v for v in node.outputs if id(v) in members]
    for source in sources:
        for out in outs:
            if role is not Role.CONCAT or _fits(finder.of(source), finder.of(out)):
                yield source, out


def _fits(narrow: Range, wide: Range) -> bool:
    return (wide[1] - wide[0]) <= LOST_IN_CONCAT * (narrow[1] - narrow[0])


def _union(found: Iterable[Range]) -> Range:
    low, high = 0.0, 0.0
    for a, b in found:
        low, high = min(low, a), max(high, b)
    return low, high
