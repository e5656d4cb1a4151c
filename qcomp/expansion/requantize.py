"""Requantization of integers by a dyadic factor, in as few and as narrow operators as the bounds allow.

``y = clamp(round_half_even((r + offset) * m / 2^c) + zero_point, low, high)`` of a raw sum ``r`` (a product of
matrices, before its bias and the input's zero point) is a multiplication, an addition and a shift

    t = r * m + K,   K = offset * m + (zero_point << c) + half,   y = t >> c

with a clamp, which takes one of three places:

- *direct*: all products are proved to fit int32. ``t`` is clamped to ``[low << c, ((high + 1) << c) - 1]``.
- *clamped*: r is clamped first, per channel, to where t lies in that interval; with ``m <= 2^c`` nothing is left to
  clamp afterwards. Then ``0 <= t < 2^32``, so that uint32, whose operators compute modulo 2^32, gives t itself.
- *wide*: r is clamped to one more on either side, t computed in int64, raised by a multiple of ``2^(c+1)`` so that it
  is not negative, and clamped once it is shifted, in int32. (Max, Min and Clip of int64 are wrong in ONNX Runtime 1.31
  on x86: where the upper halves are equal it compares the lower ones as signed.)

Where some channel has ties of both kinds (see `qcomp.expansion.rounding`), halves are rounded up and one is subtracted
where that went wrong: where y is odd and the low c bits of t are zero, that is ``t * 2^(31-c) = 2^31`` modulo 2^32.
(For an odd zero point, where y is even.) The clamp then begins at ``(low << c) + 1``, which is no tie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp.expansion.emitter import Emitter
from qcomp.expansion.rounding import Ties, ties_of_accumulator
from qcomp.quantization.dyadic import Dyadic
from qcomp.quantization.qparams import IntArray

INT32 = (1 << 31) - 1
Arrange = Callable[[IntArray], IntArray]
"""Brings ``(channels,)`` into the shape that broadcasts against the raw sums."""


@dataclass(frozen=True)
class Target:
    """What a sum becomes: ``clamp(round_half_even(sum * factor) + zero_point, low, high)``, uint8."""

    factor: Dyadic
    zero_point: int
    low: int = 0
    high: int = 255

    @property
    def quotient(self) -> tuple[int, int]:
        """The least and the greatest n for which n and ``n + 1`` give different outputs."""
        return self.low - self.zero_point, self.high - 1 - self.zero_point


@dataclass(frozen=True)
class Sums:
    """Raw sums r, of which ``r + offset`` is to be requantized.

    Args:
        least, most: bounds of r, int64 ``(channels,)`` or ``()``.
        offset: int64, of the same shape.
        ties: where they are known better than from the bounds.
    """

    least: IntArray
    most: IntArray
    offset: IntArray
    ties: Ties | None = None


class Width(Enum):
    """Where the clamp stands, and in what width t is computed."""

    DIRECT = "the clamp behind the product, 32 bits"
    CLAMPED = "the clamp in front of the product, 32 bits"
    WIDE = "a clamp on either side, 64 bits"


@dataclass(frozen=True)
class Plan:
    """The constants of a requantization; int64, ``(channels,)`` or ``()``.

    Args:
        before: what r is clamped to, or None.
        after: what t is clamped to, or None; what ``t >> c`` is clamped to where t is wide.
        wrong: ``t * 2^(31-c)`` modulo 2^32 (or with 63 modulo 2^64) of those that halves up round wrong; None where no
            tie is to be set right.
        raised: by how much ``t >> c`` is too large.
    """

    width: Width
    multiplier: IntArray
    addend: IntArray
    shift: int
    before: tuple[IntArray, IntArray] | None
    after: tuple[int, int] | None
    wrong: int | None
    raised: int = 0


def plan(sums: Sums, target: Target) -> Plan:
    """Choose the narrowest exact way."""
    factor = target.factor.reduced()
    shift = factor.shift
    shape = np.broadcast_shapes(factor.multiplier.shape, sums.offset.shape)
    m: IntArray = np.broadcast_to(factor.multiplier, shape).astype(np.int64)
    ties = sums.ties or ties_of_accumulator(
        m, shift, (sums.least + sums.offset, sums.most + sums.offset), target.quotient
    )
    addend = sums.offset * m + (target.zero_point << shift) + ties.addend(shift)
    limits = (target.low << shift) + ties.mixed, (target.high << shift) + (1 << shift) - 1
    t = sums.least * m + addend, sums.most * m + addend
    before = -((addend - limits[0]) // m), (limits[1] - addend) // m
    wrong = (1 - target.zero_point % 2) if ties.mixed else None
    rest: dict[str, Any] = {"shift": shift, "wrong": wrong}
    if _fit(sums.least * m, sums.most * m, addend, *t, *limits):
        idle = bool((t[0] >= limits[0]).all() and (t[1] <= limits[1]).all())
        return Plan(Width.DIRECT, m, addend, before=None, after=None if idle else limits, **rest)
    if (m <= (1 << shift) - ties.mixed).all() and _fit(*before):
        return Plan(Width.CLAMPED, m, addend, before=before, after=None, **rest)
    return _wide(m, addend, (before[0] - 1, before[1] + 1), target, rest)


def _wide(
    m: IntArray, addend: IntArray, before: tuple[IntArray, IntArray], target: Target, rest: dict[str, Any]
) -> Plan:
    """A clamp of r to int32, at most; then t is raised to be positive."""
    least, most = (np.clip(bound, -INT32, INT32) for bound in before)
    lowest = int((np.minimum(least, most) * m + addend).min())
    raised = 2 * max(0, -(lowest >> (rest["shift"] + 1)))
    lifted = addend + (raised << rest["shift"])
    after = target.low + raised, target.high + raised
    return Plan(Width.WIDE, m, lifted, before=(least, most), after=after, raised=raised, **rest)


def _fit(*arrays: IntArray | int) -> bool:
    """Whether int32 holds all numbers."""
    return all((np.abs(a) <= INT32).all() for a in arrays)


def requantize(
    emitter: Emitter, raw: ir.Value, sums: Sums, target: Target, name: str, arrange: Arrange = np.asarray
) -> ir.Value:
    """Emit the operators of the plan.

    Args:
        raw: the sums, int32, in any shape that constants broadcast against as arranged.
        name: of the result; those in between get a suffix.

    Returns:
        uint8 in the shape of ``raw``.
    """
    return _Writer(emitter, plan(sums, target), name, arrange).write(raw)


class _Writer:
    """Emits a plan."""

    def __init__(self, emitter: Emitter, found: Plan, name: str, arrange: Arrange) -> None:
        self.emitter, self.plan, self.name, self.arrange = emitter, found, name, arrange
        self.unsigned = ir.DataType.UINT64 if found.width is Width.WIDE else ir.DataType.UINT32

    def write(self, raw: ir.Value) -> ir.Value:
        found, types = self.plan, ir.DataType
        t = self._clamped(raw, found.before)
        if found.width is Width.DIRECT:
            t = self._cast(self._clamped(self._affine(t, types.INT32), found.after), types.UINT32)
        elif found.width is Width.CLAMPED:
            t = self._affine(self._cast(t, types.UINT32), types.UINT32)
        else:
            t = self._cast(self._affine(self._cast(t, types.INT64), types.INT64), types.UINT64)
        shifted = self._numbers("BitShift", t, found.shift, self.unsigned, direction="RIGHT") if found.shift else t
        if found.width is Width.WIDE:
            shifted = self._half_even(t, shifted, types.INT32)
            shifted = self._clamped(shifted, found.after)
            shifted = self._numbers("Sub", shifted, found.raised, types.INT32) if found.raised else shifted
            return self._cast(shifted, types.UINT8)
        return self._half_even(t, shifted, types.UINT8)

    def _affine(self, raw: ir.Value, dtype: ir.DataType) -> ir.Value:
        m, addend = self.plan.multiplier, self.plan.addend
        product = raw if (m == 1).all() else self._numbers("Mul", raw, m, dtype)
        return self._numbers("Add", product, addend, dtype) if addend.any() else product

    def _clamped(self, value: ir.Value, bounds: tuple[IntArray | int, IntArray | int] | None) -> ir.Value:
        """Clamp int32; by one Clip where all channels have the same bounds."""
        if bounds is None:
            return value
        if all(_is_one(bound) for bound in bounds):
            ends = [self._constant(bound, ir.DataType.INT32, "bound") for bound in bounds]
            return self.emitter.op("Clip", [value, *ends], f"{self.name}_clamped")
        above = self._numbers("Max", value, bounds[0], ir.DataType.INT32)
        return self._numbers("Min", above, bounds[1], ir.DataType.INT32)

    def _half_even(self, t: ir.Value, shifted: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``t >> c`` in the type, one less where halves are to go down."""
        rounded = self._cast(shifted, dtype)
        if self.plan.wrong is None:
            return rounded
        bits = 8 * self.unsigned.itemsize
        low = self._numbers("Mul", t, 1 << (int(bits) - 1 - self.plan.shift), self.unsigned)
        wrong = self._numbers("Equal", low, self.plan.wrong << (int(bits) - 1), self.unsigned)
        return self.emitter.op("Sub", [rounded, self._cast(wrong, dtype)], f"{self.name}_half_even")

    def _numbers(
        self, kind: str, value: ir.Value, numbers: IntArray | int, dtype: ir.DataType, **attributes: str
    ) -> ir.Value:
        constant = self._constant(numbers, dtype, kind.lower())
        return self.emitter.op(kind, [value, constant], f"{self.name}_{kind.lower()}", **attributes)

    def _constant(self, numbers: IntArray | int, dtype: ir.DataType, role: str) -> ir.Value:
        """A scalar where all channels agree; unsigned types hold numbers modulo their size."""
        array = np.asarray(numbers)
        arranged = array.reshape(-1)[0] if _is_one(array) else self.arrange(array)
        return self.emitter.constant(arranged.astype(dtype.numpy()), f"{self.name}_{role}_constant")

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.emitter.cast(value, dtype, f"{self.name}_{dtype.name.lower()}")


def _is_one(numbers: IntArray | int) -> bool:
    array = np.asarray(numbers)
    return bool((array == array.reshape(-1)[0]).all())
