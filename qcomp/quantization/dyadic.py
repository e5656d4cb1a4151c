"""Dyadic numbers ``m / 2^c``: requantization with integers alone.

An accumulator becomes an output by ``y = clamp(round_half_even(acc * m / 2^c) + zero_point)``: no float, no division.

Why float kernels agree. A runtime that converts ``acc`` to float32, multiplies it by ``m / 2^c`` and rounds half to
even gives the same integers wherever ``c <= 16``: if ``|acc * m / 2^c| < 2^8``, the product has at most 24 significant
bits, so float32 holds it exactly; otherwise both sides saturate. With a larger ``c`` it still does where the bits of
the largest ``|acc|`` and of ``m`` are at most 24 together.

Source: Yao et al. 2021, "HAWQ-V3: Dyadic Neural Network Quantization", arXiv:2011.10680, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcomp.quantization.qparams import FloatArray, IntArray

SHIFT = 16
"""The shift up to which float kernels are exact for every accumulator."""
PRODUCT_SHIFT = 15
"""That of products of two activations, whose kernels add the zero point before they round."""
LARGEST_SHIFT = 24
LARGEST_MULTIPLIER = (1 << 24) - 1
"""What float32 holds exactly."""
ACCUMULATOR = (1 << 31) - 1
"""The largest magnitude of an accumulator."""
EXACT_BITS = 24


@dataclass(frozen=True)
class Dyadic:
    """The factor ``multiplier / 2^shift``.

    Constraints, quoted by the errors:

    - D1: every multiplier is an integer from 1 to 2^24 - 1, so that float32 holds the factor;
    - D2: the shift is an integer from 0 to 24.

    Then ``|acc| * multiplier + 2^(shift - 1) < 2^56`` for every int32 accumulator: int64 holds what `apply` computes.

    Args:
        multiplier: int64, a scalar ``()`` or one a channel, ``(channels,)``.
        shift: of all channels.

    Raises:
        ValueError: a constraint does not hold.
    """

    multiplier: IntArray
    shift: int

    def __post_init__(self) -> None:
        multiplier = np.asarray(self.multiplier, np.int64)
        if (multiplier < 1).any() or (multiplier > LARGEST_MULTIPLIER).any():
            raise ValueError(f"D1: every multiplier is an integer from 1 to 2^24 - 1, not {self.multiplier!r}")
        if not 0 <= self.shift <= LARGEST_SHIFT:
            raise ValueError(f"D2: the shift is an integer from 0 to {LARGEST_SHIFT}, not {self.shift}")
        object.__setattr__(self, "multiplier", multiplier)

    @classmethod
    def nearest(cls, factor: FloatArray | float, shift: int = SHIFT) -> Dyadic:
        """The dyadic numbers of that shift nearest to positive factors, reduced; at least ``1 / 2^shift``."""
        scaled = np.rint(np.asarray(factor, np.float64) * 2.0**shift)
        return cls(np.clip(scaled, 1, LARGEST_MULTIPLIER).astype(np.int64), shift).reduced()

    @classmethod
    def of(cls, factor: FloatArray) -> Dyadic:
        """The dyadic numbers that float32 factors are, reduced.

        Raises:
            ValueError: one is none.
        """
        exact = np.asarray(factor, np.float64) * 2.0**LARGEST_SHIFT
        if not (np.isfinite(exact).all() and (exact == np.rint(exact)).all() and (exact > 0).all()):
            raise ValueError(f"D2: {factor!r} is no multiple of 2^-{LARGEST_SHIFT}")
        common = min(_trailing_zeros(exact.astype(np.int64)), LARGEST_SHIFT)
        return cls(exact.astype(np.int64) >> common, LARGEST_SHIFT - common)

    @property
    def value(self) -> FloatArray:
        """float32, exact, the shape of the multiplier."""
        exact: FloatArray = np.asarray(self.multiplier / 2.0**self.shift, np.float32)
        return exact

    def reduced(self) -> Dyadic:
        """The same numbers with the least shift."""
        common = min(_trailing_zeros(self.multiplier), self.shift)
        return Dyadic(self.multiplier >> common, self.shift - common)

    def is_exact_in_float32(self, bound: IntArray | int) -> bool:
        """Whether float kernels give the same integers for accumulators of magnitude up to ``bound``, per channel."""
        odd, low = self.multiplier, np.full(self.multiplier.shape, self.shift)
        for _ in range(max(self.shift - SHIFT, 0)):
            halves = (odd % 2 == 0) & (low > SHIFT)
            odd, low = np.where(halves, odd >> 1, odd), low - halves
        return bool(((low <= SHIFT) | (_bits(bound) + _bits(odd) <= EXACT_BITS)).all())

    def apply(self, accumulator: IntArray, axis: int = -1) -> IntArray:
        """``round_half_even(accumulator * multiplier / 2^shift)``.

        Args:
            accumulator: integers of magnitude below 2^31, any shape.
            axis: the axis of the channels, where there is a multiplier for each.

        Returns:
            int64 of the same shape.

        Raises:
            ValueError: an accumulator is out of range.
        """
        wide = np.asarray(accumulator, np.int64)
        if wide.size and max(int(wide.max()), -int(wide.min())) > ACCUMULATOR:
            raise ValueError("an accumulator leaves int32")
        factor = self.multiplier
        if factor.ndim:
            factor = factor.reshape([-1 if i == axis % wide.ndim else 1 for i in range(wide.ndim)])
        return shift_half_even(wide * factor, self.shift)

    def requantize(
        self, accumulator: IntArray, zero_point: int, qmin: int = 0, qmax: int = 255, axis: int = -1
    ) -> IntArray:
        """``clamp(apply(accumulator) + zero_point, qmin, qmax)``, int64 of the same shape."""
        result: IntArray = np.clip(self.apply(accumulator, axis) + zero_point, qmin, qmax)
        return result


def shift_half_even(value: IntArray, shift: int) -> IntArray:
    """``round_half_even(value / 2^shift)`` of int64 values of magnitude up to 2^62, in integers alone."""
    if shift == 0:
        return value
    odd = (value >> shift) & 1
    rounded: IntArray = (value + ((1 << (shift - 1)) - 1) + odd) >> shift
    return rounded


def neighbours(factor: FloatArray, bound: FloatArray) -> tuple[Dyadic, Dyadic]:
    """The dyadic numbers next below and above each factor, as fine as accumulators up to ``bound`` allow.

    Args:
        factor: positive, float64, ``(channels,)``.
        bound: the largest magnitude of each channel's accumulator, float64, ``(channels,)``.

    Returns:
        Two of one shift, ``(channels,)``; the lower one is at least the finest there is, and so may lie above.
    """
    finest = finest_shift(factor, bound)
    shift = int(finest.max(initial=SHIFT))
    widen = 2.0 ** (shift - finest)
    pair = []
    for side in (np.floor, np.ceil):
        steps = np.clip(side(factor * 2.0**finest), 1, LARGEST_MULTIPLIER // widen)
        pair.append(Dyadic((steps * widen).astype(np.int64), shift))
    return pair[0], pair[1]


def finest_shift(factor: FloatArray, bound: FloatArray) -> FloatArray:
    """The largest shift of each channel at which float kernels stay exact and float32 holds every multiplier."""
    room = EXACT_BITS - np.ceil(np.log2(np.maximum(bound, 1) + 1))
    needed = np.ceil(np.log2(np.maximum(factor, 2.0**-LARGEST_SHIFT) * 2.0**SHIFT + 1))
    widest = EXACT_BITS - 1 - needed.max(initial=1.0)
    extra = np.clip(np.minimum(room - 1 - needed, widest), 0, LARGEST_SHIFT - SHIFT)
    finest: FloatArray = SHIFT + np.floor(extra)
    return finest


def _bits(value: IntArray | int) -> IntArray:
    """The bits of non-negative integers below 2^53: 0 for 0, 8 for 255."""
    bits: IntArray = np.frexp(np.asarray(value, np.float64))[1]
    return bits


def _trailing_zeros(values: IntArray) -> int:
    """How often 2 divides all values, which are positive."""
    merged = int(np.bitwise_or.reduce(np.ravel(values)))
    return (merged & -merged).bit_length() - 1 if merged else LARGEST_SHIFT
