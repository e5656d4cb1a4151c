"""Layer normalization of uint8 activations in integers: the NumPy definition and its constants.

With D elements a row, s their sum, and x as integers (the zero point cancels):

    d = D * x - s                                      D times the deviation from the mean, exact
    V = D * sum(x**2) - s**2                           D**2 times the variance, exact
    r = floor(sqrt(V * 4**j + epsilon))                epsilon = round(4**j * D**2 * e / x_scale**2), at least 1
    R = floor(2**K / r)                                one division a row
    y = clamp(floor((d * R * gamma + beta) / 2**c), 0, 255)

so that ``d * R / 2**(K - j)`` is the normalized row. gamma holds ``2**(c + j - K) / y_scale``, beta ``2**c / y_scale``
times the float parameters; beta also holds the zero point of the output and the half that makes the floor a rounding.
gamma is even and beta odd: the sum is never half-way between two integers, and this rounding is that to even too.

After I-BERT (Kim et al. 2021, arXiv:2101.01321) and I-ViT (Li and Gu 2022, arXiv:2207.01405), with exact sums and an
exact square root.

Bounds, for D up to 2**15:

- ``|d| <= 255 * D < 2**23`` and ``sum(x**2) < 2**31``: in 32 bits. ``V <= (255 * D / 2)**2``, in 64 bits.
- j is the largest with ``4**j * ((255 * D / 2)**2 + D**2 * e / x_scale**2) <= 2**61``; it is 8 or more but for tiny
  input scales. A row that is not constant has ``V >= D - 1``, so that r has 15 or more bits.
- ``|d| <= sqrt((D - 1) * V)``, for the deviations add up to zero and their squares to D * V; also
  ``|d| <= 255 * (D - 1)``. With N the lesser of ``sqrt(D - 1)`` and ``255 * (D - 1) / sqrt(D**2 * e / x_scale**2)``,
  ``|d| * R <= 1.01 * N * 2**(K - j)``: K is the largest up to 62 for which this times 2**17 is at most 2**61.
- ``|gamma| <= 2**17``, more than 2**16 for the largest, where c <= 52 allows it; ``|beta| <= 2**62``, beyond which y
  is saturated whatever d is. So the sum of the last line stays within 2**62 + 2**61.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcomp.errors import UnsupportedError
from qcomp.graph import Array
from qcomp.integer.requantize import check_zero_point, shift_right

MOST_COUNT = 1 << 15
GAMMA_BITS = 17
SUM_BITS = 61
"""The bits of ``d * R * gamma``, and of what the square root is taken of."""
MOST_SHIFT = 52


@dataclass(frozen=True)
class LayerNormalization:
    """The constants of ``qcomp.LayerNormalization``; calling it computes the definition.

    Args:
        gamma, beta: int64, in a shape that broadcasts against x.
        epsilon: at least 1, so that a constant row divides by no zero.
        count: D.
        scaling: ``4**j``.
        numerator: ``2**K``.
        shift: c.
    """

    gamma: Array
    beta: Array
    epsilon: int
    count: int
    scaling: int
    numerator: int
    shift: int

    @classmethod
    def of(
        cls,
        x_scale: float,
        gamma: Array,
        beta: Array | None,
        epsilon: float,
        y_scale: float,
        y_zero_point: int,
        *,
        count: int | None = None,
    ) -> LayerNormalization:
        """The constants for these scales and parameters.

        Args:
            x_scale: of the input.
            gamma, beta: float, in the shape of the axes normalized over, or one that broadcasts against it.
            epsilon: what is added to the variance.
            y_scale, y_zero_point: of the output, the zero point even.
            count: elements of the axes normalized over; None for those of gamma.

        Raises:
            UnsupportedError: the row is longer than 2**15, or its scales or parameters are out of reach.
        """
        check_zero_point(y_zero_point)
        count = gamma.size if count is None else count
        offset = count**2 * epsilon / x_scale**2
        j = _half_bits(count, offset)
        k = min(62, j + math.floor(SUM_BITS - GAMMA_BITS - math.log2(1.01 * _largest(count, offset))))
        weight = np.asarray(gamma, np.float64) / y_scale
        shift = _shift(weight, k - j)
        even = 2 * np.rint(np.ldexp(weight, shift + j - k - 1))
        bias = (np.zeros_like(weight) if beta is None else np.asarray(beta, np.float64)) / y_scale + y_zero_point + 0.5
        if not np.isfinite(bias).all():
            raise _refused("its bias is not finite")
        reach = 2.0 ** (SUM_BITS + 1)
        odd = np.clip(np.ldexp(bias, shift), -reach, reach).astype(np.int64) | 1
        return cls(even.astype(np.int64), odd, max(round(offset * 4**j), 1), count, 4**j, 2**k, shift)

    @property
    def constants(self) -> dict[str, Array]:
        """What the ONNX function reads behind x, in order."""
        return {
            "gamma": self.gamma,
            "beta": self.beta,
            "epsilon": np.asarray(self.epsilon, np.int64),
            "count": np.asarray(self.count, np.int32),
            "scaling": np.asarray(self.scaling, np.int64),
            "numerator": np.asarray(self.numerator, np.int64),
            "shift": np.asarray(self.shift, np.uint64),
        }

    def __call__(self, x: Array, axes: Sequence[int] = (-1,)) -> Array:
        """Layer normalization of uint8 ``x`` over its last axes, which hold ``count`` elements; uint8."""
        wide, dims = x.astype(np.int64), tuple(axes)
        total = wide.sum(axis=dims, keepdims=True)
        deviation = self.count * wide - total
        variance = self.count * (wide * wide).sum(axis=dims, keepdims=True) - total * total
        root = square_root(variance * self.scaling + self.epsilon)
        return shift_right(deviation * (self.numerator // root) * self.gamma + self.beta, self.shift)


def square_root(value: Array) -> Array:
    """``floor(sqrt(value))`` of int64, exactly: ``qcomp.SquareRoot``."""
    return np.asarray([math.isqrt(int(v)) for v in value.ravel()], np.int64).reshape(value.shape)


def _half_bits(count: int, offset: float) -> int:
    """The j of ``4**j``."""
    if not 1 <= count <= MOST_COUNT:
        raise _refused(f"a row of {count} elements: the sum of their squares does not fit in 32 bits")
    most = (255 * count / 2) ** 2 + offset
    if not most <= 2.0**SUM_BITS:
        raise _refused("epsilon is too large beside the scale of the input")
    return math.floor((SUM_BITS - math.log2(most)) / 2)


def _largest(count: int, offset: float) -> float:
    """N: what the magnitude of a normalized value cannot exceed; 1 where all are 0."""
    most = 255 * (count - 1)
    return min(math.sqrt(count - 1), most / math.sqrt(offset) if offset else math.inf) or 1.0


def _shift(weight: Array, normalized: int) -> int:
    """The c with which the largest gamma has `GAMMA_BITS` bits, for normalized rows times ``2**normalized``."""
    largest = float(np.abs(weight).max(initial=0.0))
    if not math.isfinite(largest):
        raise _refused("its weight is not finite")
    shift = MOST_SHIFT if largest == 0 else min(MOST_SHIFT, GAMMA_BITS + normalized - math.frexp(largest)[1])
    if shift < 2:
        raise _refused("its weight is too large beside the scale of the output")
    return shift


def _refused(what: str) -> UnsupportedError:
    return UnsupportedError(what, where="LayerNormalization", hint="keep it in float")
