"""What the operators of the integer graph say: factors, zero points, weights, bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.errors import UnsupportedError
from qcomp.graph import Array
from qcomp.integer.requantize import LARGEST
from qcomp.quantization.dyadic import Dyadic
from qcomp.quantization.qparams import IntArray


def refuse(node: ir.Node, what: str, hint: str) -> UnsupportedError:
    """The error that names the node."""
    return UnsupportedError(what, where=graph.describe(node), hint=hint)


def array(node: ir.Node, index: int, role: str) -> Array:
    """A constant input.

    Raises:
        UnsupportedError: it is not constant.
    """
    found = graph.constant(node.inputs[index])
    if found is None:
        raise refuse(node, f"its {role} is not constant", "the integer graph needs constant parameters")
    return found


def factor(node: ir.Node, index: int, divisor: int = 1, outputs: Sequence[int] = ()) -> Dyadic:
    """The dyadic number that ``scale / divisor / output scales`` is.

    Args:
        index: of the input with the scale.
        outputs: inputs that hold scales which must be 1.

    Raises:
        UnsupportedError: it is none.
    """
    scale = array(node, index, "scale").astype(np.float64) / divisor
    scale = scale.reshape(()) if scale.size == 1 else scale.reshape(-1)
    hint = "make the integer graph with the pass dyadic-rescale"
    if any(float(array(node, i, "scale").reshape(())) != 1.0 for i in outputs):
        raise refuse(node, "a scale that should be 1 is not", hint)
    try:
        return Dyadic.of(scale)
    except ValueError as error:
        raise refuse(node, f"its scale is no dyadic number ({error})", hint) from error


def zero_point(node: ir.Node, index: int) -> int:
    """A scalar zero point, 0 where it is left out.

    Raises:
        UnsupportedError: it is not uint8.
    """
    if index >= len(node.inputs) or node.inputs[index] is None:
        return 0
    found = array(node, index, "zero point")
    if found.dtype != np.uint8 or found.size != 1:
        raise refuse(node, "an activation is not quantized to uint8 with one zero point", "quantize to uint8")
    return int(found.reshape(()))


def weight(node: ir.Node, index: int) -> Array:
    """An int8 weight, whose zero points, the input behind its scale, must be 0.

    Raises:
        UnsupportedError: it is of another type, or not symmetric.
    """
    found, zeros = array(node, index, "weight"), graph.constant(node.inputs[index + 2])
    if found.dtype != np.int8 or (zeros is not None and zeros.any()):
        raise refuse(node, "its weight is not int8 with zero point 0", "quantize weights to int8, symmetric")
    return found


def bias(node: ir.Node, index: int, channels: int) -> IntArray:
    """The int32 bias as int64 ``(channels,)``, zeros where there is none."""
    if index >= len(node.inputs) or node.inputs[index] is None:
        return np.zeros(channels, np.int64)
    return np.broadcast_to(array(node, index, "bias").astype(np.int64).reshape(-1), (channels,))


def clip_behind(result: ir.Value) -> tuple[ir.Node, int, int] | None:
    """The integer Clip that alone reads a value, with its constant bounds; None where there is none."""
    clip = graph.only_user(result)
    if clip is None or not graph.is_op(clip, "Clip") or clip.inputs[0] is not result:
        return None
    low, high = bounds(clip)
    return None if low is None or high is None or low > high else (clip, low, high)


def bounds(clip: ir.Node) -> tuple[int | None, int | None]:
    """The bounds of a Clip of uint8, None where not constant."""
    return _bound(clip, 1, 0), _bound(clip, 2, LARGEST)


def _bound(clip: ir.Node, index: int, default: int) -> int | None:
    if index >= len(clip.inputs) or clip.inputs[index] is None:
        return default
    found = graph.scalar(clip.inputs[index])
    return None if found is None else int(found)


def sizes(node: ir.Node, value: ir.Value | None) -> tuple[int | None, ...]:
    """The shape of a value, None where dynamic.

    Raises:
        UnsupportedError: not even its rank is known.
    """
    shape = graph.static_shape(value)
    if shape is None:
        name = "" if value is None else f" of {value.name!r}"
        raise refuse(node, f"the rank{name} is not known", "give the model's inputs fixed shapes")
    return shape


def input_of(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator must have."""
    found = node.inputs[index] if index < len(node.inputs) else None
    if found is None:
        raise refuse(node, f"it has no input {index}", "check the model with onnx.checker")
    return found
