"""Choose which operators run in integers: those that may, and of them those that pay.

An operator with no integer form, of a shape that no integer kernel takes, matched by ``keep``, or that adds a mask so
large that every other value would become one integer, stays in float. Of the others, integers are chosen where the
whole graph becomes fastest: each operator costs what `qcomp.precision.costs` says in float and in integers, each edge
between the two a conversion, and the least sum is a minimum cut (`qcomp.precision.minimum_cut`).

The reason for float is noted in the node's metadata under ``qcomp.float``, where insert-qdq and the summary read it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from qcomp import graph, operators, units
from qcomp.calibration.observers import Distribution, Observation, Statistics
from qcomp.pipeline import Pass
from qcomp.precision import costs, integer_form, minimum_cut
from qcomp.qdq import FLOAT_REASON, why_float

logger = logging.getLogger(__name__)

LEVELS = 255


@dataclass(frozen=True)
class ChoosePrecision(Pass):
    """Note on every operator that should stay in float why it should.

    Args:
        keep: patterns of operator names, types or outputs that stay in float, as in ``keep=head/*|Softmax``.
        by: ``cost`` chooses what makes the graph fastest; ``all`` takes every operator with an integer form.
    """

    keep: tuple[str, ...] = ()
    by: Literal["cost", "all"] = "cost"
    tolerance: ClassVar[float | None] = 0.0

    def observe(self, model: ir.Model) -> Iterable[Observation]:
        return [Observation(value, Distribution()) for value in integer_form.observable(model)]

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        if any(graph.is_op(node, "QuantizeLinear", "DequantizeLinear") for node in model.graph):
            return False
        reasons = _impossible(model, self.keep, stats)
        if self.by == "cost":
            reasons.update(_unprofitable(model, reasons))
        changed = False
        for node, reason in reasons.items():
            changed |= why_float(node) != reason
            node.metadata_props[FLOAT_REASON] = reason
            logger.info("%s: stays in float: %s", graph.describe(node), reason)
        return changed


def _impossible(model: ir.Model, keep: tuple[str, ...], stats: Statistics) -> dict[ir.Node, str]:
    reasons: dict[ir.Node, str] = {}
    masks = integer_form.masks(model)
    for node in model.graph:
        if graph.is_op(node, "Add") and units.head(node) is not node:
            continue  # one linear unit with its MatMul, which decides
        reason = _kept(node, keep) or why_float(node) or integer_form.why_not(node) or _crushed(node, masks, stats)
        if reason is not None and _computes_floats(node):
            reasons[node] = reason
            reasons.setdefault(units.head(node), reason)
    others = [node for node in model.graph if operators.find(node) is not None and node not in reasons]
    reasons.update({node: reasons[head] for node in others if (head := units.head(node)) in reasons})
    return reasons


def _computes_floats(node: ir.Node) -> bool:
    floats = any(v.dtype is None or v.dtype.is_floating_point() for v in node.outputs)
    return floats or any(True for _ in graph.subgraphs(node))


def _kept(node: ir.Node, keep: tuple[str, ...]) -> str | None:
    pattern = operators.matching(node, keep)
    return None if pattern is None else f"kept by {pattern!r}"


def _crushed(node: ir.Node, masks: set[int], stats: Statistics) -> str | None:
    """A mask, or an operand so large that one step of the sum is wider than the whole other operand."""
    inputs = [v for _, v in operators.activations(node)]
    if any(id(v) in masks for v in [*inputs, *node.outputs]):
        return "it handles a mask so large that every other value would become one integer"
    if graph.is_op(node, "GlobalAveragePool") and _vanishes(node, stats):
        return "its result is nothing beside what it averages"
    if not graph.is_op(node, "Add") or len(inputs) < 2:
        return None
    spans = [span for value in inputs if (span := _span(value, stats)) is not None]
    if len(spans) == 2 and 0 < min(spans) < max(spans) / LEVELS:
        return "one operand is smaller than one quantization step of the other"
    return None


def _vanishes(node: ir.Node, stats: Statistics) -> bool:
    """Whether the mean is so small that ONNX Runtime refuses the ratio of the two scales, as behind a normalization."""
    before, after = (stats.histogram(v) if v is not None else None for v in (node.inputs[0], node.outputs[0]))
    if before is None or after is None or before.exponent is None or after.exponent is None:
        return False
    reach = [max(h.high, 0.0) - min(h.low, 0.0) for h in (before, after)]
    return reach[1] * LEVELS**2 < reach[0]


def _span(value: ir.Value, stats: Statistics) -> float | None:
    array = graph.constant(value)
    if array is not None and array.size:
        return float(array.max()) - float(array.min()) or abs(float(array.max()))
    histogram = stats.histogram(value)
    return None if histogram is None or histogram.exponent is None else histogram.high - histogram.low


def _unprofitable(model: ir.Model, impossible: dict[ir.Node, str]) -> dict[ir.Node, str]:
    """The operators that the minimum cut leaves in float, with the reason."""
    candidates = [
        n for n in model.graph if n not in impossible and operators.find(n) is not None and operators.handles_floats(n)
    ]
    return {node: _reason(node) for node in minimum_cut.floats(candidates)}


def _reason(node: ir.Node) -> str:
    if not costs.has_kernel(node):
        return f"ONNX Runtime has no integer kernel for {node.op_type}"
    return "integers would be no faster here: the conversions around it cost more than they gain"
