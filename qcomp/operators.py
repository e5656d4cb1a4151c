"""What qcomp knows of ONNX operators: which have an integer form, of what kind, and the ranges mathematics fixes."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir

from qcomp import graph

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
NOTED_MACS = "qcomp.macs"
"""The key of a node's metadata with the multiply-accumulates of what it stands for, where its own add zeros to them."""


class Role(Enum):
    """How an operator takes part in quantization."""

    LINEAR = "weights per channel, an int32 accumulator, requantized"
    ARITHMETIC = "activations in, one activation out, each with a scale of its own"
    UNARY = "a function of one activation, element by element: a table of its integers"
    SAME_SCALE = "moves or compares integers: input and output share one scale"
    ON_INTEGERS = "as SAME_SCALE, and stands on the integers themselves in the Q/DQ graph"
    CONCAT = "moves integers of several inputs into one output"
    CLAMP = "Relu or Clip: absorbed by the quantized range of what it follows"


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    Args:
        role: how it takes part.
        inputs: which inputs are float activations; None for all.
        float_output: whether a fused kernel can leave its output in float.
    """

    role: Role
    inputs: tuple[int, ...] | None = (0,)
    float_output: bool = False


_SAME = Operator(Role.SAME_SCALE)
_UNARY = Operator(Role.UNARY)
_PAIR = Operator(Role.ARITHMETIC, inputs=(0, 1))

TABLE: dict[str, Operator] = {
    "Conv": Operator(Role.LINEAR),
    "Gemm": Operator(Role.LINEAR, float_output=True),
    "MatMul": Operator(Role.LINEAR, inputs=(0, 1), float_output=True),
    "ConvTranspose": Operator(Role.LINEAR),
    "Add": _PAIR,
    "Mul": _PAIR,
    "AveragePool": Operator(Role.ARITHMETIC),
    "GlobalAveragePool": Operator(Role.ARITHMETIC),
    "ReduceMean": Operator(Role.ARITHMETIC),
    "Softmax": Operator(Role.ARITHMETIC),
    "LayerNormalization": Operator(Role.ARITHMETIC),
    "Concat": Operator(Role.CONCAT, inputs=None),
    "Relu": Operator(Role.CLAMP),
    "Clip": Operator(Role.CLAMP),
    "Pad": Operator(Role.ON_INTEGERS),
    **dict.fromkeys(
        ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Resize"), _SAME
    ),
    **dict.fromkeys(("Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Identity", "GlobalMaxPool"), _SAME),
    **dict.fromkeys(("Gather", "ArgMax", "ArgMin"), _SAME),
    **dict.fromkeys(
        ("Sigmoid", "HardSigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Neg", "Abs"), _UNARY
    ),
    **dict.fromkeys(("LeakyRelu", "PRelu", "Elu", "Celu", "Selu", "Softplus", "Softsign", "Mish", "Swish"), _UNARY),
    **dict.fromkeys(("HardSwish", "Gelu", "Sin", "Cos", "Floor", "Ceil", "Round"), _UNARY),
}
"""The operators with an integer form."""

WITH_SCALAR: dict[str, Operator] = {
    "Sub": Operator(Role.UNARY, inputs=(0, 1)),
    "Div": Operator(Role.UNARY, inputs=(0, 1)),
    "Pow": Operator(Role.UNARY, inputs=(0, 1)),
}
"""Those that have one where one of their two operands is a constant of one element."""

GIVES_INDICES = frozenset({"ArgMax", "ArgMin"})
"""What gives positions: the same ones for integers as for the values they stand for."""

FIXED_RANGES: dict[str, tuple[float, float]] = {
    "Softmax": (0.0, 1.0),
    "Sigmoid": (0.0, 255 / 256),
    "HardSigmoid": (0.0, 255 / 256),
    "Tanh": (-1.0, 1.0),
    "Erf": (-1.0, 1.0),
    "Sin": (-1.0, 1.0),
    "Cos": (-1.0, 1.0),
    "Softsign": (-1.0, 1.0),
}
"""Output ranges that mathematics fixes, whatever the data. A sigmoid has steps of 1/256, so that 1/2 is an integer."""

LEAST_OUTPUT: dict[str, float] = {"HardSwish": -0.375, "Gelu": -0.17004, "Swish": -0.27847, "Elu": -1.0}
"""The least output of unary operators at their default alpha; the greatest is that of the data."""


def least_output(node: ir.Node | None) -> float | None:
    """The least value that mathematics allows the operator to give; None where it is not known."""
    return None if node is None or graph.attribute(node, "alpha", 1.0) != 1.0 else LEAST_OUTPUT.get(node.op_type)


def find(node: ir.Node) -> Operator | None:
    """The row of a node; None where it has no integer form."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in WITH_SCALAR:
        return WITH_SCALAR[node.op_type] if any(graph.scalar(v) is not None for v in node.inputs) else None
    return TABLE.get(node.op_type)


