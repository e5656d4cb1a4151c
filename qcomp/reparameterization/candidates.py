"""Ways to choose the scale and the shift of each channel, from its extremes and the weights that read it.

A candidate is ``(scale, shift)``, float64 ``(channels,)`` each: the consumers will read ``(x - shift) / scale``. The
geometric mean of every scale is one, since a factor for all channels alike changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qcomp.graph import Array

ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
THRESHOLDS = (0.8, 0.65, 0.5, 0.4, 0.3, 0.22, 0.15, 0.1)
_MOST = 2.0**12
"""The largest ratio of a scale to the mean one."""
_LEAST_SHARE = 1e-4
"""What is smaller than this share of the largest counts as so much: dead channels and weights of zero."""
_CLOSE = 1e-3
"""Scales and shifts this close to none are rounding."""

Candidate = tuple[Array, Array]


@dataclass(frozen=True)
class Channels:
    """What is known of the channels of a value.

    Args:
        low, high: the extremes, float64 ``(channels,)``.
        weight: the largest magnitude of the weights that read a channel, float64 ``(channels,)``.
        shifts: whether a shift is allowed.
    """

    low: Array
    high: Array
    weight: Array
    shifts: bool

    @property
    def middle(self) -> Array:
        """The shift that makes each channel's extremes symmetric; zeros where none is allowed."""
        return (self.low + self.high) / 2 if self.shifts else np.zeros(self.low.shape)

    def reach(self, shift: Array) -> Array:
        """The largest magnitude of each channel less a shift, never nothing."""
        return _floored(np.maximum(self.high - shift, shift - self.low))


def smooth(channels: Channels, alphas: tuple[float, ...], *, shifted: bool = False) -> Iterator[Candidate]:
    """``s = max|x|^a / max|w|^(1 - a)``: SmoothQuant, Xiao et al. 2022, arXiv:2211.10438, equation 4."""
    shift = channels.middle if shifted else np.zeros(channels.low.shape)
    reach, weight = channels.reach(shift), _floored(channels.weight)
    for alpha in alphas:
        yield _normalized(reach**alpha / weight ** (1 - alpha)), shift


def shift_scale(channels: Channels) -> Iterator[Candidate]:
    """The middle of the extremes as the shift, and a scale for what still exceeds a threshold.

    Outlier Suppression+, Wei et al. 2023, arXiv:2304.09145, equations 4 to 6: ``s = max(1, max|x - t| / threshold)``.
    """
    shift = channels.middle
    reach = channels.reach(shift)
    for threshold in (1.0, *THRESHOLDS):
        yield _normalized(np.maximum(reach / (threshold * reach.max()), 1.0)), shift


def per_channel(channels: Channels) -> Iterator[Candidate]:
    """A quantizer for each channel as one for the tensor: every channel fills the same range.

    RepQ-ViT, Li et al. 2023, arXiv:2212.08254, equations 5 to 8: ``s`` is the channel's quantization scale over the
    mean of all, and the shift takes its zero point to the mean of all.
    """
    if not channels.shifts:
        yield _normalized(channels.reach(np.zeros(channels.low.shape))), np.zeros(channels.low.shape)
        return
    width = _floored(channels.high - channels.low)
    zero_point = np.mean(np.clip(-channels.low / width, 0.0, 1.0))
    yield _normalized(width), channels.low + width * zero_point


def best_of_all(channels: Channels) -> Iterator[Candidate]:
    """The candidates of every method."""
    yield from smooth(channels, ALPHAS)
    if channels.shifts:
        yield from smooth(channels, ALPHAS, shifted=True)
    yield from shift_scale(channels)
    yield from per_channel(channels)


def nothing(channels: Channels) -> Candidate:
    """Everything as it is."""
    return np.ones(channels.low.shape), np.zeros(channels.low.shape)


def changes(candidate: Candidate, channels: Channels) -> bool:
    """Whether a candidate is more than rounding away from leaving everything as it is."""
    scale, shift = candidate
    width = float((channels.high - channels.low).max(initial=0.0))
    return bool(np.abs(np.log(scale)).max() > _CLOSE or np.abs(shift).max() > _CLOSE * width)


def _floored(magnitudes: Array) -> Array:
    """The magnitudes, none smaller than a share of the largest; ones where all are zero."""
    largest = float(magnitudes.max(initial=0.0))
    return np.maximum(magnitudes, _LEAST_SHARE * largest) if largest > 0 else np.ones(magnitudes.shape)


def _normalized(scale: Array) -> Array:
    normal: Array = scale / np.exp(np.mean(np.log(scale)))
    return np.clip(normal, 1 / _MOST, _MOST)
