"""Whether a model computes in integers alone between its QuantizeLinear and its DequantizeLinear, proved from types.

Types are inferred anew, from the graph inputs and constants on; what a file says of its values is not taken for true.
Functions are inlined, so that every value of their bodies is looked at. An operator whose result onnx cannot infer,
as those of ``com.microsoft`` and those inside If, Loop and Scan, proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common

from qcomp import graph, shapes
from qcomp.errors import ModelError, first_line


def first_float(model: ir.Model) -> ir.Value | None:
    """The first value that is a float tensor, or that is not proved to be none; None where all are integers.

    Floats that may be there: graph inputs read by QuantizeLinear alone, graph outputs made by DequantizeLinear and
    read by nothing, and the scales of these operators. (Scales of others between them count with what they scale.)

    Args:
        model: stays as it is; the value is one of an inlined copy, and its producer the operator that makes it.

    Raises:
        ModelError: its types contradict each other, or its functions cannot be inlined.
    """
    flat = inlined(model)
    _forget_types(flat.graph)
    shapes.infer_shapes(flat)
    ends = _ends(flat.graph)
    return next((v for v in _in_order(flat.graph) if id(v) not in ends and not _is_proved(v)), None)


def why_not(model: ir.Model) -> str | None:
    """What keeps the model from being integer-only, as part of a sentence; None where it is.

    Raises:
        ModelError: as `first_float`.
    """
    value = first_float(model)
    if value is None:
        return None
    kernel = next((user for user, _ in value.uses() if _has_float_scales(user)), None)
    if kernel is not None and graph.constant_tensor(value) is not None:
        return f"operators of ONNX Runtime with float scales ({graph.describe(kernel)})"
    node = value.producer() or next((user for user, _ in value.uses()), None)
    place = "" if node is None else f" ({graph.describe(node)})"
    if value.dtype is None:
        return f"the type of {value.name!r} is not known{place}"
    return f"the first float tensor is {value.name!r}{place}"


def _has_float_scales(node: ir.Node) -> bool:
    return node.op_type.startswith(("QLinear", "QGemm"))


def inlined(model: ir.Model) -> ir.Model:
    """A copy without functions.

    Raises:
        ModelError: its functions cannot be inlined.
    """
    copy = model.clone()
    try:
        common.InlinePass()(copy)
    except Exception as error:
        raise ModelError(f"its functions cannot be inlined: {first_line(error)}", hint="check it with onnx") from error
    return copy


def _forget_types(target: ir.Graph) -> None:
    for node in ir.traversal.RecursiveGraphIterator(target):
        for value in node.outputs:
            value.type = value.shape = None


def _is_proved(value: ir.Value) -> bool:
    """Whether the type of a value is known, and is not one of floats."""
    return value.dtype is not None and not value.dtype.is_floating_point() and "COMPLEX" not in value.dtype.name


def _in_order(target: ir.Graph) -> Iterator[ir.Value]:
    """Every value, as it is met by somebody who reads the operators in order; what nothing reads comes last."""
    for node in ir.traversal.RecursiveGraphIterator(target):
        yield from (value for value in (*node.inputs, *node.outputs) if value is not None and value.name)
    yield from graph.all_values(target)


def _ends(target: ir.Graph) -> set[int]:
    """The float values that may be there, by identity."""
    first = [v for v in target.inputs if _only_quantized(v)]
    last = [v for v in target.outputs if graph.is_op(v.producer(), "DequantizeLinear") and not v.uses()]
    scales = [node.inputs[1] for node in ir.traversal.RecursiveGraphIterator(target) if _converts(node)]
    return {id(v) for v in (*first, *last, *(v for v in scales if v is not None and _is_scale(v)))}


def _only_quantized(value: ir.Value) -> bool:
    """Whether a graph input is read, and by nothing but QuantizeLinear."""
    uses = tuple(value.uses())
    by = all(graph.is_op(user, "QuantizeLinear") and not index for user, index in uses)
    return bool(uses) and by and not value.is_graph_output()


def _converts(node: ir.Node) -> bool:
    """Whether it takes floats to integers or back: then it is the other tensor that may have no place there."""
    if graph.is_op(node, "QuantizeLinear"):  # takes int32 too
        return node.inputs[0] is not None and not _is_proved(node.inputs[0])
    return graph.is_op(node, "DequantizeLinear")


def _is_scale(value: ir.Value) -> bool:
    """Whether a value is a constant that serves as the scale of these operators, and as nothing else."""
    constant = graph.constant_tensor(value) is not None
    return constant and all(_converts(user) and index == 1 for user, index in value.uses())
