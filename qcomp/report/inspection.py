"""What a model holds, and what compiling it would quantize."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir

from qcomp import files, operators, pipeline, qdq, runtime, shapes, upgrade
from qcomp.calibration.data import InputSpec
from qcomp.report import summary
from qcomp.report.summary import FloatOperator

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
        macs: multiply-accumulates of one sample, dynamic dimensions counted as 1.
        quantized: whether it is a quantized model already.
        in_integers: types and names of the operators that run in integers: those that would, of a float model after
            the rewrites of the compiler; those that do, of a quantized one.
        in_float: the operators of a float model that would stay in float, and why.
    """

    opset: int
    inputs: list[InputSpec]
    outputs: list[InputSpec]
    operators: dict[str, int]
    parameters: int
    weight_bytes: int
    macs: int
    quantized: bool
    in_integers: list[tuple[str, str]]
    in_float: list[FloatOperator] = field(default_factory=list)


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Look at a model file.

    Raises:
        ModelError: as `qcomp.files.load`, but for a model that is quantized already.
    """
    model = files.read(path)
    opset, counts = upgrade.opset(model), Counter(node.op_type for node in model.graph.all_nodes())
    quantized = any(files.is_quantized(node) for node in model.graph.all_nodes())
    if quantized:
        shapes.infer_shapes(model)
    else:
        model = files.load(path)
    with runtime.blaming(model):
        return _inspection(model, opset, counts, quantized=quantized)


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
        sum(operators.macs(node) for node in model.graph),
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
    return [(node.op_type, str(node.name)) for node in chosen], summary.in_float(work)


def _of_quantized(model: ir.Model) -> tuple[list[tuple[str, str]], list[FloatOperator]]:
    """The operators of a quantized model that run in integers."""
    helpers = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
    found = [
        node
        for node in model.graph.all_nodes()
        if summary.is_quantized(node) or (files.is_quantized(node) and node.op_type not in helpers)
    ]
    return [(node.op_type, str(node.name)) for node in found], []