def role(node: ir.Node | None) -> Role | None:
    """How a node takes part in quantization; None where it has no integer form."""
    row = None if node is None else find(node)
    return None if row is None else row.role


def computes(node: ir.Node | None) -> bool:
    """Whether a node gives new values, with a scale of their own, rather than moves or bounds those it reads."""
    return role(node) in (Role.LINEAR, Role.ARITHMETIC, Role.UNARY)


def matching(node: ir.Node, patterns: Sequence[str]) -> str | None:
    """The first of the patterns that matches the operator's name or type or one of its outputs, or None."""
    names = (str(node.name), node.op_type, *(str(v.name) for v in node.outputs))
    return next((p for p in patterns if p in names or any(fnmatch.fnmatchcase(n, p) for n in names)), None)


def handles_floats(node: ir.Node) -> bool:
    """Whether all activations that an operator of the table reads, and all it computes, are float32 tensors."""
    made = [] if node.op_type in GIVES_INDICES else node.outputs
    return all(graph.is_float(v) for v in (*(v for _, v in activations(node)), *made))


def activations(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """The float inputs that carry activations (not weights, biases, shapes), with their positions."""
    row = find(node)
    if row is None:
        return []
    indices = range(len(node.inputs)) if row.inputs is None else row.inputs
    found = [(i, v) for i in indices if i < len(node.inputs) and (v := node.inputs[i]) is not None]
    if row.role is Role.UNARY:
        return [(i, v) for i, v in found if graph.constant_tensor(v) is None]
    return [(i, v) for i, v in found if not is_weight(node, i)]


def is_weight(node: ir.Node, index: int) -> bool:
    """Whether that input is the constant weight of a linear operator."""
    return index == 1 and role(node) is Role.LINEAR and graph.constant_tensor(node.inputs[1]) is not None


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight of a linear operator, or None."""
    return node.inputs[1] if len(node.inputs) > 1 and is_weight(node, 1) else None


def weight_axis(node: ir.Node, shape: tuple[int, ...]) -> int | None:
    """The output-channel axis of a linear operator's weight; None where channels cannot have scales of their own."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if graph.attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if graph.attribute(node, "transB", 0) else 1
    return 1 if len(shape) == 2 else None


def bias_of(node: ir.Node) -> ir.Value | None:
    """The bias of a Conv, ConvTranspose or Gemm, or None."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2:
        return node.inputs[2]
    return None


def clamp_bounds(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a Relu or Clip; None where they are not constant."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = [-np.inf, np.inf]
    for i in (1, 2):
        value = node.inputs[i] if i < len(node.inputs) else None
        if value is not None:
            number = graph.scalar(value)
            if number is None:
                return None
            bounds[i - 1] = number
    return float(bounds[0]), float(bounds[1])


def macs(node: ir.Node) -> int:
    """Multiply-accumulates of one sample (dynamic dimensions count as 1); 0 for what is not linear."""
    out = graph.static_shape(node.outputs[0])
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or out is None:
        return 0
    positions = int(np.prod([d or 1 for d in out], dtype=np.int64))
    weight = graph.static_shape(node.inputs[1])
    if weight is None:
        return 0
    if node.op_type == "Conv":
        return positions * int(np.prod([d or 1 for d in weight[1:]]))
    if node.op_type == "ConvTranspose":
        source = graph.static_shape(node.inputs[0]) or ()
        return int(np.prod([d or 1 for d in source])) * int(np.prod([d or 1 for d in weight[1:]]))
    transposed = node.op_type == "Gemm" and graph.attribute(node, "transB", 0)
    inner = weight[-1] if transposed or len(weight) == 1 else weight[-2]
    return positions * (inner or 1)


def averaged(node: ir.Node) -> int | None:
    """How many elements a GlobalAveragePool or ReduceMean averages; None where that is not static."""
    shape = graph.static_shape(node.inputs[0])
    if shape is None:
        return None
    axes: Sequence[int] = range(2, len(shape))
    if node.op_type == "ReduceMean":
        given = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        nothing = bool(graph.attribute(node, "noop_with_empty_axes", 0))
        axes = [int(a) for a in given] if given is not None and given.size else [] if nothing else range(len(shape))
    sizes = [shape[axis] for axis in axes]
    return None if None in sizes else int(np.prod([d for d in sizes if d is not None], dtype=np.int64))
