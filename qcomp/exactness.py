"""Whether the products of integers in a model are added exactly on every machine, and whether they are on this one.

ONNX Runtime on x86 without 8-bit dot products (VNNI, AMX) multiplies uint8 by int8 in pairs, and adds the two products
in saturating 16 bits (``vpmaddubsw``). Measured with ONNX Runtime 1.31 and AVX2 alone, it does so exactly where

  * the first operand of MatMulInteger, QLinearMatMul or QGemm is uint8 and the second int8, constant or not;
  * QLinearConv reads uint8 with int8 weights, but for depthwise convolutions, which widen first;
  * ConvInteger reads int8 with uint8 weights, for it multiplies the weights by the image and not the reverse.

Two uint8 operands, two int8 ones, and int8 by uint8 are exact, and so is ConvInteger of uint8 with int8 weights. What a
model computes in float may differ in its last bits all the same.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from qcomp import graph, qdq, runtime, shapes
from qcomp.errors import ModelError
from qcomp.graph import Array
from qcomp.integer_only import inlined
from qcomp.quantization import saturation

logger = logging.getLogger(__name__)

KEY = "qcomp.exact"
"""The key of a model's metadata."""
EVERYWHERE = "everywhere"
"""Products are exact on every machine."""
DOT_PRODUCT = "dot-product"
"""Products are exact on machines with 8-bit dot products (VNNI, AMX, Arm) only."""


@dataclass(frozen=True)
class Operands:
    """The inputs of an operator as ONNX Runtime multiplies them: saturating where `first` is uint8 and `second` int8.

    Args:
        first, second: their positions.
        first_zero, second_zero: the positions of their zero points, which have their types; None where there are none.
    """

    first: int
    second: int
    first_zero: int | None
    second_zero: int | None


_LINEAR = Operands(0, 3, 2, 5)
PRODUCTS = {
    **dict.fromkeys(("QLinearMatMul", "QGemm", "QLinearConv"), _LINEAR),
    "MatMulInteger": Operands(0, 1, 2, 3),
    "MatMulIntegerToFloat": Operands(0, 1, 4, 5),
    "DynamicQuantizeMatMul": Operands(0, 1, None, 3),
    "ConvInteger": Operands(1, 0, 3, 2),
}
"""The operators of integers that multiply two tensors."""


def saturates(weights: Array, axis: int) -> bool:
    """Whether two neighbouring products might leave int16, for some input and some order of the weights.

    Args:
        weights: int8, of any shape.
        axis: the axis of the output channels.
    """
    return saturation.saturates(np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1))


def record(model: ir.Model) -> str:
    """Write into the model's metadata where it is exact, and give that back: `EVERYWHERE` or `DOT_PRODUCT`.

    Raises:
        ModelError: as `needed`.
    """
    model.metadata_props[KEY] = found = needed(model)
    return found


def read(model: ir.Model) -> str | None:
    """Where the model is exact as its metadata say, which anybody may have written; None where they do not."""
    found = model.metadata_props.get(KEY)
    return found if found in (EVERYWHERE, DOT_PRODUCT) else None


def needed(model: ir.Model) -> str:
    """Where the model is exact, from its operators and weights, those of functions too; without proof, `DOT_PRODUCT`.

    Raises:
        ModelError: its types contradict each other, or its functions cannot be inlined.
    """
    flat = inlined(model)
    shapes.infer_shapes(flat)
    return DOT_PRODUCT if any(_may_saturate(node) for node in flat.graph.all_nodes()) else EVERYWHERE


def warn(model: ir.Model, name: str) -> None:
    """Log a warning where the model needs 8-bit dot products and this machine has none, as its weights prove.

    Args:
        model: as its file holds it.
        name: of the model, for the message.
    """
    if probe():
        return
    try:
        found = needed(model)
    except ModelError:  # ONNX Runtime will say what is wrong with the model
        return
    if found == DOT_PRODUCT:
        logger.warning(_WARNING, name)


_WARNING = (
    "%s: ONNX Runtime adds 8-bit products in saturating 16 bits on this machine, which has no VNNI, AMX or Arm dot "
    "products, and its results differ (compile with --to 'onnxruntime{portable=true}' for the same integers everywhere)"
)


def _may_saturate(node: ir.Node) -> bool:
    operands = PRODUCTS.get(node.op_type)
    if operands is not None:
        return _products_may_saturate(node, operands)
    return graph.is_op(node, "Conv", "Gemm", "MatMul") and _dequantized_may_saturate(node)


def _products_may_saturate(node: ir.Node, operands: Operands) -> bool:
    first = _type_of(node, operands.first, operands.first_zero)
    second = _type_of(node, operands.second, operands.second_zero)
    if first == ir.DataType.INT8 or second == ir.DataType.UINT8 or _is_depthwise(node, operands.second):
        return False
    weights = graph.constant_tensor(node.inputs[operands.second])
    return weights is None or graph.reading(weights, lambda array: _array_saturates(node, array))


