"""What an operator costs in float and in integers, in nanoseconds: the numbers behind the choice of precision.

Each cost is linear in a few sizes of the operator. The coefficients were fitted by ``benchmarks/operator_costs.py`` in
ONNX Runtime 1.31 on one x86 core with AVX512-VNNI; only their ratios matter. A dynamic first axis, the batch, counts as
1, other dynamic dimensions as `DYNAMIC_LENGTH`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from qcomp import graph, operators
from qcomp.operators import Role

DYNAMIC_LENGTH = 64
FEW_CHANNELS = 4
"""Up to so many input channels of a group a convolution counts as the first layer of a network does."""


@dataclass(frozen=True)
class Line:
    """``fixed + mac * MACs + tap * taps + element * elements`` nanoseconds.

    Taps are output positions times kernel positions, what a convolution must gather; of Softmax, the rows. Elements
    are those of the output or, where the operator is not linear and it is larger, of the input.
    """

    fixed: float
    mac: float = 0.0
    tap: float = 0.0
    element: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Nanoseconds in float32 and in integers."""

    real: float
    integer: float


Pair = tuple[Line, Line]
"""In float, in integers."""

_CONV: dict[str, Pair] = {
    "dense": (Line(726, 0.0154, 1.62), Line(1387, 0.00412, 1.17)),
    "first": (Line(472, 0.0217, 0.143, 0.183), Line(1585, 0.0, 1.03, 0.795)),
    "pointwise": (Line(592, 0.0175), Line(838, 0.0047, 0.0, 0.0573)),
    "depthwise": (Line(475, 0.0325), Line(1213, 0.0385, 0.556)),
    "volume": (Line(700, 0.033), Line(1387, 0.00412, 8.0)),
}
_MATMUL: Pair = (Line(350, 0.0182), Line(966, 0.00448, 0.0, 0.235))
_MATMUL_TWO: Pair = (Line(458, 0.016), Line(739, 0.0148, 0.0, 0.131))
_OTHERS: dict[str, Pair] = {
    "Add": (Line(268, element=0.125), Line(342, element=0.137)),
    "Mul": (Line(288, element=0.146), Line(335, element=0.216)),
    "Sigmoid": (Line(211, element=0.283), Line(213, element=0.235)),
    "LeakyRelu": (Line(220, element=0.151), Line(227, element=0.234)),
    "Softmax": (Line(240, tap=13, element=0.42), Line(300, tap=1.5, element=2.1)),
    "Relu": (Line(187, element=0.107), Line(211, element=0.0268)),
    "Clip": (Line(187, element=0.107), Line(211, element=0.0268)),
    "Pad": (Line(696, element=0.445), Line(672, element=0.399)),
    "MaxPool": (Line(725, element=0.478), Line(454, element=0.215)),
    "AveragePool": (Line(752, element=0.485), Line(557, element=0.485)),
    "GlobalAveragePool": (Line(738, element=0.16), Line(354, element=0.0347)),
    "Concat": (Line(353, element=0.0978), Line(320, element=0.131)),
    "Transpose": (Line(444, element=0.218), Line(252, element=0.184)),
    "DepthToSpace": (Line(400, element=1.9), Line(400, element=1.15)),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"), (Line(200), Line(200))),
}
_MOVE: Pair = (Line(300, element=0.1), Line(300, element=0.05))
"""Slice, Split, Expand and other operators that copy: not measured, by their bytes."""
_CONVERT = Line(220, element=0.115)
_LAYOUTS = Line(537, element=0.19)
_OUT_OF_PLACE = {"MaxPool": 9.5, "AveragePool": 4.7}
_NO_KERNEL = frozenset({"ConvTranspose", "LayerNormalization", "ReduceMean", "ArgMax", "ArgMin"})
_TABLE_KERNELS = frozenset({"Sigmoid", "LeakyRelu"})
"""The unary operators with a kernel; for the others ONNX Runtime computes in float between two conversions."""


def elements(value: ir.Value | None) -> int:
    """The number of elements, with stand-ins for dynamic dimensions."""
    shape = graph.static_shape(value)
    if shape is None:
        return DYNAMIC_LENGTH
    return math.prod(_size(axis, size) for axis, size in enumerate(shape))


def _size(axis: int, size: int | None) -> int:
    return size if size is not None else 1 if axis == 0 else DYNAMIC_LENGTH


