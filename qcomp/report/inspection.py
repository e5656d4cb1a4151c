"""What a model holds, and what compiling it would quantize."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qcomp import exactness, files, graph, integer_only, operators, outer, pipeline, qdq, runtime, shapes, upgrade
from qcomp.calibration.data import InputSpec
from qcomp.outer import Grid
from qcomp.report import summary
from qcomp.report.summary import FloatOperator

_ACTIVATIONS = (ir.DataType.UINT8, ir.DataType.INT8)
_CONVERT = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_MOST_DIGITS = 20
_COUNTED = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING})


@dataclass(frozen=True)
class Inspection:
    """What `inspect` finds.

    Args:
        opset: the version of the default domain, of the file.
        inputs, outputs: names, dtypes and shapes.
        operators: how many of each type the file has.
        parameters: elements of its constants, those of shapes and indices left out.
        weight_bytes: the size of all constants.
        macs: multiply-accumulates of one sample, dynamic dimensions counted as 1; None where a shape is not known.
        quantized: whether it is a quantized model already.
        in_integers: types and names of the operators that run in integers: those that would, of a float model after
            the rewrites of the compiler; those that do, of a quantized one.
        in_float: the operators of a float model that would stay in float, and why.
        grids: how the integers behind the inputs and outputs of a quantized model stand for real numbers, by name.
        not_integer_only: what keeps a quantized model from computing in integers alone; None where it does.
        exact: the machines on which the products of a quantized model are exact, as `qcomp.exactness` names them,
            proved from its weights.
        recorded: those that the file says; None where it says nothing.
    """

    opset: int
    inputs: list[InputSpec]
    outputs: list[InputSpec]
    operators: dict[str, int]
    parameters: int
    weight_bytes: int
    macs: int | None
    quantized: bool
    in_integers: list[tuple[str, str]]
    in_float: list[FloatOperator] = field(default_factory=list)
    grids: dict[str, Grid] = field(default_factory=dict)
    not_integer_only: str | None = None
    exact: str = exactness.EVERYWHERE
    recorded: str | None = None


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Look at a model file.

    Raises:
        ModelError: as `qcomp.files.load`, but for a model that is quantized already.
    """
    model = files.read(path)
    opset, counts = upgrade.opset(model), Counter(node.op_type for node in model.graph.all_nodes())
    quantized = files.is_quantized_model(model)
    if quantized:
        shapes.infer_shapes(model)
    else:
        model = files.load(path)
    with runtime.blaming(model):
        found = _inspection(model, opset, counts, quantized=quantized)
        return _with_integers(found, model) if quantized else found


def _with_integers(found: Inspection, model: ir.Model) -> Inspection:
    """What only a quantized model has."""
    why = integer_only.why_not(model)
    ours = found.in_integers if why else [_listed(node) for node in model.graph if node.op_type not in _CONVERT]
    exact, recorded = exactness.needed(model), exactness.read(model)
    grids = outer.grids(model)
    return replace(found, in_integers=ours, grids=grids, not_integer_only=why, exact=exact, recorded=recorded)


def _listed(node: ir.Node) -> tuple[str, str]:
    return node.op_type, str(node.name)


def _inspection(model: ir.Model, opset: int, counts: Counter[str], *, quantized: bool) -> Inspection:
    in_integers, in_float = _of_quantized(model) if quantized else foresee(model)
    constants = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return Inspection(
        opset,
        runtime.input_specs(model),
        [runtime.spec_of(value) for value in model.graph.outputs],
        dict(counts.most_common()),
        sum(tensor.size for tensor in constants if tensor.dtype not in _COUNTED),
        files.weight_bytes(model),
        _macs(model),
        quantized,
        in_integers,
        in_float,
    )


def foresee(model: ir.Model) -> tuple[list[tuple[str, str]], list[FloatOperator]]:
    """What the compiler would quantize of a loaded float model, and what would stay in float, without data."""
    work = model.clone()
    line = pipeline.parse(pipeline.preset(1))
    last = next(i for i, step in enumerate(line) if step.name() == "choose-precision")
    pipeline.run(work, line[: last + 1])
    chosen = [
        node
        for node in work.graph
        if operators.find(node) is not None and qdq.why_float(node) is None and operators.handles_floats(node)
    ]
    return [_listed(node) for node in chosen], summary.in_float(work)


def _of_quantized(model: ir.Model) -> tuple[list[tuple[str, str]], list[FloatOperator]]:
    """The operators of a quantized model that run in integers."""
    found = [node for node in model.graph.all_nodes() if summary.is_quantized(node) or _is_on_integers(node)]
    return [_listed(node) for node in found], []


def _is_on_integers(node: ir.Node) -> bool:
    """Whether it computes with integers, or gives or moves activations of 8 bits, rather than converts them."""
    if node.op_type in _CONVERT:
        return False
    source = node.inputs[0] if node.inputs else None
    moves = source is not None and source.dtype in _ACTIVATIONS and graph.constant_tensor(source) is None
    return files.is_quantized(node) or moves


def _macs(model: ir.Model) -> int | None:
    """Multiply-accumulates of one sample, those of operators of integers too; None where a shape is not known."""
    found = [_integer_macs(n) if n.op_type in exactness.PRODUCTS else operators.macs(n) for n in model.graph]
    return None if None in found else sum(count for count in found if count is not None)


def _integer_macs(node: ir.Node) -> int | None:
    """Those of QLinearConv, MatMulInteger and the like."""
    operands = exactness.PRODUCTS[node.op_type]
    weights = graph.static_shape(node.inputs[max(operands.first, operands.second)])
    made = graph.static_shape(node.outputs[0])
    if weights is None or made is None:
        return None
    inner = weights[1:] if "Conv" in node.op_type else weights[-2:-1] if len(weights) > 1 else weights
    if node.op_type == "QGemm" and graph.attribute(node, "transB", 0):
        inner = weights[1:]
    own = math.prod(size or 1 for size in (*made, *inner))
    noted = node.metadata_props.get(operators.NOTED_MACS, "")
    return min(int(noted), own) if noted.isdecimal() and len(noted) < _MOST_DIGITS else own
