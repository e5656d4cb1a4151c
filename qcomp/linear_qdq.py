"""Weights and biases of linear operators as Q/DQ: which scale each channel gets, and the nodes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, qdq
from qcomp.errors import ModelError
from qcomp.graph import Array
from qcomp.quantization import power_of_two, ranges, weight_scales
from qcomp.quantization.qparams import TINY, QParams
from qcomp.quantization.qtype import QType
from qcomp.quantization.saturation import pair_reach, saturates
from qcomp.weight_grid import WeightGrid

logger = logging.getLogger(__name__)

LAZY_BYTES = 1 << 24
"""Weights above this size are transposed when they are read, one at a time."""
BIAS_LIMIT = 1 << 30
"""The largest magnitude of an int32 bias: half of the range is left to the products."""
PORTABLE = QType(7, signed=True, narrow=True)
"""Two products of a uint8 and such a weight add up to at most 2 * 255 * 63, which int16 holds."""


@dataclass(frozen=True)
class _Use:
    """What the scale of a weight depends on beside the weight.

    Args:
        bias_steps: the magnitude of the bias over the activation's scale, float64 ``(channels,)``; empty without one.
        ratio: the result's scale over the activation's; None where the weight's scale is free.
        largest_input: the largest magnitude of the activation's integers less their zero point.
    """

    bias_steps: Array = field(default_factory=lambda: np.zeros(0))
    ratio: float | None = None
    largest_input: int = 255


class LinearWriter:
    """Quantizes weights per output channel or group, and biases on the grid of the accumulator.

    Args:
        writer: where the nodes go.
        grid: of the weights.
    """

    def __init__(self, writer: qdq.Writer, grid: WeightGrid) -> None:
        self._writer, self._grid = writer, grid
        self._done: dict[tuple[int, int | None, bytes], ir.Value] = {}
        self._upright: dict[int, ir.Value] = {}
        """Transposed weights, by the ``id`` of the weight."""

    def weights_only(self, nodes: Iterable[ir.Node]) -> bool:
        """Quantize the weights and nothing else; say whether there were any."""
        found = [n for n in nodes if operators.weight_of(n) is not None]
        for node in found:
            self._stand_upright(node)
            self._quantize_weight(node, _Use(), self._block(node))
        return bool(found)

    def _stand_upright(self, node: ir.Node) -> None:
        """Let a Gemm read its weight as ``[inputs, outputs]``.

        ONNX Runtime has a kernel for such weights, MatMulNBits; others it dequantizes anew in each run.
        """
        weight = operators.weight_of(node)
        tensor = graph.constant_tensor(weight)
        if not graph.attribute(node, "transB", 0) or weight is None or tensor is None:
            return
        if id(weight) not in self._upright:
            self._upright[id(weight)] = self._writer.constant(_transposed(tensor), f"{weight.name}_transposed")
        node.replace_input_with(1, self._upright[id(weight)])
        node.attributes.pop("transB")
        graph.drop_unread(weight)

    def _block(self, node: ir.Node) -> int | None:
        """The length of the groups; None where all inputs of an output channel share a scale."""
        group, shape = self._grid.group, graph.static_shape(operators.weight_of(node)) or ()
        if group is None or (shape and (shape[0] or 0) <= group and len(shape) == 2):
            return None
        if graph.is_op(node, "MatMul", "Gemm") and len(shape) == 2:
            return group
        logger.info("%s: no groups: they are for a MatMul or Gemm by a matrix", graph.describe(node))
        return None

    def quantize(self, node: ir.Node, last: ir.Node, result_scale: float | None = None) -> None:
        """Quantize the weight of a node whose activation is dequantized already, and its bias.

        Args:
            node: a linear operator.
            last: the node, or the Add of a MatMul's bias.
            result_scale: the scale of its result, for a weight scale whose ratio to it is dyadic; None chooses freely.
        """
        if operators.weight_of(node) is None:
            return
        activation = qdq.read(node.inputs[0])
        assert activation is not None
        index, bias = _bias(node, last)
        array = _zeros(node) if bias is None else graph.constant(bias)
        scale = float(activation.scale.reshape(()))
        steps = np.zeros(0) if array is None else np.abs(array).astype("f8") / scale
        ratio = None if result_scale is None else result_scale / scale
        params = self._quantize_weight(node, _Use(steps, ratio, activation.largest))
        if array is not None and (last is node or _becomes_gemm(node)):
            name = f"{node.outputs[0].name}_bias" if bias is None else str(bias.name)
            last.resize_inputs(max(len(last.inputs), index + 1))
            last.replace_input_with(index, self._bias(array, scale, params, name))
            if bias is not None:
                graph.drop_unread(bias)

    def _bias(self, bias: Array, activation_scale: float, weight: QParams, name: str) -> ir.Value:
        scale = (activation_scale * weight.scale.astype("f8")).astype(np.float32)
        scale = np.maximum(np.broadcast_to(scale, bias.shape), TINY)
        integers = np.clip(np.rint(bias.astype("f8") / scale), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
        params = QParams(QType(32, signed=True), scale, np.zeros(bias.shape, np.int32), axis=0)
        shared = self._writer.scale(params, name)
        value = self._writer.constant(integers, f"{name}_rounded")
        return self._writer.dequantize(value, shared, name)

    def _quantize_weight(self, node: ir.Node, use: _Use, block: int | None = None) -> QParams:
        """Put Q and DQ between a weight and the node; weights that several nodes share are quantized once a scale.

        Raises:
            ModelError: the weight or the bias holds NaN or infinity.
        """
        weight = operators.weight_of(node)
        tensor = graph.constant_tensor(weight)
        assert weight is not None
        assert tensor is not None
        axis = operators.weight_axis(node, graph.shape_of(tensor)) if self._grid.per_channel else None
        try:
            params = graph.reading(tensor, lambda array: self._params_of(array, use, axis, block))
        except ValueError as error:
            what, hint = "its weight or bias holds NaN or infinity", "correct it, or keep the operator in float"
            raise ModelError(what, where=graph.describe(node), hint=hint) from error
        key = (id(weight), params.axis, params.scale.tobytes())
        if key not in self._done:
            biased = params.block is None
            self._done[key] = self._writer.weight(weight, params, packed=self._grid.packed, biased=biased)
        node.replace_input_with(1, self._done[key])
        return params

    def _params_of(self, array: Array, use: _Use, axis: int | None, block: int | None) -> QParams:
        if block is None:
            return self._choose(_rows(array, axis), use, axis)
        rows = _blocks(array, block)
        scale = self._choose(rows, use, 0).scale.reshape(-1, array.shape[1])
        return QParams(self._grid.qtype, scale, np.zeros(scale.shape, self._grid.qtype.container), 0, block)

    def _choose(self, rows: Array, use: _Use, axis: int | None) -> QParams:
        """The parameters of a weight; in portable mode coarser, or of fewer bits, where its integers could saturate.

        Raises:
            ValueError: NaN or infinity.
        """
        params = self._params(rows, use, self._grid.qtype, axis)
        if not self._grid.portable or self._grid.qtype.bits <= PORTABLE.bits:
            return params
        if axis is None:
            return self._params(rows, use, PORTABLE, axis)
        if saturates(params.quantize_rows(rows)):
            params = self._params(rows, use, self._grid.qtype, axis, pair_reach(rows))
        return self._params(rows, use, PORTABLE, axis) if saturates(params.quantize_rows(rows)) else params

    def _params(
        self, rows: Array, use: _Use, qtype: QType, axis: int | None, least_reach: Array | float = 0.0
    ) -> QParams:
        reach = ranges.weight_reach(rows, qtype, search=self._grid.search)
        needed = use.bias_steps / BIAS_LIMIT * qtype.qmax if use.bias_steps.size else np.zeros(1)
        needed = needed.max(keepdims=True) if axis is None else np.broadcast_to(needed, reach.shape)
        needed = np.maximum(needed, least_reach)
        reach = np.maximum(reach, needed)
        if not np.isfinite(reach).all():
            raise ValueError("NaN or infinity")
        if use.ratio is None and not self._grid.powers:
            return QParams.symmetric(reach, qtype, axis)
        found = self._scales(rows, reach / qtype.qmax, needed / qtype.qmax, qtype, use)
        found = found.reshape(() if axis is None else found.shape)
        return QParams(qtype, found, np.zeros(found.shape, qtype.container), axis)

    def _scales(self, rows: Array, wanted: Array, least: Array, qtype: QType, use: _Use) -> Array:
        """Powers of two, or dyadic ratios: float32, one a row."""
        steps, largest = use.bias_steps, use.largest_input
        if len(rows) == 1 and steps.size:
            steps = steps.max(keepdims=True)
        if self._grid.powers:
            least = np.broadcast_to(least, wanted.shape)
            search = self._grid.search
            return power_of_two.weights(
                rows, least, qtype, search=search, ratio=use.ratio, largest_input=largest, bias_steps=steps
            )
        assert use.ratio is not None
        return weight_scales.dyadic_scales(
            rows, wanted, least, qtype, ratio=use.ratio, largest_input=largest, bias_steps=steps
        )


def _rows(array: Array, axis: int | None) -> Array:
    """A copy-free view where that is possible: a row for each output channel, or one for the tensor."""
    return array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _blocks(array: Array, block: int) -> Array:
    """A matrix ``[inputs, outputs]`` as a row for each group of each output, the last filled up with zeros."""
    count = -(-array.shape[0] // block)
    full = np.pad(array, ((0, count * block - array.shape[0]), (0, 0)))
    return full.reshape(count, block, -1).swapaxes(1, 2).reshape(-1, block)


def _transposed(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A matrix, transposed when it is read where it is big."""

    def turned() -> ir.TensorProtocol:
        return ir.tensor(graph.reading(tensor, lambda array: np.array(array.T, order="C")))

    if tensor.nbytes <= LAZY_BYTES:
        return turned()
    return ir.LazyTensor(turned, dtype=tensor.dtype, shape=ir.Shape(reversed(graph.shape_of(tensor))))


def _zeros(node: ir.Node) -> Array | None:
    """A bias for a layer that has none, so that it can be corrected; None where the layer takes none."""
    weight = graph.constant_tensor(operators.weight_of(node))
    if weight is None or node.op_type not in ("Conv", "Gemm"):
        return None
    shape = graph.shape_of(weight)
    axis = operators.weight_axis(node, shape)
    return None if axis is None else np.zeros(shape[axis], np.float32)


def _becomes_gemm(node: ir.Node) -> bool:
    """Whether ONNX Runtime makes one Gemm of a MatMul and the Add of its bias, as it does where shapes are static.

    Then the bias must be int32 behind a DequantizeLinear, or nothing fuses and the layer runs in float; elsewhere it
    stays in float, where it fuses with what follows (BiasGelu, SkipLayerNormalization).
    """
    return None not in (graph.static_shape(node.inputs[0]) or (None,))


def _bias(node: ir.Node, last: ir.Node) -> tuple[int, ir.Value | None]:
    """The position and value of the bias: the third input, or the constant operand of the Add."""
    if last is node:
        return 2, operators.bias_of(node)
    index = 1 if last.inputs[0] is node.outputs[0] else 0
    return index, last.inputs[index]
