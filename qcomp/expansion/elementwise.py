"""QLinearAdd, QLinearMul, and the requantization of single values: int32, in the order in which the values stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.expansion import reading
from qcomp.expansion.forms import Sizes
from qcomp.expansion.requantize import INT32, Sums, Target, requantize
from qcomp.expansion.rounding import ties_of_values
from qcomp.expansion.site import Context
from qcomp.integer.requantize import LARGEST
from qcomp.quantization.dyadic import Dyadic
from qcomp.quantization.qparams import IntArray


@dataclass(frozen=True)
class _Operand:
    """One side of a sum or product.

    Args:
        value: the activation in the order chosen; None for a constant.
        constant: int64, ``q - zero_point``, in that order; None for an activation.
        zero_point: of an activation.
    """

    value: ir.Value | None
    constant: IntArray | None
    zero_point: int

    @property
    def occurring(self) -> IntArray:
        """All values of ``q - zero_point``."""
        if self.constant is not None:
            return np.unique(self.constant)
        return np.arange(LARGEST + 1, dtype=np.int64) - self.zero_point


def add(context: Context, node: ir.Node) -> None:
    """Expand a QLinearAdd: ``(a - za) * ma + (b - zb) * mb``, shifted.

    Raises:
        UnsupportedError: its parameters are not those of the integer graph.
    """
    factors = [reading.factor(node, i, outputs=(6,)) for i in (1, 4)]
    shift = max(f.shift for f in factors)
    multipliers = [int(f.multiplier) << (shift - f.shift) for f in factors]
    zero = reading.zero_point(node, 7)
    result, low, high = context.absorb_clip(node)
    target, name = Target(Dyadic(np.array(1), shift), zero, low, high), str(result.name)
    operands, made = _operands(context, node, result)
    scaled = [operand.occurring * m for operand, m in zip(operands, multipliers, strict=True)]
    offset = -sum(o.zero_point * m for o, m in zip(operands, multipliers, strict=True))
    least, most = (sum(int(f(s)) for s in scaled) - offset for f in (np.min, np.max))
    if max(abs(least), abs(most), *(LARGEST * m for m in multipliers)) > INT32:
        raise reading.refuse(node, "its factors are too fine for a sum in int32", "make them with dyadic-rescale")
    terms = [_term(context, o, m, name) for o, m in zip(operands, multipliers, strict=True)]
    raw = context.emitter.op("Add", terms, f"{name}_sum")
    ties = ties_of_values((scaled[0][:, None] + scaled[1]).reshape(-1), shift, target.quotient)
    sums = Sums(np.array(least), np.array(most), np.array(offset), ties)
    _finish(context, node, result, requantize(context.emitter, raw, sums, target, name), made)


def multiply(context: Context, node: ir.Node) -> None:
    """Expand a QLinearMul: ``(a - za) * (b - zb) * m``, shifted.

    Raises:
        UnsupportedError: its parameters are not those of the integer graph.
    """
    factor, zero = reading.factor(node, 1, outputs=(4, 6)), reading.zero_point(node, 7)
    result, low, high = context.absorb_clip(node)
    target, name = Target(factor, zero, low, high), str(result.name)
    operands, made = _operands(context, node, result)
    products = (operands[0].occurring[:, None] * operands[1].occurring).reshape(-1)
    raw = context.emitter.op("Mul", [_centred(context, o, name) for o in operands], f"{name}_products")
    ties = ties_of_values(products * int(factor.multiplier), factor.shift, target.quotient)
    sums = Sums(products.min(), products.max(), np.array(0), ties)
    _finish(context, node, result, requantize(context.emitter, raw, sums, target, name), made)


def rescaled(context: Context, value: ir.Value, zero_point: int, target: Target, name: str) -> ir.Value:
    """uint8 values with another scale and zero point: ``(q - zero_point) * factor``."""
    if target.factor.shift == 0 and int(target.factor.multiplier) == 1 and target.zero_point == zero_point:
        return value
    occurring = np.arange(LARGEST + 1, dtype=np.int64) - zero_point
    ties = ties_of_values(occurring * int(target.factor.multiplier), target.factor.shift, target.quotient)
    sums = Sums(np.array(0), np.array(LARGEST), np.array(-zero_point), ties)
    wide = context.emitter.cast(value, ir.DataType.INT32, f"{name}_int32")
    return requantize(context.emitter, wide, sums, target, name)


def _operands(context: Context, node: ir.Node, result: ir.Value) -> tuple[list[_Operand], tuple[int, ...] | None]:
    """Both operands in one order, and the shape behind N if that is channels-last."""
    values = [reading.input_of(node, i) for i in (0, 3)]
    constants = [graph.constant(v) for v in values]
    activations = [v for v, c in zip(values, constants, strict=True) if c is None]
    shapes = [reading.sizes(node, v) for v in (*activations, result)]
    order, made = _order(context, activations, shapes, all(c is None or c.size == 1 for c in constants))
    found = []
    for value, constant, zero in zip(values, constants, (reading.zero_point(node, i) for i in (2, 5)), strict=True):
        if constant is None:
            found.append(_Operand(order(value), None, zero))
        else:
            centred = constant.astype(np.int64) - zero
            found.append(_Operand(None, centred if made is None else channels_last(centred, len(shapes[-1])), 0))
    return found, made


def _order(
    context: Context, activations: Sequence[ir.Value], shapes: Sequence[Sizes], scalars: bool
) -> tuple[Callable[[ir.Value], ir.Value], tuple[int, ...] | None]:
    """What brings the activations into one order, and the result's shape behind N if that is channels-last.

    Args:
        shapes: of the activations and of the result.
        scalars: whether all constants are.
    """
    forms, rank = context.forms, len(shapes[-1])
    if rank < 3 or any(len(s) != rank for s in shapes) or not any(forms.is_last(v) for v in activations):
        return forms.first, None
    if scalars and len(set(shapes)) == 1 and None not in shapes[0][1:]:
        shape = forms.common_shape(activations)
        return lambda value: forms.shaped(value, shape), shape
    _, channels, *spatial = shapes[-1]
    return forms.last, tuple(s or 0 for s in (*spatial, channels))


def channels_last(array: IntArray, rank: int) -> IntArray:
    """A constant that broadcasts against ``[N, C, *spatial]``, for ``[N, *spatial, C]``."""
    if array.size == 1:
        return array.reshape(())
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    return np.moveaxis(full, 1, -1)


def _term(context: Context, operand: _Operand, multiplier: int, name: str) -> ir.Value:
    """int32 ``q * multiplier`` of an activation; ``(q - zero_point) * multiplier`` of a constant."""
    if operand.constant is not None:
        return context.emitter.constant((operand.constant * multiplier).astype(np.int32), f"{name}_constant")
    assert operand.value is not None
    wide = context.emitter.cast(operand.value, ir.DataType.INT32, f"{name}_int32")
    if multiplier == 1:
        return wide
    factor = context.emitter.constant(np.int32(multiplier), f"{name}_multiplier")
    return context.emitter.op("Mul", [wide, factor], f"{name}_scaled")


def _centred(context: Context, operand: _Operand, name: str) -> ir.Value:
    """int32 ``q - zero_point``."""
    if operand.constant is not None:
        return context.emitter.constant(operand.constant.astype(np.int32), f"{name}_constant")
    assert operand.value is not None
    wide = context.emitter.cast(operand.value, ir.DataType.INT32, f"{name}_int32")
    if operand.zero_point == 0:
        return wide
    zero = context.emitter.constant(np.int32(operand.zero_point), f"{name}_zero_point")
    return context.emitter.op("Sub", [wide, zero], f"{name}_centred")


def _finish(context: Context, node: ir.Node, result: ir.Value, new: ir.Value, made: tuple[int, ...] | None) -> None:
    if made is None:
        context.replace(node, result, new)
    else:
        context.replace_last(node, result, new, made)
