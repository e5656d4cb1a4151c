"""The bounds of sums of products of uint8 activations with constant int8 weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp.expansion import reading
from qcomp.expansion.requantize import INT32, Sums
from qcomp.graph import Array
from qcomp.integer.requantize import LARGEST
from qcomp.quantization.qparams import IntArray


def weighted_sums(node: ir.Node, rows: Array, zero_point: int, bias: IntArray) -> Sums:
    """The raw sums ``sum(x * w)`` of an activation that is not known but to be uint8.

    Args:
        rows: integers ``(channels, terms)``.
        zero_point: of the activation: it goes into the offset, ``bias - zero_point * sum(w)``.
        bias: int64 ``(channels,)``.

    Raises:
        UnsupportedError: int32 does not hold the sums.
    """
    wide = rows.astype(np.int64)
    least, most = (LARGEST * np.where(sign * wide > 0, wide, 0).sum(axis=1) for sign in (-1, 1))
    if max(-int(least.min(initial=0)), int(most.max(initial=0))) > INT32:
        raise reading.refuse(node, "its sums may leave int32", "split it, or quantize its weights to fewer bits")
    return Sums(least, most, bias - zero_point * wide.sum(axis=1))
