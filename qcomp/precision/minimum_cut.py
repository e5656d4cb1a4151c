"""Which operators should run in integers so that the whole graph is fastest: a minimum cut.

Each operator costs what `qcomp.precision.costs` says in float and in integers; each value between the two is converted
once. The assignment with the least sum is a minimum cut of a network whose source side is float and whose sink side is
integer (Picard and Queyranne 1980, "On the structure of all minimum cuts in a network", give the construction).

Integers are preferred where it is close: they also make the weights four times smaller and the graph uniform.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from qcomp import graph, operators, units
from qcomp.precision import costs
from qcomp.precision.costs import Cost

logger = logging.getLogger(__name__)

PREFERENCE = 0.6
"""An operator with weights counts for so much of its integer time, less `PREFERENCE_FIXED` nanoseconds."""
PREFERENCE_FIXED = 600.0
PREFERENCE_OTHERS = 60.0
WORTH = 0.97
"""The preference holds only where all together takes at most so much of the time in float."""
_FLOAT, _INTEGER = "float", "integer"
_NEVER = 1e12

Network = nx.DiGraph


@dataclass(frozen=True)
class _Choice:
    """One assignment.

    Args:
        floats: the heads of the units that run in float, by ``id``.
        price: nanoseconds of the whole, conversions included.
    """

    floats: frozenset[int]
    price: float


class _Problem:
    """The candidates with what is asked of them again and again: units, and costs where a kernel exists."""

    def __init__(self, candidates: Sequence[ir.Node]) -> None:
        self.candidates = candidates
        self.units = {id(n): id(units.head(n)) for n in candidates}
        self.costs = {id(n): _possible(n) for n in candidates}

    def maker(self, value: ir.Value | None) -> object:
        """The unit that computes a value; the float side where it is no candidate."""
        producer = None if value is None else value.producer()
        return _FLOAT if producer is None else self.units.get(id(producer), _FLOAT)


def floats(candidates: Sequence[ir.Node]) -> list[ir.Node]:
    """The candidates that should stay in float.

    Args:
        candidates: the operators that may run in integers; every other operator of their graph stays in float.
    """
    if not candidates:
        return []
    problem = _Problem(candidates)
    plain = _network(problem, preferring=False)
    chosen = _cut(_network(problem, preferring=True), plain, problem)
    everything = frozenset(problem.units.values())
    in_float = _Choice(everything, _price(plain, everything, problem))
    if chosen.price > WORTH * in_float.price:
        chosen = _cut(plain, plain, problem)
    logger.info("estimated time: %.0f us in float, %.0f us as chosen", in_float.price / 1e3, chosen.price / 1e3)
    return [n for n in candidates if problem.units[id(n)] in chosen.floats]


def _cut(network: Network[object], plain: Network[object], problem: _Problem) -> _Choice:
    flow = nx.algorithms.flow.boykov_kolmogorov
    _, (float_side, _) = nx.minimum_cut(network, _FLOAT, _INTEGER, flow_func=flow)
    chosen = frozenset(key for key in float_side if isinstance(key, int))
    return _Choice(chosen, _price(plain, chosen, problem))


def _price(network: Network[object], chosen: frozenset[int], problem: _Problem) -> float:
    """The time of an assignment: what every operator costs at least, and the edges it cuts."""
    side = {key: key == _FLOAT or key in chosen for key in network if not isinstance(key, tuple)}
    for key in network:
        if isinstance(key, tuple):
            side[key] = _meets_in_float(network, key, side)
    cut = sum(d["capacity"] for a, b, d in network.edges(data=True) if side[a] and not side[b] and "capacity" in d)
    return float(cut) / 1e3 + sum(min(c.real, c.integer) for c in problem.costs.values())


def _meets_in_float(network: Network[object], key: tuple[str, int], side: dict[object, bool]) -> bool:
    if key[0] == "dequantize":
        return any(side[reader] for reader in network.predecessors(key))
    return all(side[reader] for reader in network.successors(key))


def _possible(node: ir.Node) -> Cost:
    cost = costs.of(node)
    return cost if costs.has_kernel(node) else Cost(cost.real, _NEVER)


def _preferred(node: ir.Node, cost: Cost) -> Cost:
    if operators.weight_of(node) is not None:
        return Cost(cost.real, PREFERENCE * cost.integer - PREFERENCE_FIXED)
    return Cost(cost.real, cost.integer - PREFERENCE_OTHERS)


def _network(problem: _Problem, *, preferring: bool) -> Network[object]:
    """The flow network: source side float, sink side integer."""
    network: Network[object] = nx.DiGraph()
    network.add_nodes_from((_FLOAT, _INTEGER, *problem.units.values()))
    for node in problem.candidates:
        cost, key = problem.costs[id(node)], problem.units[id(node)]
        gain = _gain(_preferred(node, cost) if preferring else cost)
        _add(network, key, _INTEGER, gain)
        _add(network, _FLOAT, key, -gain)
        _add(network, problem.maker(node.inputs[0]), key, costs.out_of_place(node))
    for value in _edges(problem.candidates):
        _add_conversions(network, value, problem)
    return network


def _gain(cost: Cost) -> float:
    return cost.real - cost.integer


def _edges(candidates: Sequence[ir.Node]) -> Iterator[ir.Value]:
    seen: set[int] = set()
    for node in candidates:
        for value in [*(v for _, v in operators.activations(node)), *node.outputs]:
            if id(value) not in seen and graph.is_float(value) and graph.constant_tensor(value) is None:
                seen.add(id(value))
                yield value


def _add_conversions(network: Network[object], value: ir.Value, problem: _Problem) -> None:
    """A DequantizeLinear where an integer producer meets a float reader, a QuantizeLinear the other way round."""
    made_by, producer = problem.maker(value), value.producer()
    readers: set[object] = {problem.units.get(id(user), _FLOAT) for user, _ in value.uses()}
    if value.is_graph_output():
        readers.add(_FLOAT)
    readers.discard(made_by)
    if not readers:
        return
    if made_by != _FLOAT and not _leaves_float(producer):
        meeting = ("dequantize", id(value))
        _add(network, meeting, made_by, costs.convert(value))
        for reader in readers:
            _add(network, reader, meeting, float("inf"))
    meeting = ("quantize", id(value))
    _add(network, made_by, meeting, costs.quantize(value))
    for reader in readers - {_FLOAT}:
        _add(network, meeting, reader, float("inf"))


def _leaves_float(node: ir.Node | None) -> bool:
    """Whether the fused integer kernel can give its result in float at no cost."""
    row = None if node is None else operators.find(units.head(node))
    return row is not None and row.float_output


def _add(network: Network[object], start: object, end: object, capacity: float) -> None:
    """An edge, added to one that is there; an infinite capacity is left out, as networkx has it.

    Capacities are whole picoseconds: networkx compares flows for equality, which floats do not stand.
    """
    if start == end or capacity <= 0:
        return
    if capacity == float("inf"):
        network.add_edge(start, end)
    elif not network.has_edge(start, end):
        network.add_edge(start, end, capacity=round(1e3 * capacity))
    elif "capacity" in network[start][end]:
        network[start][end]["capacity"] += round(1e3 * capacity)
