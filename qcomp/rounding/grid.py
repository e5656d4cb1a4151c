"""Which integers and which scales a weight may be rounded to.

The scale stays one that the rest of the graph can live with: where the factor ``x_scale * w_scale / y_scale`` is
dyadic it stays dyadic, and proved exact; where all scales are powers of two, so are the new ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qcomp.graph import Array
from qcomp.quantization import dyadic
from qcomp.quantization.qparams import TINY

CLOSE = 2.0**-21
"""How far a float32 ratio may lie from a dyadic number, relative to it."""


@dataclass(frozen=True)
class Grid:
    """The values ``scale * integer`` of each row.

    Args:
        low, high: the least and greatest integer.
        current: the scale of each row, float64 ``(groups, rows)``.
        least: what a scale may not fall below, ``(groups, rows)``.
        kind: ``fixed`` keeps the scales, ``free`` allows any, ``dyadic`` multiples of ``unit``, ``powers`` only
            those of two.
        unit: for ``dyadic``, ``(groups, rows)``.
        pooled: whether all rows share one scale.
        coarsest: for ``dyadic``, the unit that is exact whatever the accumulator.
    """

    low: int
    high: int
    current: Array
    least: Array
    kind: Literal["fixed", "free", "dyadic", "powers"] = "fixed"
    unit: Array | None = None
    pooled: bool = False
    coarsest: float = 0.0

    def snap(self, wanted: Array) -> Array:
        """The allowed scales nearest to positive ones, float64 that float32 holds, ``(groups, rows)``."""
        wanted = np.maximum(wanted, np.maximum(self.least, TINY))
        if self.kind == "fixed":
            return self.current
        if self.kind == "powers":
            rounded = np.rint(np.log2(wanted))
            return np.exp2(np.maximum(rounded, np.ceil(np.log2(np.maximum(self.least, TINY)))))
        if self.unit is not None:
            wanted = np.maximum(np.rint(wanted / self.unit), np.ceil(np.maximum(self.least / self.unit, 1)))
            wanted = np.minimum(wanted, dyadic.LARGEST_MULTIPLIER) * self.unit
        return np.maximum(wanted, TINY).astype(np.float32).astype(np.float64)

    def pool(self, error: Array) -> Array:
        """The error that decides about the scale of each row: its own, or the sum of all."""
        return np.full_like(error, error.sum()) if self.pooled else error

    def coarser(self) -> Grid:
        """The same with the dyadic scales that are exact for every accumulator."""
        if self.unit is None:
            return self
        coarse = replace(self, unit=np.full_like(self.unit, self.coarsest))
        return replace(coarse, current=coarse.snap(self.current))


def unit_of(scale: Array, ratio: float, bound: Array) -> Array | None:
    """The step of dyadic scales, ``(groups, rows)``, where all current ones are dyadic; None where they are not.

    Args:
        scale: current ones.
        ratio: ``y_scale / x_scale``.
        bound: the largest magnitude that each row's accumulator can have, whatever its integers.
    """
    factor = scale / ratio
    if _shift_of_all(factor) is None:
        return None
    shift = dyadic.finest_shift(np.maximum(2 * factor, 1e-30).ravel(), bound.ravel())
    return np.asarray(ratio / 2.0 ** shift.reshape(scale.shape))


def _shift_of_all(factor: Array) -> int | None:
    """The least shift at which every factor is a multiple of ``2^-shift``, as integer forms find it; None if none."""
    for shift in range(dyadic.SHIFT, dyadic.LARGEST_SHIFT + 1):
        steps = np.rint(factor * 2.0**shift)
        if (np.abs(factor * 2.0**shift - steps) <= steps * CLOSE).all() and steps.min(initial=1) >= 1:
            return shift if steps.max(initial=1) <= dyadic.LARGEST_MULTIPLIER else None
    return None


def is_exact(scale: Array, ratio: float, bound: Array) -> bool:
    """Whether integer forms take these scales: dyadic, and exact in float32 for accumulators up to the bound."""
    factor = np.ravel(scale) / ratio
    shift = _shift_of_all(factor)
    if shift is None:
        return False
    found = dyadic.Dyadic(np.rint(factor * 2.0**shift).astype(np.int64), shift).reduced()
    return found.is_exact_in_float32(np.ravel(bound).astype(np.int64))
