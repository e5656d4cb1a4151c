"""Expand the integer graph into standard ONNX operators, without a float between first and last.

The integer graph (of the pass dyadic-rescale) says ``QLinearConv``, ``QGemm``, ``QLinearAdd`` with dyadic numbers for
scales, which are floats in the file and in ONNX Runtime. Here the same integers come from MatMulInteger, Mul, Add,
shifts and clamps alone: any runtime of ONNX's operator set 21 computes them, and nothing rounds but a shift.

What makes it fast in ONNX Runtime, as measured there: values stay channels-last between convolutions
(`qcomp.expansion.forms`), convolutions are single products of matrices (`qcomp.expansion.convolution`,
`qcomp.expansion.depthwise`), and a requantization is six narrow operators (`qcomp.expansion.requantize`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcomp import graph
from qcomp import shapes as all_shapes
from qcomp.calibration.observers import Statistics
from qcomp.expansion import convolution, elementwise, matmul, moves, pooling, reading, shapes
from qcomp.expansion.site import Context
from qcomp.integer import functions
from qcomp.operators import MICROSOFT
from qcomp.pipeline import Pass

_EXPANDED: dict[tuple[str, str], Callable[[Context, ir.Node], None]] = {
    ("", "QLinearConv"): convolution.conv,
    ("", "QLinearMatMul"): matmul.matmul,
    (MICROSOFT, "QGemm"): matmul.gemm,
    (MICROSOFT, "QLinearAdd"): elementwise.add,
    (MICROSOFT, "QLinearMul"): elementwise.multiply,
    (MICROSOFT, "QLinearConcat"): moves.rescaling_concat,
    (MICROSOFT, "QLinearGlobalAveragePool"): pooling.global_average,
}
"""The operators of which none is left."""
_FOLLOWING: dict[str, Callable[[Context, ir.Node], bool]] = {
    "MaxPool": pooling.max_pool,
    "Concat": moves.concat,
    "Clip": moves.unary,
    "Identity": moves.unary,
    "Pad": moves.pad,
    "Transpose": moves.transpose,
}
"""Standard operators on uint8 that change with the order of what they read, or for speed."""


@dataclass(frozen=True)
class ExpandInteger(Pass):
    """Replace QLinearConv and its like by standard operators on integers, bit for bit equal."""

    tolerance: ClassVar[float | None] = 0.0

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        changed = functions.use_plain_bodies(model)
        if not any(_is_concerned(node) for node in model.graph):
            return changed
        shapes.infer(model)
        context = Context(model.graph)
        for node in tuple(model.graph):
            if node not in context.merged:
                _visit(context, node)
                context.emitter.place(node)
        _finish(context)
        if not context.gone:
            return changed
        graph.remove(model.graph, context.gone)
        model.graph.opset_imports.pop(MICROSOFT, None)
        all_shapes.infer_shapes(model)
        return True


def _is_concerned(node: ir.Node) -> bool:
    if node.domain == MICROSOFT or (_domain(node), node.op_type) in _EXPANDED:
        return True
    return graph.is_op(node, "MaxPool") and _is_uint8(node)


def _visit(context: Context, node: ir.Node) -> None:
    """Expand a node, or let it follow the order of what it reads, or bring that into the order of the file.

    Raises:
        UnsupportedError: an operator of com.microsoft that has no expansion.
    """
    expand = _EXPANDED.get((_domain(node), node.op_type))
    if expand is not None:
        expand(context, node)
        return
    if node.domain == MICROSOFT:
        raise reading.refuse(node, "it has no form in standard integer operators", "compile to the form qlinear")
    follow = _FOLLOWING.get(node.op_type)
    if follow is not None and _domain(node) == "" and _is_uint8(node) and follow(context, node):
        return
    for value in context.forms.missing(_read(node)):
        context.forms.first(value)


def _finish(context: Context) -> None:
    """Bring graph outputs into the order of the file."""
    for value in context.forms.missing(tuple(context.emitter.graph.outputs)):
        context.forms.first(value)
    context.emitter.place(None)


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _is_uint8(node: ir.Node) -> bool:
    """Whether the node reads a uint8 activation of known rank."""
    value = node.inputs[0] if node.inputs else None
    return value is not None and value.dtype == ir.DataType.UINT8 and graph.rank(value) is not None


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What the node reads, in its subgraphs too."""
    yield from dict.fromkeys(v for v in node.inputs if v is not None)
    for sub in graph.subgraphs(node):
        for inner in ir.traversal.RecursiveGraphIterator(sub):
            yield from (v for v in inner.inputs if v is not None)
        yield from (v for v in sub.outputs if v is not None)
