"""Functions of one uint8 activation as tables of 256 entries: ``y = table[x]``.

    table[q] = clamp(round_half_even(f(x_scale * (q - x_zero_point)) / y_scale) + y_zero_point, 0, 255)

f is the ONNX operator itself, run by onnx's reference implementation in float64 on the 256 values that x can have: no
formula is written here. (It holds Gelu, Erf and HardSwish to 1e-7: constants in their definitions are float32.)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from qcomp import graph, upgrade
from qcomp.errors import UnsupportedError
from qcomp.graph import Array

LEVELS = 256
UNARY = frozenset(
    {"Abs", "Ceil", "Clip", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Relu", "Round", "Sign", "Sqrt"}
    | {"Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Selu", "Shrink", "Sigmoid"}
    | {"Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"}
    | {"Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan"}
)
"""Operators of one activation, and numbers (the bounds of Clip)."""
WITH_NUMBER = frozenset({"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"})
"""Operators of two activations: of one, where the other is a number or the same."""


ORIGIN = "qcomp.table"
"""The key of a Table node's metadata with the operator that it stands for."""


@dataclass(frozen=True)
class Origin:
    """The operator that a table stands for, as noted in the metadata of its node.

    Args:
        kind: the operator's type.
        alpha: its attribute of that name; 0.01 where it has none.
        x_scale, x_zero_point, y_scale, y_zero_point: of its input and output.
    """

    kind: str
    alpha: float
    x_scale: float
    x_zero_point: int
    y_scale: float
    y_zero_point: int

    def write(self, table: ir.Node) -> None:
        """Note it in the node of the table."""
        table.metadata_props[ORIGIN] = json.dumps(dataclasses.astuple(self))

    @classmethod
    def read(cls, table: ir.Node) -> Origin | None:
        """What is noted; None where there is no note that makes sense."""
        try:
            kind, alpha, x_scale, x_zero, y_scale, y_zero = json.loads(table.metadata_props.get(ORIGIN, ""))
            found = cls(str(kind), float(alpha), float(x_scale), int(x_zero), float(y_scale), int(y_zero))
        except (ValueError, TypeError):
            return None
        in_range = all(0 <= z < LEVELS for z in (found.x_zero_point, found.y_zero_point))
        return found if in_range and 0 < found.x_scale < np.inf and 0 < found.y_scale < np.inf else None


def argument(node: ir.Node) -> ir.Value | None:
    """The activation that the operator is a function of; None where it is no function of one activation.

    Every other input must be a constant of one element, which leaves the shape as it is.
    """
    if not graph.is_op(node, *UNARY, *WITH_NUMBER):
        return None
    inputs = [value for value in node.inputs if value is not None]
    found = {id(value): value for value in inputs if graph.constant_tensor(value) is None}
    tensors = [tensor for value in inputs if (tensor := graph.constant_tensor(value)) is not None]
    only = next(iter(found.values()), None)
    rank = graph.rank(only) or 0
    if len(found) != 1 or any(tensor.size != 1 or len(tensor.shape) > rank for tensor in tensors):
        return None
    return only


def table_of(
    function: Callable[[Array], Array],
    x_scale: float,
    x_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    *,
    where: str = "",
) -> Array:
    """The table of a function.

    Args:
        function: takes and gives float64 ``(256,)``; infinities saturate.
        x_scale, x_zero_point: of the input.
        y_scale, y_zero_point: of the output.
        where: the operator, for the error.

    Returns:
        uint8 ``(256,)``.

    Raises:
        UnsupportedError: the function is undefined for a value that x can have.
    """
    real = float(x_scale) * (np.arange(LEVELS, dtype=np.float64) - x_zero_point)
    with np.errstate(all="ignore"):
        result = function(real) / float(y_scale)
    if np.isnan(result).any():
        first = real[np.isnan(result)][0]
        hint = "it may follow an operator that bounds its input; keep it in float otherwise"
        raise UnsupportedError(f"it is undefined at {first:g}, which its input can be", where=where, hint=hint)
    table: Array = np.clip(np.rint(result) + y_zero_point, 0, LEVELS - 1).astype(np.uint8)
    return table


def of_node(node: ir.Node, x_scale: float, x_zero_point: int, y_scale: float, y_zero_point: int) -> Array:
    """The table of an operator with its attributes and numbers.

    Args:
        node: one that has an `argument`.
        x_scale, x_zero_point: of the input.
        y_scale, y_zero_point: of the output.

    Returns:
        uint8 ``(256,)``.

    Raises:
        UnsupportedError: it is no function of one activation, or undefined for a value that x can have.
    """
    where = graph.describe(node)
    if argument(node) is None:
        raise UnsupportedError("it is no function of one activation", where=where, hint="keep it in float")
    return table_of(evaluator(node), x_scale, x_zero_point, y_scale, y_zero_point, where=where)


def evaluator(node: ir.Node) -> Callable[[Array], Array]:
    """The operator as a function of its `argument`, float64 ``(n,)`` to float64 ``(n,)``."""
    proto, name = ir.to_proto(node), next(str(v.name) for v in [argument(node)] if v is not None)
    numbers = {str(v.name): c for v in node.inputs if v is not None and (c := graph.scalar(v)) is not None}
    body = onnx.helper.make_graph(
        [proto],
        "table",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, ["n"])],
        [onnx.helper.make_tensor_value_info(proto.output[0], onnx.TensorProto.DOUBLE, ["n"])],
        [numpy_helper.from_array(np.asarray(number, np.float64), key) for key, number in numbers.items()],
    )
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", _opset(node))])
    run: Callable[..., Any] = ReferenceEvaluator(model).run
    return lambda x: np.asarray(run(None, {name: x})[0], np.float64)


def _opset(node: ir.Node) -> int:
    return upgrade.OPSET if node.graph is None else node.graph.opset_imports.get("", upgrade.OPSET)
