"""What an operator costs in float and in integers, in nanoseconds: the numbers behind the choice of precision.

Measured with ``benchmarks/operator_costs.py`` in ONNX Runtime on one x86 core with AVX512-VNNI; only ratios matter.
Dynamic dimensions count as 1 for the batch and as `DYNAMIC_LENGTH` elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qcomp import graph, operators
from qcomp.operators import Role

NODE = 300.0
"""Fixed cost of running one operator."""
CONVERT = 0.06
"""QuantizeLinear or DequantizeLinear, per element."""
DYNAMIC_LENGTH = 64


@dataclass(frozen=True)
class Cost:
    """Nanoseconds in float32 and in integers."""

    real: float
    integer: float


_MAC = Cost(0.0175, 0.0048)
_MAC_DEPTHWISE = Cost(0.09, 0.025)
_MAC_TWO_ACTIVATIONS = Cost(0.02, 0.05)
_PER_ELEMENT = {
    "Add": Cost(0.14, 0.14),
    "Mul": Cost(0.14, 0.22),
    "Sigmoid": Cost(0.28, 0.23),
    "LeakyRelu": Cost(0.15, 0.24),
    "Softmax": Cost(0.42, 2.36),
    "Relu": Cost(0.075, 0.0),
    "Clip": Cost(0.075, 0.0),
}
_MOVE = Cost(0.1, 0.03)
_NO_KERNEL = frozenset({"ConvTranspose"})


def elements(value: ir.Value | None) -> int:
    """The number of elements, with stand-ins for dynamic dimensions."""
    shape = graph.static_shape(value)
    if shape is None:
        return DYNAMIC_LENGTH
    count = 1
    for axis, size in enumerate(shape):
        count *= size if size is not None else (1 if axis == 0 else DYNAMIC_LENGTH)
    return count


def has_kernel(node: ir.Node) -> bool:
    """Whether ONNX Runtime has an integer kernel for an operator that has an integer form."""
    return node.op_type not in _NO_KERNEL


def convert(value: ir.Value) -> float:
    """A QuantizeLinear or DequantizeLinear of that value."""
    return NODE + CONVERT * elements(value)


def of(node: ir.Node) -> Cost:
    """The cost of an operator with an integer form."""
    row = operators.find(node)
    if row is not None and row.role is Role.LINEAR:
        count, rate = _macs(node), _mac_rate(node)
    else:
        count = max(elements(v) for v in (*node.outputs, *node.inputs[:1]))
        rate = _PER_ELEMENT.get(node.op_type, _MOVE)
    return Cost(NODE + count * rate.real, NODE + count * rate.integer)


def _macs(node: ir.Node) -> int:
    dynamic = [d for d in (graph.static_shape(node.outputs[0]) or ())[1:] if d is None]
    return int(operators.macs(node) * DYNAMIC_LENGTH ** len(dynamic))


def _mac_rate(node: ir.Node) -> Cost:
    if operators.weight_of(node) is None:
        return _MAC_TWO_ACTIVATIONS
    group = graph.attribute(node, "group", 1)
    weight = graph.static_shape(node.inputs[1])
    return _MAC_DEPTHWISE if group > 1 and weight is not None and weight[1] == 1 else _MAC
