"""Turn the Q/DQ graph into an integer graph: every requantization is a product by ``m / 2^c``.

Each operator between DequantizeLinear and QuantizeLinear becomes one on the integers: QLinearConv, QLinearMatMul,
QGemm, QLinearAdd and their like with dyadic numbers for scales; pools, concatenations and moves as they are; tables
and functions of the domain ``qcomp`` for the rest. Nothing is rounded anew: the scales were chosen with dyadic ratios
when Q/DQ was inserted, and weights and biases are taken as they are.

An operator that has no such form stays between DequantizeLinear and QuantizeLinear where that is allowed, and is
refused by its name where it is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcomp import graph, operators, qdq
from qcomp.calibration.observers import Statistics
from qcomp.errors import UnsupportedError
from qcomp.integer import functions as bodies
from qcomp.operators import MICROSOFT, Role
from qcomp.pipeline import Pass
from qcomp.rescale import arithmetic, functions, linear, moves
from qcomp.rescale import site as sites
from qcomp.rescale.site import Emitter, Site

logger = logging.getLogger(__name__)

Lowering = Callable[[Site, Emitter], ir.Value]
LOWERINGS: dict[str, Lowering] = {
    "Conv": linear.conv,
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    "Add": arithmetic.add,
    "Mul": arithmetic.multiply,
    "GlobalAveragePool": arithmetic.global_average_pool,
    "Concat": arithmetic.concat,
    "GlobalMaxPool": moves.global_max_pool,
    "ReduceMean": functions.reduce_mean,
    "Softmax": functions.softmax,
    "LayerNormalization": functions.layer_normalization,
}
"""By operator; unary operators become tables, those that move integers stay."""
SLOWER = ("Softmax",)
"""Faster between DequantizeLinear and QuantizeLinear, where ONNX Runtime has a kernel of its own for it."""
NAMED = 3
"""How many operators an error names."""
_STANDING = (Role.CLAMP, Role.ON_INTEGERS)
"""What stands on the integers already where it has a form."""
_ENDS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class DyadicRescale(Pass):
    """Replace Q/DQ by integer operators with dyadic scales.

    Args:
        allow_float: leave operators without an integer form in float, and those that are slower in it; else what has
            none is refused.
    """

    allow_float: bool = False
    tolerance: ClassVar[float | None] = None

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        emitter = Emitter(model.graph)
        skipped = SLOWER if self.allow_float else ()
        changed = [self._visit(node, emitter) for node in tuple(model.graph) if not graph.is_op(node, *skipped)]
        emitter.clean_up()
        changed.append(_read_shapes_of_integers(model))
        if not self.allow_float:
            _refuse_floats(model)
        if any(changed):
            _import_domains(model)
        return any(changed)

    def _visit(self, node: ir.Node, emitter: Emitter) -> bool:
        """Lower an operator, or note why it stays in float, where that is allowed; say whether anything changed."""
        site = sites.find(node)
        if site is None or operators.role(node) in _STANDING:
            return False
        sites.check_types(site)
        try:
            _lower(site, emitter)
        except UnsupportedError as error:
            if not self.allow_float:
                raise
            node.metadata_props[qdq.FLOAT_REASON] = error.what
            logger.info("%s: stays in float: %s", graph.describe(node), error.what)
        return True


def _lower(site: Site, emitter: Emitter) -> None:
    """Put integer operators in the place of a site.

    Raises:
        UnsupportedError: it has no such form; nothing has changed.
    """
    node = site.node
    lowering = functions.table if operators.role(node) is Role.UNARY else LOWERINGS.get(node.op_type)
    if lowering is not None:
        emitter.finish(site, lowering(site, emitter))
    elif operators.role(node) is Role.SAME_SCALE:
        moves.same_scale(site, emitter)
    else:
        what = node.metadata_props.get(qdq.NOT_LOWERED, f"{node.op_type} has no integer operator")
        hint = "leave it in float with --allow-float"
        raise UnsupportedError(what, where=graph.describe(node), hint=hint)


def _read_shapes_of_integers(model: ir.Model) -> bool:
    """Let what asks for the shape of an input ask for that of its integers: then nothing else reads the floats."""
    changed = False
    for node in model.graph:
        source = node.inputs[0] if graph.is_op(node, "QuantizeLinear") else None
        for user, index in tuple(source.uses()) if source is not None and source.is_graph_input() else ():
            if graph.is_op(user, "Shape"):
                user.replace_input_with(index, node.outputs[0])
                changed = True
    return changed


def _refuse_floats(model: ir.Model) -> None:
    """Only the first QuantizeLinear and the last DequantizeLinear may touch floats.

    Raises:
        UnsupportedError: names the first few operators that compute in float, and why they do.
    """
    found = [node for node in model.graph if _computes_floats(node)]
    if not found:
        return
    causes = [node for node in found if qdq.why_float(node) is not None] or _beside_conversions(found) or found
    named = "; ".join(f"{graph.describe(node)}: {_reason(node)}" for node in causes[:NAMED])
    more = f"; and {len(causes) - NAMED} more" if len(causes) > NAMED else ""
    count = "1 operator stays" if len(causes) == 1 else f"{len(causes)} operators stay"
    hint = "leave them in float with --allow-float, or cut the model before them"
    raise UnsupportedError(f"{count} in float: {named}{more}", hint=hint)


def _beside_conversions(found: list[ir.Node]) -> list[ir.Node]:
    """The operators among these nodes, and those that conversions among them read floats of or give floats to."""
    named: dict[ir.Node, None] = {}
    for node in found:
        around = [node] if not graph.is_op(node, *_ENDS) else _float_side(node)
        named.update((n, None) for n in around if not graph.is_op(n, *_ENDS))
    return list(named)


def _float_side(node: ir.Node) -> list[ir.Node]:
    if graph.is_op(node, "DequantizeLinear"):
        return [user for user, _ in node.outputs[0].uses()]
    maker = None if node.inputs[0] is None else node.inputs[0].producer()
    return [] if maker is None else [maker]


def _computes_floats(node: ir.Node) -> bool:
    if graph.is_op(node, "QuantizeLinear"):
        source = node.inputs[0]
        return source is None or not source.is_graph_input()
    if graph.is_op(node, "DequantizeLinear"):
        return not node.outputs[0].is_graph_output()
    return any(v.dtype is None or v.dtype.is_floating_point() for v in node.outputs if v.uses() or v.is_graph_output())


def _reason(node: ir.Node) -> str:
    return qdq.why_float(node) or "what it reads or gives is not quantized"


def _import_domains(model: ir.Model) -> None:
    used = {node.domain for node in model.graph}
    if MICROSOFT in used:
        model.graph.opset_imports[MICROSOFT] = 1
    if called := bodies.called(model):
        bodies.attach(model, called, fast=True)
