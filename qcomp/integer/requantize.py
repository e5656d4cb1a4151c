"""Requantization of accumulators to uint8 by dyadic numbers, in 64 bits: the NumPy definition and its constants.

    y = clamp(round_half_even(accumulator * multiplier / 2**shift) + zero_point, 0, 255)

HAWQ-V3 (Yao et al. 2021, arXiv:2011.10680). With ``|accumulator| <= 2**31`` and ``multiplier < 2**31`` the product
stays below 2**62, with ``shift <= 53`` the zero point times ``2**shift`` below 2**61. That one is added before the
shift: because it is even, a half still rounds to the same neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcomp.errors import UnsupportedError
from qcomp.graph import Array

LARGEST = 255
"""The largest uint8."""
MOST_SHIFT = 53
MULTIPLIER_BITS = 30
"""The largest multiplier of a tensor gets this many."""


@dataclass(frozen=True)
class Requantize:
    """The constants of ``qcomp.Requantize``; calling it computes the definition.

    Args:
        multiplier: int64 in [1, 2**31), a scalar or in a shape that broadcasts against the accumulator.
        shift: 1 to 53; a number over ``2**0`` is twice the number over ``2**1``.
        zero_point: of the output, even.

    Raises:
        UnsupportedError: one of them is out of its range.
    """

    multiplier: Array
    shift: int
    zero_point: int

    def __post_init__(self) -> None:
        multiplier = np.asarray(self.multiplier, np.int64)
        object.__setattr__(self, "multiplier", multiplier)
        if (multiplier < 1).any() or (multiplier >= 1 << 31).any():
            raise _refused(f"the multiplier {multiplier.max()} is not in [1, 2**31)")
        if not 1 <= self.shift <= MOST_SHIFT:
            raise _refused(f"the shift {self.shift} is not in [1, {MOST_SHIFT}]")
        check_zero_point(self.zero_point)

    @classmethod
    def of(cls, factor: float | Array, zero_point: int) -> Requantize:
        """The nearest dyadic numbers to positive factors, with one shift for all of them."""
        multiplier, shift = dyadic(factor)
        return cls(multiplier, shift, zero_point)

    @property
    def constants(self) -> dict[str, Array]:
        """What the ONNX function reads behind the accumulator, in order."""
        return {
            "multiplier": self.multiplier,
            "shift": np.asarray(self.shift, np.uint64),
            "zero_point": np.asarray(self.zero_point, np.uint8),
        }

    def __call__(self, accumulator: Array) -> Array:
        """Requantize.

        Args:
            accumulator: int32 of any shape.

        Returns:
            uint8 of the shape of accumulator and multiplier broadcast.
        """
        value = accumulator.astype(np.int64) * self.multiplier + (self.zero_point << self.shift)
        odd = (value >> self.shift) & 1
        half = 1 << (self.shift - 1)
        return shift_right(value + (half - 1) + odd, self.shift)


def shift_right(value: Array, shift: int) -> Array:
    """``clamp(floor(value / 2**shift), 0, 255)`` of int64 values, as uint8: ``qcomp.ShiftRight``."""
    saturated: Array = np.clip(value >> shift, 0, 255).astype(np.uint8)
    return saturated


def dyadic(factor: float | Array) -> tuple[Array, int]:
    """The integers m and c of ``m / 2**c``, nearest to positive factors, with one c for all of them.

    Returns:
        int64 multipliers in the shape of the factors, the largest of 30 bits where the range of shifts allows it;
        the shift, 1 to 53.

    Raises:
        UnsupportedError: a factor is not positive and finite, or so large that no multiplier below 2**31 makes it.
    """
    factors = np.asarray(factor, np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise _refused("a factor is not positive and finite")
    shift = int(np.clip(MULTIPLIER_BITS - np.frexp(factors.max())[1], 1, MOST_SHIFT))
    multiplier = np.maximum(np.rint(np.ldexp(factors, shift)), 1)
    if (multiplier >= 2.0**31).any():
        raise _refused(f"the factor {factors.max():g} is too large")
    return np.asarray(multiplier, np.int64), shift


def check_zero_point(zero_point: int) -> None:
    """Refuse a zero point that is odd, or no uint8.

    Raises:
        UnsupportedError: it is.
    """
    if zero_point % 2 or not 0 <= zero_point <= 255:
        raise _refused(f"the zero point {zero_point} is not an even number in [0, 254]")


def _refused(what: str) -> UnsupportedError:
    return UnsupportedError(what, where="requantization", hint="choose the scales by calibration, or keep it in float")
