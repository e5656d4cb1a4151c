"""What a compilation did: what was quantized, what stayed in float and why, sizes and the outputs' error."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from qcomp import files, graph, guard, operators, qdq
from qcomp.pipeline import Pass


@dataclass(frozen=True)
class FloatOperator:
    """An operator that stayed in float.

    Args:
        kind: the operator's type.
        name: its name.
        reason: why it stayed in float.
    """

    kind: str
    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The summary of a compilation; `to_json` gives all of it.

    Args:
        quantized: how many operators of each type run in integers.
        in_float: those that stayed in float.
        bytes_before, bytes_after: size of the weights.
        macs_quantized: the share of the multiply-accumulates that run in integers, 0 to 1.
        samples: how many samples were calibrated with.
        passes: the line of passes that ran.
        error: the outputs' error.
        notes: what else the user should know.
        seconds: how long the compilation took.
        files: what was written.
    """

    quantized: dict[str, int]
    in_float: list[FloatOperator]
    bytes_before: int
    bytes_after: int
    macs_quantized: float
    samples: int
    passes: str
    error: guard.Error
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    files: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """All fields as JSON; an infinite SQNR is null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=2)


def describe(
    model: ir.Model,
    quantized: ir.Model,
    error: guard.Error,
    *,
    samples: int,
    line: Sequence[Pass],
) -> Report:
    """The report of a quantized model, read off its graph."""
    counts, macs = Counter[str](), Counter[bool]()
    for node in quantized.graph:
        if is_quantized(node):
            counts[node.op_type] += 1
        macs[is_quantized(node)] += operators.macs(node)
    return Report(
        dict(counts.most_common()),
        in_float(quantized),
        files.weight_bytes(model),
        files.weight_bytes(quantized),
        macs[True] / max(macs[True] + macs[False], 1),
        samples,
        ",".join(map(str, line)),
        error,
        list(_idle_patterns(model, quantized, line)),
    )


def is_quantized(node: ir.Node) -> bool:
    """Whether an operator of a Q/DQ graph reads dequantized values: integer kernels take its place."""
    if graph.is_op(node, "QuantizeLinear", "DequantizeLinear") or qdq.why_float(node) is not None:
        return False
    if graph.is_op(node, "Clip", "Pad") and node.inputs[0] is not None and node.inputs[0].dtype != ir.DataType.FLOAT:
        return True
    return operators.find(node) is not None and any(qdq.read(v) is not None for v in node.inputs)


def macs(model: ir.Model) -> int:
    """Multiply-accumulates of one sample in the linear operators of a float or Q/DQ graph."""
    return sum(operators.macs(node) for node in model.graph)


def left_in_float(report: Report, model: ir.Model, total: int) -> Report:
    """The report when a backend has left more operators in float than the Q/DQ graph did.

    Args:
        report: of the Q/DQ graph.
        model: what the backend's passes made of it.
        total: the multiply-accumulates of the Q/DQ graph.
    """
    known = {(operator.kind, operator.name) for operator in report.in_float}
    new = [node for node in model.graph if qdq.why_float(node) and (node.op_type, str(node.name)) not in known]
    counts = Counter(report.quantized) - Counter(node.op_type for node in new)
    share = report.macs_quantized - sum(operators.macs(node) for node in new) / max(total, 1)
    return dataclasses.replace(
        report, quantized=dict(counts.most_common()), in_float=in_float(model), macs_quantized=max(share, 0.0)
    )


def in_float(quantized: ir.Model) -> list[FloatOperator]:
    """The operators that stayed in float, with the noted reason."""
    found = [(n, reason) for n in quantized.graph if (reason := qdq.why_float(n)) is not None]
    return [FloatOperator(node.op_type, str(node.name), reason) for node, reason in found]


def _idle_patterns(model: ir.Model, quantized: ir.Model, line: Sequence[Pass]) -> list[str]:
    """A note on every pattern of operators to keep in float that keeps none."""
    kept = [node for node in quantized.graph if qdq.why_float(node) is not None]
    notes = []
    for pattern in dict.fromkeys(p for step in line for p in getattr(step, "keep", ())):
        if any(operators.matching(node, [pattern]) for node in kept):
            continue
        found = next((node for node in model.graph if operators.matching(node, [pattern])), None)
        why = "matches no operator" if found is None else f"keeps nothing: {graph.describe(found)} is part of another"
        notes.append(f"--keep {pattern!r} {why}; `qcomp inspect -v` lists all names")
    return notes


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