def has_kernel(node: ir.Node) -> bool:
    """Whether ONNX Runtime has an integer kernel for an operator that has an integer form."""
    if operators.role(node) is Role.UNARY:
        return node.op_type in _TABLE_KERNELS
    return node.op_type not in _NO_KERNEL


def convert(value: ir.Value) -> float:
    """A QuantizeLinear or DequantizeLinear of that value, and what ONNX Runtime does about layouts there.

    Between a float and an integer convolution it reorders to another blocking of channels and transposes.
    """
    line, producer = _CONVERT, value.producer()
    layouts = _LAYOUTS if graph.rank(value) == 4 and producer is not None else Line(0)
    return line.fixed + layouts.fixed + (line.element + layouts.element) * elements(value)


def quantize(value: ir.Value) -> float:
    """As `convert`, for a QuantizeLinear: behind a MaxPool ONNX Runtime moves it before the pool, which pays for it."""
    producer = value.producer()
    pool = out_of_place(producer) if producer is not None else 0.0
    return convert(value) + pool


def out_of_place(node: ir.Node) -> float:
    """What an integer operator costs more where the operator before it runs in float.

    Integer pools are fast only channels last, which an integer convolution before them brings about.
    """
    return _OUT_OF_PLACE[node.op_type] * elements(node.outputs[0]) if node.op_type in _OUT_OF_PLACE else 0.0


def of(node: ir.Node) -> Cost:
    """The cost of an operator with an integer form."""
    real, integer = _lines(node)
    sized = node.outputs if operators.role(node) is Role.LINEAR else (*node.outputs, *node.inputs[:1])
    count = max(elements(v) for v in sized)
    macs, taps = _macs(node), _taps(node)
    costs = [x.fixed + x.mac * macs + x.tap * taps + x.element * count for x in (real, integer)]
    return Cost(0.0 if _fused_in_float(node) else costs[0], 0.0 if _absorbed(node) else costs[1])


def _lines(node: ir.Node) -> Pair:
    if operators.role(node) is not Role.LINEAR:
        return _OTHERS.get(node.op_type, _MOVE)
    if node.op_type in ("MatMul", "Gemm"):
        return _MATMUL_TWO if operators.weight_of(node) is None else _MATMUL
    return _CONV[_conv_kind(node)]


def _conv_kind(node: ir.Node) -> str:
    weight = graph.static_shape(node.inputs[1]) or ()
    if len(weight) > 4:
        return "volume"
    channels = weight[1] if len(weight) > 1 else None
    if channels == 1 and graph.attribute(node, "group", 1) > 1:
        return "depthwise"
    if channels is not None and channels <= FEW_CHANNELS:
        return "first"
    return "pointwise" if all(d == 1 for d in weight[2:]) else "dense"


def _macs(node: ir.Node) -> int:
    dynamic = [d for d in (graph.static_shape(node.outputs[0]) or ())[1:] if d is None]
    return int(operators.macs(node) * DYNAMIC_LENGTH ** len(dynamic))


def _taps(node: ir.Node) -> int:
    if graph.is_op(node, "Softmax"):
        shape, axis = graph.static_shape(node.outputs[0]), graph.attribute(node, "axis", -1)
        length = None if shape is None else shape[axis]
        return elements(node.outputs[0]) // (length or DYNAMIC_LENGTH)
    weight = graph.static_shape(node.inputs[1]) if node.op_type == "Conv" else None
    if weight is None or not weight[0]:
        return 0
    kernel = math.prod(d or 1 for d in weight[2:])
    return elements(node.outputs[0]) // weight[0] * kernel


def _fused_in_float(node: ir.Node) -> bool:
    """Whether a float kernel does the operator's work on the way: what follows a Conv in ONNX Runtime."""
    if not graph.is_op(node, "Add", "Relu", "Clip"):
        return False
    producers = [v.producer() for v in node.inputs[:2] if v is not None and graph.only_user(v) is node]
    return any(graph.is_op(p, "Conv") for p in producers)


def _absorbed(node: ir.Node) -> bool:
    """Whether the quantized range of what comes before does the work of a Relu or Clip."""
    source = node.inputs[0] if graph.is_op(node, "Relu", "Clip") else None
    return source is not None and operators.computes(source.producer())
