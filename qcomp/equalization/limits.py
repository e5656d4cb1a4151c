"""How far a channel may be scaled up, from what was seen of it.

- A Clip is not homogeneous: ``clip(s x) = s clip(x)`` holds only between its bounds. A channel that was seen beyond a
  bound, or close to it, keeps its scale; another may grow until it would come close.
- Activations have one scale a tensor: a channel that grew beyond the largest one would make it coarser for all
  others, so none does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp import graph, units
from qcomp.calibration.channels import ChannelRange
from qcomp.calibration.observers import Observation, Statistics
from qcomp.equalization.free_channels import Channels, Clamp, FreeChannels
from qcomp.graph import Array

_RANGED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Sum", "Max", "Min", "Mean", "Concat")
_RANGED_UNARY = ("Relu", "LeakyRelu", "PRelu")


@dataclass(frozen=True)
class Limits:
    """The largest scale of every variable.

    Args:
        headroom: a channel is close to a bound from a ``headroom``-th of it on: other samples may exceed what was seen.
        keep_clips: hold every channel that passes through a Clip, whatever was seen.
    """

    headroom: float
    keep_clips: bool

    def observe(self, model: ir.Model, found: FreeChannels) -> Iterable[Observation]:
        """The range of every channel of the values with a scale of their own, and of what a Clip reads."""
        if not self.keep_clips:
            for clamp in found.clamps:
                if not found.held[clamp.channels.variables].all():
                    yield Observation(clamp.value, ChannelRange(clamp.channels.axis))
        for value, channels in _ranged(model, found):
            yield Observation(value, ChannelRange(channels.axis))

    def apply(self, model: ir.Model, found: FreeChannels, stats: Statistics) -> Array:
        """The limits, float64 ``(variables,)``, infinite where nothing is known; holds what a Clip holds."""
        most = np.full(found.count, np.inf)
        for value, channels in _ranged(model, found):
            seen = _seen(stats, value, channels)
            if seen is not None:
                _bound(most, channels, np.maximum(seen.high, -seen.low))
        for clamp in found.clamps:
            self._apply_clamp(clamp, found, most, _seen(stats, clamp.value, clamp.channels))
        result: Array = np.maximum(most, 1.0)
        return result

    def _apply_clamp(self, clamp: Clamp, found: FreeChannels, most: Array, seen: Any) -> None:
        variables = clamp.channels.variables
        if self.keep_clips or seen is None or clamp.low > 0 or clamp.high <= 0:
            found.held[variables] = True
            return
        room = np.minimum(_room(seen.high, clamp.high), _room(-seen.low, -clamp.low) if clamp.low else np.inf)
        room = room / self.headroom
        found.held[variables[room < 1]] = True
        np.minimum.at(most, variables, room)
        low, high = np.clip((seen.low, seen.high), clamp.low, clamp.high)
        _bound(most, clamp.channels, np.maximum(high, -low))


def _ranged(model: ir.Model, found: FreeChannels) -> Iterable[tuple[ir.Value, Channels]]:
    """The values with a range of their own, some channel of which may be scaled."""
    for node in model.graph:
        channels = found.of.get(id(node.outputs[0])) if node.outputs else None
        if channels is None or not graph.is_op(node, *_RANGED, *_RANGED_UNARY):
            continue
        if not units.clamped(node.outputs[0]) and not found.held[channels.variables].all():
            yield node.outputs[0], channels


def _seen(stats: Statistics, value: ir.Value, channels: Channels) -> Any:
    """The range of each channel, or None."""
    seen = stats.find(value, ChannelRange(channels.axis))
    return None if seen is None or seen.low is None or len(seen.low) != len(channels.variables) else seen


def _bound(most: Array, channels: Channels, reach: Array) -> None:
    """No channel may be scaled beyond the largest of its value."""
    np.minimum.at(most, channels.variables, _room(reach, float(reach.max(initial=0.0))))


def _room(reach: Array, bound: float) -> Array:
    """How many times the reach fits into the bound, float64; infinite for a channel that reaches nothing."""
    with np.errstate(divide="ignore"):
        result: Array = np.where(reach > 0, bound / np.maximum(reach.astype(np.float64), 0.0), np.inf)
    return result
