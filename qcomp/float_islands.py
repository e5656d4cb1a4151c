"""Keep ONNX Runtime from quantizing what was left in float on purpose.

Its ``WeightBiasQuantization`` takes a Conv, ConvTranspose or Gemm between a DequantizeLinear and a QuantizeLinear,
looks through a Relu or Clip, and rounds the float weights to int8 with one scale for the whole tensor: the depthwise
layers of MobileNetV2 kept in float cost 80 points of top-1 this way. An operator that changes nothing, but that no
optimizer removes, breaks the pattern: ``Max`` with the least float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph, qdq

LEAST = np.asarray(np.finfo(np.float32).min)
_TAKEN = ("Conv", "ConvTranspose", "Gemm")


def shield(writer: qdq.Writer) -> None:
    """Put a Max in front of each operator with float weights that stands between a DQ and a Q."""
    for node in tuple(writer.graph):
        source = node.inputs[0] if graph.is_op(node, *_TAKEN) else None
        if source is None or qdq.read(source) is None or not _quantized_behind(node):
            continue
        if graph.constant_tensor(node.inputs[1]) is not None:
            least = writer.constant(LEAST, f"{source.name}_least")
            shielded = writer.add("Max", [source, least], f"{source.name}_shielded", {}, source.dtype, after=source)
            node.replace_input_with(0, shielded)


def _quantized_behind(node: ir.Node) -> bool:
    """Whether a QuantizeLinear reads the result, or that of a Relu or Clip of it."""
    users = [user for user, _ in node.outputs[0].uses()]
    clamped = [after for user in users if graph.is_op(user, "Relu", "Clip") for after, _ in user.outputs[0].uses()]
    return any(graph.is_op(user, "QuantizeLinear") for user in (*users, *clamped))
