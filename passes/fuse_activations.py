"""Fuse activations that are spelled out, as exporters of older opsets write them, into the one operator they are.

    x * (erf(x / sqrt(2)) + 1) / 2                              Gelu                        (opset 20)
    x * (tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)) + 1) / 2    Gelu, approximate="tanh"    (opset 20)
    x * clip(x + 3, 0, 6) / 6                                   HardSwish                   (opset 14)
    x * HardSigmoid(x), alpha = 1/6, beta = 1/2                 HardSwish

All of them are ``x * (factor * f(p(x)) + offset)`` with a function f and a polynomial p. The constants are compared in
this form, whatever the order of the operators is, and whether a number is multiplied or divided by.
Formulas: Hendrycks and Gimpel 2016, arXiv:1606.08415; Howard et al. 2019, arXiv:1905.02244.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.polynomial import Polynomial

from qcomp import graph, operators
from qcomp.calibration.observers import Statistics
from qcomp.pipeline import Pass

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-6
"""Relative: what a few constants rounded to float32 lose together."""
_MOST_OPERATORS = 5
"""In a row, before or behind the function: no spelling has more."""


@dataclass(frozen=True)
class FuseActivations(Pass):
    """Fuse activations that are spelled out into one operator: Gelu, of Erf or Tanh, and HardSwish."""

    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        opset, names = model.graph.opset_imports.get("", 0), graph.Names(model.graph)
        gone: list[ir.Node] = []
        for node in tuple(model.graph):
            form = _form(node)
            found = _match(node, form) if form is not None and form.opset <= opset else None
            if form is not None and found is not None:
                _replace(model.graph, form, found, names)
                gone += found.nodes
        graph.remove(model.graph, gone)
        return bool(gone)


@dataclass(frozen=True)
class _Form:
    """``x * (factor * f(p(x)) + offset)``, and the operator it is.

    Args:
        kind: the operator.
        opset: the first that has it.
        argument: the coefficients of p, constant first.
        line: offset and factor.
        attributes: of the operator.
    """

    kind: str
    opset: int
    argument: tuple[float, ...]
    line: tuple[float, float]
    attributes: Mapping[str, str] = field(default_factory=dict)


_SLOPE = math.sqrt(2 / math.pi)
_GELU = _Form("Gelu", 20, (0.0, math.sqrt(0.5)), (0.5, 0.5))
_TANH_GELU = _Form("Gelu", 20, (0.0, _SLOPE, 0.0, 0.044715 * _SLOPE), (0.5, 0.5), {"approximate": "tanh"})


def _form(node: ir.Node) -> _Form | None:
    """What the node may be the function f of."""
    if graph.is_op(node, "Erf"):
        return _GELU
    if graph.is_op(node, "Tanh"):
        return _TANH_GELU
    if graph.is_op(node, "HardSigmoid"):
        alpha, beta = graph.attribute(node, "alpha", 0.2), graph.attribute(node, "beta", 0.5)
        return _Form("HardSwish", 14, ((0.5 - beta) / alpha, 1 / (6 * alpha)), (0.0, 1.0)) if alpha > 0 else None
    low, high = (operators.clamp_bounds(node) if graph.is_op(node, "Clip") else None) or (0.0, 0.0)
    if low != 0.0 or high <= 0.0:
        return None
    return _Form("HardSwish", 14, (high / 2, high / 6), (0.0, 1 / high))


@dataclass(frozen=True)
class _Found:
    """What is fused.

    Args:
        source: the x.
        result: what the operators make of it.
        nodes: the operators.
    """

    source: ir.Value
    result: ir.Value
    nodes: list[ir.Node]


def _match(function: ir.Node, form: _Form) -> _Found | None:
    """The form around the function; None where it is not there, or where something forbids to fuse it."""
    found = _product(function, form)
    if found is None or not graph.is_float(found.source):
        return None
    argument = _polynomial(function.inputs[0], {found.source: Polynomial([0, 1])}, found.nodes)
    if argument is None:
        return None
    reason = _obstacle(form, found, argument)
    if reason is not None:
        logger.info("%s: not fused: %s", graph.describe(function), reason)
    return found if reason is None else None


def _obstacle(form: _Form, found: _Found, argument: Polynomial) -> str | None:
    """Why what looks like the form is not fused."""
    if not _equal(argument, form.argument):
        return f"its argument is not that of {form.kind}"
    if graph.rank(found.source) is None or graph.rank(found.source) != graph.rank(found.result):
        return "the ranks of argument and result are not known to be equal"
    inner = [v for n in found.nodes for v in n.outputs if v is not found.result]
    outside = next((v for v in inner if _is_read_outside(v, found.nodes)), None)
    return None if outside is None else f"{outside.name!r} is read elsewhere too"


def _product(function: ir.Node, form: _Form) -> _Found | None:
    """Follow the function's result f to ``x * (factor * f + offset)``; operators from x to f are still missing."""
    value, line, source = function.outputs[0], Polynomial([0, 1]), None
    nodes = [function]
    for _ in range(_MOST_OPERATORS):
        user = next((n for n, _ in value.uses()), None)
        if user is None or user.graph is not function.graph:
            return None
        known = {value: line}
        if source is None and (source := _factor(user, value)) is not None:
            known[source] = Polynomial([1])
        made = _polynomial(user.outputs[0], known, nodes)
        if made is None:
            return None
        value, line = user.outputs[0], made
        if source is not None and _equal(line, form.line):
            return _Found(source, value, nodes)
    return None


