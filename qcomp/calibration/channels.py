"""Statistics of each channel: extremes and mean squares, of constant size and mergeable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qcomp.calibration.observers import Array, ChannelMeanState


@dataclass(frozen=True)
class ChannelRange:
    """The extremes over every axis but one; the state's ``low`` and ``high`` are float32 ``(channels,)``."""

    axis: int

    def start(self) -> ChannelRangeState:
        return ChannelRangeState(self.axis)


class ChannelRangeState:
    """The state of `ChannelRange`; ``low`` and ``high`` are None before anything was seen."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self.low: Any = None
        self.high: Any = None

    def update(self, batch: Array) -> None:
        """Take in a float array of any rank above the axis."""
        if batch.size:
            rows = by_channel(batch, self._axis)
            self._widen(rows.min(axis=(0, 2)), rows.max(axis=(0, 2)))

    def merge(self, other: ChannelRangeState) -> None:
        if other.low is not None:
            self._widen(other.low, other.high)

    def _widen(self, low: Array, high: Array) -> None:
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)


@dataclass(frozen=True)
class ChannelSquare:
    """The mean square over every axis but one; the state's ``mean`` is float64 ``(channels,)``."""

    axis: int

    def start(self) -> ChannelSquareState:
        return ChannelSquareState(self.axis)


class ChannelSquareState(ChannelMeanState):
    """The state of `ChannelSquare`."""

    def update(self, batch: Array) -> None:
        """Take in a float array of any rank above the axis."""
        super().update(np.square(batch))


def by_channel(batch: Array, axis: int) -> Array:
    """The array as ``(before, channels, after)``."""
    axis %= batch.ndim
    return batch.reshape(int(np.prod(batch.shape[:axis])), batch.shape[axis], -1)
