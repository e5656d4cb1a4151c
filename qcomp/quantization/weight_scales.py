"""Scales of weights that make the factor of a requantization, ``x_scale * w_scale / y_scale``, dyadic.

The factor is not rounded afterwards: the weight's scale is chosen as ``(m / 2^c) * y_scale / x_scale``, and the weights
are rounded once, with that scale: the next one above what they want, for a smaller one would clip the largest weights,
which costs more than a slightly coarser step (measured: 1 % less is 1 dB of a network's output, 1 % more 0.2 dB).
Where the dyadic numbers are so coarse that the next one is far, the one below is taken if the weights' error is less.
"""

from __future__ import annotations

import numpy as np

from qcomp.quantization import dyadic
from qcomp.quantization.dyadic import Dyadic
from qcomp.quantization.qparams import TINY, FloatArray
from qcomp.quantization.qtype import QType

FAR = 1.1
"""A scale larger than the wanted one by this factor is compared with the one below."""
IDLE = 2.0**-8
"""The factor of a channel whose weights are all zero: its bias is rounded to so much of an output step."""


def dyadic_scales(
    rows: FloatArray,
    wanted: FloatArray,
    least: FloatArray,
    qtype: QType,
    *,
    ratio: float,
    largest_input: int,
    bias_steps: FloatArray,
) -> FloatArray:
    """The scale of each row of a weight matrix.

    Args:
        rows: float32 ``(channels, n)``.
        wanted: the scale that the row would get with free choice, ``(channels,)``; 0 where it is all zero.
        least: what the scale may not fall below, ``(channels,)``.
        qtype: the narrow, signed type of the weights.
        ratio: ``y_scale / x_scale``.
        largest_input: the largest magnitude of ``x_quantized - x_zero_point``.
        bias_steps: the magnitude of the bias over ``x_scale``, ``(channels,)`` or empty.

    Returns:
        float32 ``(channels,)``.
    """
    scale = np.where(wanted > 0, wanted, np.maximum(IDLE * ratio, least)).astype(np.float64)
    products = largest_input * (np.abs(rows).sum(axis=1, dtype=np.float64) / scale + rows.shape[1])
    biases = bias_steps / scale if bias_steps.size else 0.0
    below, above = dyadic.neighbours(scale / ratio, products + biases)
    lower, upper = _scales(below, ratio), _scales(above, ratio)
    better = (
        (upper > FAR * scale)
        & (lower >= least)
        & (squared_error(rows, lower, qtype) < squared_error(rows, upper, qtype))
    )
    chosen: FloatArray = np.where(better, lower, upper)
    return chosen


def _scales(factor: Dyadic, ratio: float) -> FloatArray:
    scales: FloatArray = np.maximum(factor.multiplier / 2.0**factor.shift * ratio, TINY).astype(np.float32)
    return scales


def squared_error(rows: FloatArray, scale: FloatArray, qtype: QType) -> FloatArray:
    """The squared error of each row, rounded to the nearest multiple of its scale that the type holds."""
    step = scale[:, None]
    rounded = np.clip(np.rint(rows / step), qtype.qmin, qtype.qmax) * step
    error: FloatArray = np.sum((rounded - rows) ** 2, axis=1)
    return error