def _dequantized_may_saturate(node: ir.Node) -> bool:
    """The same for an operator between Q and DQ, whose activations ONNX Runtime makes uint8 in any case."""
    data, weights = (qdq.read(value) for value in node.inputs[:2])
    if data is None or weights is None or _is_depthwise(node, 1):
        return False
    if _type_of(data.dequantize, 0, 2) not in (ir.DataType.UINT8, ir.DataType.INT8):
        return False
    if _type_of(weights.dequantize, 0, 2) not in (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.INT2):
        return False
    source = None if weights.quantize is not None else graph.constant(weights.source)
    low, high = weights.bounds or (-128, 127)
    array = np.asarray([[low, high], [low, high]]) if source is None else np.clip(source.astype(np.int64), low, high)
    return saturates(array, 1) if source is None else _array_saturates(node, array)


def _array_saturates(node: ir.Node, array: Array) -> bool:
    if array.ndim < 2:
        return saturates(array.reshape(-1, 1), 1)
    if "Conv" in node.op_type or ("Gemm" in node.op_type and graph.attribute(node, "transB", 0)):
        return saturates(array, 0)
    columns = np.moveaxis(array, -2, -1)  # of matrices of any number, each a product of its own
    return saturation.saturates(columns.reshape(-1, array.shape[-2]))


def _type_of(node: ir.Node, index: int, zero_point: int | None) -> ir.DataType | None:
    """The type of an input, or of its zero point where it is not known itself."""
    for position in (index, zero_point):
        value = node.inputs[position] if position is not None and position < len(node.inputs) else None
        if value is not None and value.dtype is not None:
            return value.dtype
    return None


def _is_depthwise(node: ir.Node, weights: int) -> bool:
    """Whether it is a convolution of one input and one output channel a group: its products are added in 32 bits."""
    shape = graph.static_shape(node.inputs[weights]) if node.op_type in ("Conv", "QLinearConv") else None
    return shape is not None and len(shape) > 2 and shape[:2] == (graph.attribute(node, "group", 1), 1)


_COLUMNS = np.where(np.arange(16) % 2, -127, 127)
"""The weights of each output channel of the probe; every input is 255."""
_STEP = np.float32(2.0**-16)
_MIDDLE = np.uint8(128)
_PROBE = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
probe (uint8[1, 200] row, uint8[5, 200] rows, uint8[1, 20, 4, 4] image, uint8[1, 16, 4, 4] channels) => (
    int32[1, 16] a_200, int32[5, 16] b_200, uint8[1, 16] c_200, uint8[5, 16] d_200, uint8[1, 16] e_200,
    uint8[5, 16] f_200, uint8[1, 16, 2, 2] g_180, uint8[1, 16, 2, 2] h_9
) {
    a_200 = MatMulInteger (row, weights)
    b_200 = MatMulInteger (rows, weights)
    c_200 = QLinearMatMul (row, one, zero, weights, step, signed_zero, one, middle)
    d_200 = QLinearMatMul (rows, one, zero, weights, step, signed_zero, one, middle)
    e_200 = com.microsoft.QGemm (row, one, zero, weights, step, signed_zero, , one, middle)
    f_200 = com.microsoft.QGemm (rows, one, zero, weights, step, signed_zero, , one, middle)
    g_180 = QLinearConv (image, one, zero, kernel, step, signed_zero, one, middle)
    h_9 = QLinearConv <group = 16> (channels, one, zero, depthwise, step, signed_zero, one, middle)
}"""
"""The operators that multiply, for one row and several; the name of an output ends in how many products it adds."""


@functools.cache
def probe() -> bool:
    """Whether ONNX Runtime on this machine is exact for any weights: it runs tiny models, in a few milliseconds."""
    runner = runtime.session(ir.from_proto(_probe_model()))
    feeds = {one.name: np.full(one.shape, 255, np.uint8) for one in runner.get_inputs()}
    names = [one.name for one in runner.get_outputs()]
    return all(_is_right(name, found) for name, found in zip(names, runtime.run(runner, names, feeds), strict=True))


def _is_right(name: str, found: Array) -> bool:
    sums = 255 * int(name.partition("_")[2]) * _COLUMNS
    truth = sums if found.dtype == np.int32 else np.clip(np.rint(sums * _STEP) + _MIDDLE, 0, 255)
    return bool((np.moveaxis(found, 1, -1) == truth).all())


def _probe_model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(_PROBE)
    kernel = np.broadcast_to(_COLUMNS[:, None, None, None], (16, 20, 3, 3)).astype(np.int8)
    weights = np.broadcast_to(_COLUMNS, (200, 16)).astype(np.int8)
    tensors = {"weights": weights, "kernel": kernel, "depthwise": np.ascontiguousarray(kernel[:, :1])}
    scalars = {"zero": np.uint8(0), "signed_zero": np.int8(0), "middle": _MIDDLE, "one": np.float32(1), "step": _STEP}
    held = {**tensors, **{name: np.asarray(number) for name, number in scalars.items()}}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in held.items())
    return model
