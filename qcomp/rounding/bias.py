"""The biases of quantized linear layers: where they stand, and setting them on the accumulator's grid."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, qdq, units
from qcomp.graph import Array
from qcomp.linear_qdq import BIAS_LIMIT
from qcomp.quantization.qparams import TINY


def last(node: ir.Node) -> ir.Node:
    """The node that gives the layer's result: itself, or the Add of a MatMul's bias."""
    return units.bias_add(node) or units.quantized_bias_add(node) or node


def value(node: ir.Node) -> ir.Value | None:
    """The bias of a linear layer: an input of the node or of the Add, quantized or not."""
    end = last(node)
    if end is not node:
        return next(v for v in end.inputs if v is not node.outputs[0])
    return operators.bias_of(node)


def real(node: ir.Node) -> Array | None:
    """The bias as the quantized layer adds it, float64 ``(channels,)``; None where there is none that is constant."""
    bias = value(node)
    found = qdq.read(bias)
    array = graph.constant(bias if found is None else found.source)
    if array is None:
        return None
    steps = 1.0 if found is None else found.scale.astype(np.float64)
    return np.ravel(array.astype(np.float64) * steps)


def write(node: ir.Node, wanted: Array, names: graph.Names, scale: Array | None = None) -> bool:
    """Set the bias of this layer alone, on the accumulator's grid where it is quantized; say whether that changed it.

    Args:
        node: a linear layer with a constant bias.
        wanted: float64 ``(channels,)``.
        names: of the graph.
        scale: a new step of the accumulator, ``x_scale * w_scale``, float64 ``(channels,)``; None leaves it.
    """
    bias, end = value(node), last(node)
    assert bias is not None
    found = qdq.read(bias)
    if found is None:
        index = next(i for i, v in enumerate(end.inputs) if v is bias)
        return _replace(end, index, wanted.astype(np.float32), names)
    old = graph.constant(found.source)
    assert old is not None
    step = found.scale.astype(np.float64)
    if scale is not None:
        new = np.maximum(np.broadcast_to(scale, np.shape(step) or old.shape).astype(np.float32), TINY)
        _replace(found.dequantize, 1, new, names)
        step = new.astype(np.float64)
    steps = np.rint(wanted.reshape(old.shape) / step)
    return _replace(found.dequantize, 0, np.clip(steps, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32), names)


def _replace(node: ir.Node, index: int, new: Array, names: graph.Names) -> bool:
    old = graph.constant(node.inputs[index])
    if old is None or (old.shape == new.shape and np.allclose(old, new, rtol=1e-6, atol=0)):
        return False
    graph.set_constant(node, index, new, names, "bias")
    return True
