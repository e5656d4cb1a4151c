"""How much of a distribution a quantized type covers: four methods on one histogram, and the search for weights.

A wide range rounds coarsely, a narrow one clips. Each method takes the `Histogram` of a value and gives the range
``(low, high)``, which always holds zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qcomp.errors import unknown
from qcomp.quantization.histogram import BINS, Array, Histogram
from qcomp.quantization.qtype import QType

Range = tuple[float, float]
CANDIDATES = np.linspace(0.2, 1.0, 65)
"""The fractions of an extreme that the searches try."""
PERCENTILE = 99.99
SEARCHED_AT_ONCE = 1 << 22
"""How many weights are searched at once: the search takes several times their memory."""
LEAST_SHARE = 1e-9
"""A level that nothing falls on counts for so much of a distribution, so that no divergence is infinite for it."""


def minmax(histogram: Histogram, qtype: QType) -> Range:
    """Everything seen, nothing clipped."""
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def percentile(histogram: Histogram, qtype: QType) -> Range:
    """The range that leaves 0.01 % of the values out, half of them on each side; a bound at zero stays."""
    tail = (1 - PERCENTILE / 100) / 2
    low, high = minmax(histogram, qtype)
    least = min(histogram.quantile(tail), 0.0) if low else 0.0
    greatest = max(histogram.quantile(1 - tail), 0.0) if high else 0.0
    return least, greatest


def mse(histogram: Histogram, qtype: QType) -> Range:
    """The range with the least mean squared error: that of clipping, exactly, plus step**2 / 12 for rounding.

    Exact zeros are represented without error and do not count. Both ends are searched, on a grid of fractions of
    the extremes (the clipping analysis of Banner et al. 2019, arXiv:1810.05723, on the distribution as measured).
    """
    low, high = minmax(histogram, qtype)
    lows = CANDIDATES * low if low < 0 else np.zeros(1)
    highs = CANDIDATES * high if high > 0 else np.zeros(1)
    moments = _tail_moments(histogram)
    above = _clipped(histogram, moments, highs, upper=True)
    below = _clipped(histogram, moments, lows, upper=False)
    step = (highs[None, :] - lows[:, None]) / qtype.levels
    rounding = step**2 / 12 * (histogram.total - histogram.zeros)
    error = rounding + above[None, :] + below[:, None]
    i, j = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[i]), float(highs[j])


def entropy(histogram: Histogram, qtype: QType) -> Range:
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the clipped one.

    Migacz, "8-bit inference with TensorRT" (GTC 2017), for ranges with two ends, found one after the other, the
    longer first; the histogram has several bins a level at 8 bits, without which there would be nothing to search.
    """
    low, high = minmax(histogram, qtype)
    for upper in (True, False) if high >= -low else (False, True):
        ends = [(low, high * x) if upper else (low * x, high) for x in CANDIDATES]
        low, high = min(ends, key=lambda r: _divergence(histogram, r[0], r[1], qtype.levels + 1))
    return float(low), float(high)


METHODS: dict[str, Callable[[Histogram, QType], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def method(name: str) -> Callable[[Histogram, QType], Range]:
    """The method of that name.

    Raises:
        OptionError: unknown name.
    """
    if name not in METHODS:
        raise unknown("range method", name, METHODS)
    return METHODS[name]


def squared_error(histogram: Histogram, lows: Array, highs: Array, step: float) -> Array:
    """The expected squared error of ranges of one step: of clipping, exactly, plus step**2 / 12 for rounding.

    Args:
        histogram: of the values.
        lows, highs: the ends of each range.
        step: between two integers.

    Returns:
        float64, one for each range.
    """
    moments, edges = _tail_moments(histogram), histogram.edges
    above = _clipped(histogram, moments, np.minimum(highs, edges[-1]), upper=True)
    clipped = above + _clipped(histogram, moments, np.maximum(lows, edges[0]), upper=False)
    error: Array = clipped + step**2 / 12 * (histogram.total - histogram.zeros)
    return error


def _tail_moments(histogram: Histogram) -> Array:
    """Cumulative count, sum and sum of squares from the left: float64 ``(3, BINS + 1)``."""
    centers = np.clip(histogram.centers, histogram.low, histogram.high)
    powers = histogram.counts * np.stack([np.ones_like(centers), centers, centers**2])
    return np.concatenate([np.zeros((3, 1)), np.cumsum(powers, axis=1)], axis=1)


def _clipped(histogram: Histogram, cumulative: Array, bounds: Array, *, upper: bool) -> Array:
    """The sum of squared distances of the values beyond each bound to it."""
    edge = np.searchsorted(histogram.edges, bounds, side="left" if upper else "right") - int(not upper)
    beyond = cumulative[:, -1:] - cumulative[:, edge] if upper else cumulative[:, edge]
    count, total, squares = beyond
    result: Array = np.maximum(squares - 2 * bounds * total + bounds**2 * count, 0.0)
    return result


def _divergence(histogram: Histogram, low: float, high: float, levels: int) -> float:
    edges = histogram.edges
    first = int(np.searchsorted(edges, low, "right")) - 1
    last = int(np.searchsorted(edges, high, "right"))
    counts = _without_zeros(histogram)
    inside = counts[first:last].astype(np.float64)
    reference = inside.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    level = np.minimum(np.arange(inside.size) * levels // inside.size, levels - 1)
    mass = np.bincount(level, inside, levels)
    filled = np.bincount(level, inside > 0, levels)
    quantized = np.where(inside > 0, (mass / np.maximum(filled, 1))[level], 0.0)
    return _kullback_leibler(reference, quantized)


def _without_zeros(histogram: Histogram) -> Array:
    """The counts of all values but exact zeros, which every range represents: after a Relu they would decide all."""
    counts = histogram.counts.copy()
    counts[BINS // 2] -= histogram.zeros
    return counts


def _kullback_leibler(p: Array, q: Array) -> float:
    if not q.any():
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], LEAST_SHARE))))


def weight_reach(rows: Array, qtype: QType, *, search: bool) -> Array:
    """The magnitude that each row of a weight matrix is quantized up to, symmetric.

    Args:
        rows: float32 ``(channels, n)``.
        qtype: the narrow, signed type.
        search: look for the fraction of the largest magnitude with the least squared error; else the largest itself.

    Returns:
        float32 ``(channels,)``.
    """
    largest: Array = np.abs(rows).max(axis=1, initial=0.0)
    if not search:
        return largest
    at_once = max(SEARCHED_AT_ONCE // max(rows.shape[1], 1), 1)
    parts = [slice(i, i + at_once) for i in range(0, len(rows), at_once)]
    found = [_searched(rows[part], largest[part], qtype) for part in parts]
    return np.concatenate(found) if found else largest


def _searched(rows: Array, largest: Array, qtype: QType) -> Array:
    """The fraction of each row's largest magnitude with the least squared error, times it."""
    best: Array = largest.copy()
    least = np.full(largest.shape, np.inf)
    for fraction in np.linspace(1.0, 0.4, 25, dtype=np.float32):
        reach = fraction * largest
        step = np.where(reach > 0, reach / qtype.qmax, 1.0)[:, None]
        rounded = np.clip(np.rint(rows / step), qtype.qmin, qtype.qmax) * step
        error = np.sum((rounded - rows) ** 2, axis=1)
        better = error < least
        best, least = np.where(better, reach, best), np.where(better, error, least)
    return best
