"""The error of a linear operator's output once its input and weights are quantized, measured on samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcomp.graph import Array
from qcomp.quantization import ranges
from qcomp.quantization.qtype import QType
from qcomp.reparameterization.candidates import Candidate, Channels

ROWS = 256
"""How many positions are tried."""
OUTPUTS = 256
"""How many output channels are tried."""
_FRACTIONS = (1.0, 0.85, 0.7, 0.55, 0.4)


@dataclass(frozen=True)
class Trial:
    """One value and the weights that read it.

    Args:
        rows: samples of the value, float32 ``(positions, channels)``.
        channels: the extremes over all samples.
        weights: float32 ``(channels, output channels, positions)``.
        activation: the type that the value will have.
        weight: that of the weights.
    """

    rows: Array
    channels: Channels
    weights: Array
    activation: QType
    weight: QType

    def error(self, candidate: Candidate) -> float:
        """The mean squared error of the output, less its mean, which the bias can take back."""
        scale, shift = candidate
        rows = ((self.rows - shift) / scale).astype(np.float32)
        weights = (self.weights * scale[:, None, None]).astype(np.float32)
        low, high = ((end - shift) / scale for end in (self.channels.low, self.channels.high))
        rounded = self._round(rows, min(float(low.min()), 0.0), max(float(high.max()), 0.0))
        error = _product(rounded, self._rounded_weights(weights)) - _product(rows, weights)
        return float(np.mean((error - error.mean(axis=0)) ** 2))

    def _round(self, rows: Array, low: float, high: float) -> Array:
        """The rows on the grid whose range has the least squared error."""
        tried = (_on_grid(rows, f * low, f * high, self.activation.levels) for f in _FRACTIONS)
        return min(tried, key=lambda rounded: float(np.mean((rounded - rows) ** 2)))

    def _rounded_weights(self, weights: Array) -> Array:
        by_output = np.moveaxis(weights, 1, 0)
        rows = by_output.reshape(by_output.shape[0], -1)
        reach = ranges.weight_reach(rows, self.weight, search=self.weight.bits < 8)
        step = np.where(reach > 0, reach / self.weight.qmax, 1.0)[:, None]
        rounded = np.clip(np.rint(rows / step), self.weight.qmin, self.weight.qmax) * step
        return np.moveaxis(rounded.reshape(by_output.shape), 0, 1)


def thinned(array: Array, most: int) -> Array:
    """At most so many rows, evenly spread."""
    return array[np.linspace(0, len(array) - 1, min(most, len(array))).astype(np.int64)]


def _product(rows: Array, weights: Array) -> Array:
    product: Array = rows @ weights.reshape(len(weights), -1)
    return product


def _on_grid(rows: Array, low: float, high: float, levels: int) -> Array:
    step = (high - low) / levels or 1.0
    zero = round(-low / step)
    result: Array = (np.clip(np.rint(rows / step) + zero, 0, levels) - zero) * np.float32(step)
    return result