def _factor(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The x of ``value * x``, ``value * (x * number)`` or ``value * (x / number)``."""
    if not graph.is_op(node, "Mul"):
        return None
    other = _variable(node, value)
    scaling = other.producer() if other is not None and graph.only_user(other) is node else None
    inner = _variable(scaling) if scaling is not None and graph.is_op(scaling, "Mul", "Div") else None
    return other if inner is None else inner


def _variable(node: ir.Node, besides: ir.Value | None = None) -> ir.Value | None:
    """The input of a binary operator that is no number, where the other is ``besides``, or a number."""
    others = [v for v in node.inputs if v is not None and v is not besides and graph.scalar(v) is None]
    return others[0] if len(others) == 1 else None


def _polynomial(
    value: ir.Value | None, known: Mapping[ir.Value, Polynomial], nodes: list[ir.Node], depth: int = _MOST_OPERATORS
) -> Polynomial | None:
    """The value as a polynomial, given those of others; None where it is none. Adds the operators to ``nodes``."""
    if value is None or value in known:
        return None if value is None else known[value]
    number = graph.scalar(value)
    if number is not None:
        return Polynomial([number])
    node = value.producer()
    if node is None or not depth or not graph.is_op(node, "Add", "Mul", "Div", "Pow"):
        return None
    first, second = (_polynomial(v, known, nodes, depth - 1) for v in node.inputs)
    if node not in nodes:
        nodes.append(node)
    return None if first is None or second is None else _computed(node.op_type, first, second)


def _computed(kind: str, first: Polynomial, second: Polynomial) -> Polynomial | None:
    """The result of Add or Mul; of Div or Pow only by a number."""
    if kind == "Add":
        return first + second
    if kind == "Mul":
        return first * second
    number = float(second.coef[0])
    if second.degree() > 0 or number == 0.0:
        return None
    if kind == "Div":
        return first / number
    return first ** int(number) if number in (2.0, 3.0) else None


def _equal(found: Polynomial, wanted: tuple[float, ...]) -> bool:
    coefficients = found.trim().coef
    return len(coefficients) == len(wanted) and np.allclose(coefficients, wanted, rtol=_TOLERANCE, atol=0)


def _is_read_outside(value: ir.Value, nodes: list[ir.Node]) -> bool:
    return value.is_graph_output() or any(user not in nodes for user, _ in value.uses())


def _replace(home: ir.Graph, form: _Form, found: _Found, names: graph.Names) -> None:
    """Let the operator stand for the last one; the caller removes them all."""
    last = found.result.producer()
    assert last is not None
    fused = ir.node(form.kind, [found.source], form.attributes, name=last.name)
    fused.outputs[0].name = names.fresh(f"{found.result.name}_fused")
    home.insert_before(last, fused)
    graph.take_over(found.result, fused.outputs[0])
