"""Softmax of uint8 activations in integers: the NumPy definition and its constants.

    t = max(x) - x                                    0 .. 255; the zero point cancels
    e = table[t] = round(2**k * exp(-x_scale * t))    the largest of a row is 2**k
    R = floor(numerator / sum(e))                     one division a row; numerator = 2**shift / y_scale
    y = clamp(floor((e * R + 2**(shift - 1)) / 2**shift), 0, 255)

After I-BERT (Kim et al. 2021, arXiv:2101.01321) and I-ViT (Li and Gu 2022, arXiv:2207.01405), whose polynomial and
shifts a table of the 256 possible exponentials replaces. The output has zero point 0. Its scale is 1/255, so that a
probability of 1 is exact; at 1/256 it would be 255/256.

Bounds, for rows of up to ``length`` elements:

- ``2**k <= sum(e) <= length * 2**k``. Up to 1024 elements k is such that the sum stays within 2**30, so that the
  table is int32 and ONNX sums in 32 bits; for longer rows, up to 65536, k = 30 and the sum is at most 2**46.
- ``numerator <= 2**61`` and ``e <= sum(e)``, hence ``e * R + 2**(shift - 1) < 2**62``.
- ``numerator >= 2**60`` at ``y_scale = 1/255``, hence ``R >= 2**14``: its floor takes less than 2**-14 of it, 0.02
  steps of 255.
- each e is off by at most 1/2, the sum by at most ``length / 2``: 2**-11 of it in 32 bits (``k >= 20``), 2**-15 in
  64 bits; at most 0.13 steps of 255.
- so ``y`` is off by less than 0.7 steps of 1/255, half a step of which is the final rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qcomp.errors import UnsupportedError
from qcomp.graph import Array
from qcomp.integer.requantize import MOST_SHIFT, shift_right

MOST_LENGTH = 1 << 16
MOST_LENGTH_32 = 1 << 10
"""Rows up to here are summed in 32 bits."""
BITS = 30
NUMERATOR_BITS = 61
Y_SCALE = 1 / 255


@dataclass(frozen=True)
class Softmax:
    """The constants of ``qcomp.Softmax``; calling it computes the definition.

    Args:
        table: int32 or int64 ``(256,)``, exponentials of ``-x_scale * index``, times ``2**k``.
        numerator: what the sum of a row divides.
        shift: of the result.
    """

    table: Array
    numerator: int
    shift: int

    @classmethod
    def of(cls, x_scale: float, *, y_scale: float = Y_SCALE, length: int = MOST_LENGTH) -> Softmax:
        """The constants for these scales.

        Args:
            x_scale: of the input.
            y_scale: of the output, whose zero point is 0.
            length: of the axis, or the largest that it may have; int32 tables serve up to 1024.

        Raises:
            UnsupportedError: the axis is longer than 65536, or the scale of the output is not in [2**-40, 1].
        """
        if not 1 <= length <= MOST_LENGTH or not 2.0**-40 <= y_scale <= 1:
            what = f"an axis of {length} elements, scale {y_scale:g}: neither is served"
            raise UnsupportedError(what, where="Softmax", hint="keep it in float")
        short = length <= MOST_LENGTH_32
        bits = BITS - (length - 1).bit_length() if short else BITS
        exponentials = np.rint(np.ldexp(np.exp(-x_scale * np.arange(256.0)), bits))
        shift = min(MOST_SHIFT, math.floor(NUMERATOR_BITS + math.log2(y_scale)))
        return cls(exponentials.astype(np.int32 if short else np.int64), round(2**shift / y_scale), shift)

    @property
    def constants(self) -> dict[str, Array]:
        """What the ONNX function reads behind x, in order."""
        numerator, shift = np.asarray(self.numerator, np.int64), np.asarray(self.shift, np.uint64)
        return {"table": self.table, "numerator": numerator, "shift": shift}

    def __call__(self, x: Array, axis: int = -1) -> Array:
        """Softmax of uint8 ``x`` over the axis; uint8."""
        wide = x.astype(np.int64)
        exponential = self.table.astype(np.int64)[wide.max(axis=axis, keepdims=True) - wide]
        factor = self.numerator // exponential.sum(axis=axis, keepdims=True)
        return shift_right(exponential * factor + (1 << (self.shift - 1)), self.shift)
