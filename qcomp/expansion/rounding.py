"""Where round half to even differs from rounding halves up or down, proved from the accumulator's bounds.

``acc * m / 2^c`` is a tie where ``acc * m`` is an odd multiple of ``2^(c-1)``. With ``m = odd * 2^z`` these are the
``acc = o * 2^(c-1-z)`` for odd ``o``, and the quotient is ``n + 1/2`` with ``2 n + 1 = o * odd``. Half to even gives n
where n is even, that is ``o = odd`` modulo 4, and ``n + 1`` where ``o = -odd`` modulo 4. Few ties lie within the range
of an output; where all of a channel's go one way, a constant in front of the shift rounds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qcomp.quantization.qparams import IntArray


@dataclass(frozen=True)
class Ties:
    """The ties that reach an accumulator's output.

    Args:
        down: where half to even rounds some down, bool ``(channels,)`` or ``()``.
        up: where it rounds some up.
    """

    down: np.ndarray[Any, np.dtype[np.bool_]]
    up: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def mixed(self) -> bool:
        """Whether a channel has both."""
        return bool((self.down & self.up).any())

    def addend(self, shift: int) -> IntArray:
        """What to add before ``>> shift`` so that it rounds half to even; up in all channels, where ties are mixed."""
        half = (1 << shift) >> 1
        result: IntArray = np.where(self.down & (not self.mixed), half - 1, half).astype(np.int64)
        return result


def ties_of_accumulator(
    multiplier: IntArray, shift: int, accumulator: tuple[IntArray, IntArray], quotient: tuple[int, int]
) -> Ties:
    """The ties of ``acc * multiplier / 2^shift``.

    Args:
        multiplier: positive, int64 ``(channels,)`` or ``()``.
        accumulator: the least and the greatest acc, int64, of the same shape.
        quotient: the least and the greatest n for which n and ``n + 1`` give different outputs.
    """
    zeros = _trailing_zeros(multiplier)
    odd, none = multiplier >> zeros, shift - 1 - zeros < 0
    step = np.left_shift(np.int64(1), np.where(none, 0, shift - 1 - zeros))
    first = np.maximum(-(-accumulator[0] // step), -(-(2 * quotient[0] + 1) // odd))
    last = np.minimum(accumulator[1] // step, (2 * quotient[1] + 1) // odd)
    down, up = (first + (sign * odd - first) % 4 <= last for sign in (1, -1))
    return Ties(down & ~none, up & ~none)


def ties_of_values(scaled: IntArray, shift: int, quotient: tuple[int, int]) -> Ties:
    """The ties of ``scaled / 2^shift`` for all values that occur, int64."""
    if shift == 0:
        return Ties(np.array(False), np.array(False))
    n = scaled >> shift
    tie = (scaled & ((1 << shift) - 1)) == 1 << (shift - 1)
    tie &= (n >= quotient[0]) & (n <= quotient[1])
    return Ties(np.array((tie & (n % 2 == 0)).any()), np.array((tie & (n % 2 == 1)).any()))


def _trailing_zeros(values: IntArray) -> IntArray:
    exponents: IntArray = np.frexp((values & -values).astype(np.float64))[1].astype(np.int64)
    return exponents - 1
