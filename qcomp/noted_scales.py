"""What an integer tensor stands for, noted on the graph where no DequantizeLinear says it any more.

The note is metadata of the value, ``qcomp.scale``: scale and zero point, as in ``0.023529412 128``. No operator reads
it; it serves whoever compares the tensor with the float one of the same name.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph, qdq
from qcomp.graph import QUANTIZED
from qcomp.qdq import CLIPPED
from qcomp.quantization.qparams import QParams
from qcomp.quantization.qtype import QType

KEY = "qcomp.scale"
_UINT8 = QType(8, signed=False)


def note(value: ir.Value, scale: float, zero_point: int) -> None:
    """Note the scale and zero point of a uint8 tensor."""
    value.metadata_props[KEY] = f"{np.float32(scale)!s} {zero_point}"


def read(value: ir.Value) -> tuple[float, int] | None:
    """The scale and zero point that are noted; None where there is no note that makes sense."""
    scale, _, zero = value.metadata_props.get(KEY, "").partition(" ")
    try:
        with np.errstate(over="ignore"):
            found = float(np.float32(scale)), int(zero)
    except ValueError:
        return None
    return found if 0 < found[0] < float("inf") and 0 <= found[1] <= _UINT8.qmax else None


def with_dequantized(model: ir.Model) -> ir.Model:
    """A clone with a DequantizeLinear of every noted tensor, under the name that a Q/DQ graph gives it."""
    clone = model.clone()
    writer = qdq.Writer(clone.graph)
    for node in tuple(clone.graph):
        for value in node.outputs:
            found, name = read(value), str(value.name).removesuffix(QUANTIZED)
            integers = _clipped(value, name)
            known = any(graph.is_op(user, "DequantizeLinear") for user, _ in integers.uses())
            if found is None or known or value.dtype != ir.DataType.UINT8:
                continue
            params = QParams(_UINT8, np.asarray(found[0], np.float32), np.asarray(found[1], np.uint8))
            writer.dequantize(integers, writer.scale(params, f"{name}_noted"), name)
    return clone


def _clipped(value: ir.Value, name: str) -> ir.Value:
    """The integers behind the Clip that belongs to the quantized tensor of that name, where one does."""
    user = graph.only_user(value)
    clipped = user.outputs[0] if user is not None and graph.is_op(user, "Clip") else value
    return clipped if clipped.name == f"{name}{CLIPPED}" else value
