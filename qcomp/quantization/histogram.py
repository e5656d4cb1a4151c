"""A mergeable histogram of constant size, over ranges that are powers of two and grow by doubling."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
BINS = 8192
_LEAST = -40


class Histogram:
    """Counts of values in ``BINS`` equal bins over ``[-2**exponent, 2**exponent)``, and the exact extremes.

    Where a value lies outside, the range doubles and pairs of bins merge, so that the counts of any two histograms
    can be added exactly, in any order. The extremes are of every value seen, the counts may be of a sample of them.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.exponent: int | None = None
        self.counts = np.zeros(BINS, np.int64)
        self.zeros = 0
        """How many of the counted values are exactly zero, which every quantizer represents without error."""

    def update(self, sample: Array, low: float, high: float) -> None:
        """Count a sample of values whose extremes, over all of them, are ``low`` and ``high`` (finite)."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(_exponent(max(abs(low), abs(high))))
        assert self.exponent is not None
        per_unit = np.ldexp(BINS / 2, -self.exponent)  # float64: in float32 a small value could round into the next bin
        index = np.floor(sample.ravel() * per_unit).astype(np.int64) + BINS // 2
        self.counts += np.bincount(index, minlength=BINS)
        self.zeros += int(sample.size - np.count_nonzero(sample))

    def merge(self, other: Histogram) -> None:
        """Add the other's counts; the other is left as it is."""
        if other.exponent is None:
            return
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self._widen(other.exponent)
        assert self.exponent is not None
        self.counts += _doubled(other.counts, self.exponent - other.exponent)
        self.zeros += other.zeros

    @property
    def edges(self) -> Array:
        """The BINS + 1 edges of the bins, float64."""
        reach = np.ldexp(1.0, self.exponent or 0)
        return np.linspace(-reach, reach, BINS + 1)

    @property
    def centers(self) -> Array:
        """The middles of the bins, float64."""
        edges = self.edges
        return (edges[1:] + edges[:-1]) / 2

    @property
    def total(self) -> int:
        """How many values are counted."""
        return int(self.counts.sum())

    def quantile(self, fraction: float) -> float:
        """The value below which that fraction of the counted values lies, to the width of a bin."""
        if not self.total:
            return 0.0
        cumulative = np.cumsum(self.counts)
        index = int(np.searchsorted(cumulative, fraction * cumulative[-1]))
        return float(np.clip(self.centers[min(index, BINS - 1)], self.low, self.high))

    def _widen(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        elif exponent > self.exponent:
            self.counts = _doubled(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _exponent(largest: float) -> int:
    """The least exponent with ``largest < 2**exponent``; at least `_LEAST`, so that a zero tensor has a range."""
    return max(int(np.frexp(largest)[1]), _LEAST) if largest else _LEAST


def _doubled(counts: Array, times: int) -> Array:
    for _ in range(times):
        merged = counts.reshape(-1, 2).sum(axis=1)
        quarter = np.zeros(BINS // 4, np.int64)
        counts = np.concatenate([quarter, merged, quarter])
    return counts
