"""QLinearMatMul and QGemm as MatMulInteger."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.expansion import reading
from qcomp.expansion.products import weighted_sums
from qcomp.expansion.requantize import INT32, Sums, Target, requantize
from qcomp.expansion.site import Context
from qcomp.graph import Array
from qcomp.integer.requantize import LARGEST
from qcomp.quantization.qparams import IntArray


def gemm(context: Context, node: ir.Node) -> None:
    """Expand a QGemm of rows and a constant weight.

    Raises:
        UnsupportedError: ``alpha`` is not 1, ``transA`` is set, or its parameters are not those of the integer graph.
    """
    if graph.attribute(node, "alpha", 1.0) != 1.0 or graph.attribute(node, "transA", 0):
        raise reading.refuse(node, "alpha is not 1, or transA is set", "fold them into its operands")
    matrix = reading.weight(node, 3)
    matrix = matrix.T if graph.attribute(node, "transB", 0) else matrix
    if len(node.inputs) < 9 or node.inputs[8] is None:
        raise reading.refuse(node, "it gives floats", "give it an output zero point")
    _constant_weight(context, node, matrix, bias=6, zero_point=8, ones=(1, 7))


def matmul(context: Context, node: ir.Node) -> None:
    """Expand a QLinearMatMul.

    Raises:
        UnsupportedError: its parameters are not those of the integer graph.
    """
    tensor = graph.constant_tensor(node.inputs[3])
    if tensor is not None and tensor.dtype == ir.DataType.INT8:
        _constant_weight(context, node, reading.weight(node, 3), bias=None, zero_point=7, ones=(1, 6))
    else:
        _two_activations(context, node)


def _constant_weight(
    context: Context, node: ir.Node, matrix: Array, *, bias: int | None, zero_point: int, ones: tuple[int, ...]
) -> None:
    """``[.., K] x (.., K, channels)``; channels have factors of their own in the last axis."""
    columns = matrix if matrix.ndim > 1 else matrix[:, None]
    rows = np.moveaxis(columns, -1, 0).reshape(columns.shape[-1], -1)
    channels, zero = rows.shape[0], reading.zero_point(node, 2)
    offsets = np.zeros(channels, np.int64) if bias is None else reading.bias(node, bias, channels)
    factor = reading.factor(node, 4, outputs=ones)
    target_zero = reading.zero_point(node, zero_point)
    result, low, high = context.absorb_clip(node)
    name, inputs = str(result.name), [context.forms.first(reading.input_of(node, 0))]
    inputs.append(context.emitter.constant(np.ascontiguousarray(matrix), f"{name}_weight"))
    if matrix.ndim == 2:
        sums = weighted_sums(node, rows, zero, offsets)
    else:
        sums = _in_batches(node, columns, offsets)
        inputs.append(context.emitter.constant(np.uint8(zero), f"{name}_zero_point"))
    raw = context.emitter.op("MatMulInteger", inputs, f"{name}_product")
    new = requantize(context.emitter, raw, sums, Target(factor, target_zero, low, high), name)
    context.replace(node, result, new)


def _in_batches(node: ir.Node, matrices: Array, offsets: IntArray) -> Sums:
    """Bounds for matrices ``(.., K, channels)``, of the largest among them; zero points are subtracted."""
    sums = np.abs(matrices.astype(np.int16)).sum(axis=-2, dtype=np.int64)
    largest = sums.reshape(-1, sums.shape[-1]).max(axis=0)
    most = weighted_sums(node, largest[:, None], 0, offsets).most
    return Sums(-most, most, offsets)


def _two_activations(context: Context, node: ir.Node) -> None:
    left, right = (reading.input_of(node, i) for i in (0, 3))
    zeros = reading.zero_point(node, 2), reading.zero_point(node, 5)
    factor, target_zero = reading.factor(node, 4, outputs=(1, 6)), reading.zero_point(node, 7)
    if factor.multiplier.ndim:
        raise reading.refuse(node, "two activations, and a factor for each column", "quantize per tensor")
    result, low, high = context.absorb_clip(node)
    name = str(result.name)
    inputs = [context.forms.first(left), context.forms.first(right)]
    inputs += [context.emitter.constant(np.uint8(z), f"{name}_zero_point") for z in zeros]
    raw = context.emitter.op("MatMulInteger", inputs, f"{name}_product")
    sums = Sums(*_bounds(reading.sizes(node, left)[-1], zeros), np.array(0))
    new = requantize(context.emitter, raw, sums, Target(factor, target_zero, low, high), name)
    context.replace(node, result, new)


def _bounds(terms: int | None, zeros: tuple[int, int]) -> tuple[IntArray, IntArray]:
    """Bounds of a sum of so many products; of int32, which the integer graph keeps to, where that is dynamic."""
    largest = [max(z, LARGEST - z) for z in zeros]
    most = INT32 if terms is None else min(terms * largest[0] * largest[1], INT32)
    return np.array(-most), np.array(most)
