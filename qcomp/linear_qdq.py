"""Weights and biases of linear operators as Q/DQ: which scale each channel gets, and the nodes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, qdq
from qcomp.errors import ModelError
from qcomp.graph import Array
from qcomp.quantization import ranges
from qcomp.quantization.qparams import TINY, QParams
from qcomp.quantization.qtype import QType

BIAS_LIMIT = 1 << 30
"""The largest magnitude of an int32 bias: half of the range is left to the products."""


class LinearWriter:
    """Quantizes weights per output channel, and biases on the grid of the accumulator.

    Args:
        writer: where the nodes go.
        qtype: the narrow, signed type of the weights.
        search: search each channel's range for the least squared error.
        per_channel: a scale for each output channel where the operator allows it.
    """

    def __init__(self, writer: qdq.Writer, qtype: QType, *, search: bool, per_channel: bool) -> None:
        self._writer, self._qtype, self._search, self._per_channel = writer, qtype, search, per_channel
        self._done: dict[tuple[int, int | None, bytes], ir.Value] = {}

    def weights_only(self, nodes: Iterable[ir.Node]) -> bool:
        """Quantize the weights and nothing else; say whether there were any."""
        found = [n for n in nodes if operators.weight_of(n) is not None]
        for node in found:
            self._quantize_weight(node, np.zeros(0, np.float32))
        return bool(found)

    def quantize(self, node: ir.Node, last: ir.Node) -> None:
        """Quantize the weight of a node whose activation is dequantized already, and its bias.

        Args:
            node: a linear operator.
            last: the node, or the Add of a MatMul's bias.
        """
        if operators.weight_of(node) is None:
            return
        activation = qdq.read(node.inputs[0])
        assert activation is not None
        index, bias = _bias(node, last)
        array = _zeros(node) if bias is None else graph.constant(bias)
        if last is not node and not _becomes_gemm(node):
            array = None
        scale = float(activation.scale.reshape(()))
        params = self._quantize_weight(node, np.zeros(0) if array is None else np.abs(array).astype("f8") / scale)
        if array is not None:
            name = f"{node.outputs[0].name}_bias" if bias is None else str(bias.name)
            last.resize_inputs(max(len(last.inputs), index + 1))
            last.replace_input_with(index, self._bias(array, scale, params, name))

    def _bias(self, bias: Array, activation_scale: float, weight: QParams, name: str) -> ir.Value:
        scale = (activation_scale * weight.scale.astype("f8")).astype(np.float32)
        scale = np.maximum(np.broadcast_to(scale, bias.shape), TINY)
        integers = np.clip(np.rint(bias.astype("f8") / scale), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
        params = QParams(QType(32, signed=True), scale, np.zeros(bias.shape, np.int32), axis=0)
        shared = self._writer.scale(params, name)
        value = self._writer.constant(integers, f"{name}_rounded")
        return self._writer.dequantize(value, shared, name)

    def _quantize_weight(self, node: ir.Node, bias_steps: Array) -> QParams:
        """Put Q and DQ between a weight and the node; weights that several nodes share are quantized once a scale.

        Args:
            node: the linear operator.
            bias_steps: the magnitude of the bias over the activation's scale, per channel; empty without one.

        Raises:
            ModelError: the weight or the bias holds NaN or infinity.
        """
        weight = operators.weight_of(node)
        tensor = graph.constant_tensor(weight)
        assert weight is not None
        assert tensor is not None
        axis = operators.weight_axis(node, graph.shape_of(tensor)) if self._per_channel else None
        reach = self._needed_reach(tensor, axis, bias_steps)
        if not np.isfinite(reach).all():
            what, hint = "its weight or bias holds NaN or infinity", "correct it, or keep the operator in float"
            raise ModelError(what, where=graph.describe(node), hint=hint)
        params = QParams.symmetric(reach, self._qtype, axis)
        key = (id(weight), axis, params.scale.tobytes())
        if key not in self._done:
            scale, name = self._writer.scale(params, str(weight.name)), str(weight.name)
            value = self._writer.quantize(weight, scale, name)
            value = self._writer.clip(value, self._qtype.qmin, self._qtype.qmax, scale, name)
            self._done[key] = self._writer.dequantize(value, scale, name)
        node.replace_input_with(1, self._done[key])
        return params

    def _needed_reach(self, tensor: ir.TensorProtocol, axis: int | None, bias_steps: Array) -> Array:
        """The magnitude that the weights are quantized up to, and no less than what lets int32 hold the bias."""
        reach = graph.reading(tensor, lambda array: self._reach(array, axis))
        if bias_steps.size:
            needed = bias_steps / BIAS_LIMIT * self._qtype.qmax
            reach = np.maximum(reach, needed.max(keepdims=True) if axis is None else needed)
        return reach

    def _reach(self, array: Array, axis: int | None) -> Array:
        rows = array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        return ranges.weight_reach(rows, self._qtype, search=self._search)


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
