"""Scales that are powers of two, for hardware that only shifts.

Such a scale is up to twice as coarse as a free one or clips up to half of the range: of the powers around the free
scale, the one with the least squared error is taken, by the histogram of an activation, by the elements of a weight
(Jain et al. 2020, "Trained Quantization Thresholds", arXiv:1903.08066, trains the same choice). Zero points stay free
integers: they cost an addition that a layer folds into its bias.
"""

from __future__ import annotations

import numpy as np

from qcomp.quantization import dyadic, ranges
from qcomp.quantization.histogram import Histogram
from qcomp.quantization.qparams import TINY, FloatArray, IntArray, QParams
from qcomp.quantization.qtype import QType
from qcomp.quantization.ranges import Range
from qcomp.quantization.weight_scales import IDLE, squared_error

FINER = 4
"""How many powers below the one that clips nothing are tried for a weight: a sixteenth of the range."""
_EXACT = 1 - 2.0**-20
"""What a float32 scale may exceed a power of two by and count as it."""


def at_least(value: FloatArray | float) -> FloatArray:
    """The least powers of two that are not below positive values (but for float32's rounding): float64, their shape."""
    mantissa, exponent = np.frexp(np.asarray(value, np.float64) * _EXACT)
    power: FloatArray = np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent))
    return power


def activation(histogram: Histogram, found: Range, qtype: QType, *, clip: bool = True) -> QParams:
    """The parameters of an activation, per tensor: a power of two and an even zero point.

    Args:
        histogram: the values; of those without statistics, see `uniform`.
        found: the range that a free scale would cover.
        qtype: the type.
        clip: whether a scale below the free one may clip more than the range leaves out.
    """
    top = float(at_least(float(QParams.asymmetric(*found, qtype).scale)))
    zeros = _zero_points(found, qtype)
    tried = [(scale, *_best_zero(histogram, scale, zeros, qtype)) for scale in ((top, top / 2) if clip else (top,))]
    scale, zero, _ = min(tried, key=lambda one: one[2])
    return QParams(qtype, np.asarray(max(scale, TINY), np.float32), np.asarray(zero, qtype.container))


def uniform(low: float, high: float) -> Histogram:
    """Values that lie everywhere in a range alike, for what mathematics bounds and data do not describe."""
    histogram = Histogram()
    histogram.update(np.linspace(low, high, 1024), low, high)
    return histogram


def _zero_points(found: Range, qtype: QType) -> IntArray:
    """The even zero points to choose from; a range with one end keeps zero at the end of the type."""
    even = np.arange(qtype.qmin + qtype.qmin % 2, qtype.qmax + 1, 2)
    if found[0] >= 0:
        return even[:1]
    return even[-1:] if found[1] <= 0 else even


def _best_zero(histogram: Histogram, scale: float, zeros: IntArray, qtype: QType) -> tuple[int, float]:
    """The zero point with the least squared error at a scale, and the error; the middle one of equals."""
    if not histogram.total:
        return int(zeros[0]), 0.0
    error = ranges.squared_error(histogram, (qtype.qmin - zeros) * scale, (qtype.qmax - zeros) * scale, scale)
    best = np.flatnonzero(error <= error.min() * (1 + 1e-9))
    return int(zeros[best[len(best) // 2]]), float(error.min())


def weights(
    rows: FloatArray,
    least: FloatArray,
    qtype: QType,
    *,
    search: bool = True,
    ratio: float | None = None,
    largest_input: int = 255,
    bias_steps: FloatArray | None = None,
) -> FloatArray:
    """The scale of each row of a weight matrix.

    Args:
        rows: float32 ``(channels, n)``.
        least: what the scale may not fall below, ``(channels,)``.
        qtype: the signed type of the weights.
        search: take the power with the least error; else the least one that clips nothing.
        ratio: ``y_scale / x_scale``, a power of two: the factor of the requantization is one that float32 kernels
            compute exactly. None where there is none.
        largest_input: the largest magnitude of ``x_quantized - x_zero_point``.
        bias_steps: the magnitude of the bias over ``x_scale``, ``(channels,)``.

    Returns:
        float32 ``(channels,)``.
    """
    reach = np.maximum(np.abs(rows).max(axis=1, initial=0.0).astype(np.float64) / qtype.qmax, least)
    idle = IDLE * (1.0 if ratio is None else ratio)
    scale = at_least(np.where(reach > 0, np.maximum(reach, TINY), idle))
    if search:
        scale = _least_error(rows, scale, at_least(np.maximum(least, TINY)), qtype)
    if ratio is not None:
        products = largest_input * (np.abs(rows).sum(axis=1, dtype=np.float64) / scale + rows.shape[1])
        biases = 0.0 if bias_steps is None or not bias_steps.size else bias_steps / scale
        scale = _exact_factor(scale / ratio, products + biases) * ratio
    chosen: FloatArray = np.maximum(scale, TINY).astype(np.float32)
    return chosen


def _least_error(rows: FloatArray, top: FloatArray, least: FloatArray, qtype: QType) -> FloatArray:
    """Of each row's scale and the powers below it, not below what it needs, the one with the least error."""
    best, error = top, squared_error(rows, top, qtype)
    for finer in range(1, FINER + 1):
        tried = np.maximum(top * 2.0**-finer, least)
        found = squared_error(rows, tried, qtype)
        best, error = np.where(found < error, tried, best), np.minimum(found, error)
    return best


def _exact_factor(factor: FloatArray, bound: FloatArray) -> FloatArray:
    """Powers of two that float32 kernels multiply accumulators up to ``bound`` by exactly, and int24 holds."""
    finest = dyadic.finest_shift(factor, bound)
    most = 2.0 ** (dyadic.EXACT_BITS - 1 - finest.max(initial=dyadic.SHIFT))
    exact: FloatArray = np.clip(factor, 2.0**-finest, most)
    return exact
