"""High biases move into the next layer: what a channel exceeds always needs no room in the range of activations.

Behind a Relu, for ``c`` that the channel was never below, ``relu(x - c) = relu(x) - c``, and the linear operators that
read it take ``W c`` into their biases, where they pad nothing with zeros. As in the paper ``c = max(0, mean - 3 std)``
of the channel, here from samples, and never above the least that was seen, so that it is exact for them
(Nagel et al. 2019, arXiv:1906.04721, section 4.1.3).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.calibration.channels import ChannelRange, ChannelSquare
from qcomp.calibration.observers import ChannelMean, Observation, Statistics
from qcomp.graph import Array
from qcomp.linear import Linear
from qcomp.renaming import rename_between

logger = logging.getLogger(__name__)

RENAMED = "_equalized"
"""The suffix of values that hold something else than before."""

ENOUGH = 100
"""From fewer values than this of a channel, nothing is concluded."""
WORTH = 0.01
"""A bias below this share of the activation's range stays where it is."""


@dataclass(frozen=True)
class _Relu:
    """A Relu between linear operators that can give and take shifts."""

    value: ir.Value
    axis: int
    before: Linear
    after: tuple[Linear, ...]


def observe(model: ir.Model) -> Iterable[Observation]:
    """Extremes, means and squares of what such a Relu reads."""
    for relu in _relus(model):
        for kind in (ChannelRange(relu.axis), ChannelMean(relu.axis), ChannelSquare(relu.axis)):
            yield Observation(relu.value, kind)


def absorb(model: ir.Model, stats: Statistics, names: graph.Names) -> bool:
    """Move what can be moved; say whether anything was."""
    done = [_move(relu, _excess(relu, stats), names) for relu in _relus(model)]
    return any(done)


def _relus(model: ir.Model) -> Iterable[_Relu]:
    for node in model.graph:
        if not graph.is_op(node, "Relu") or node.inputs[0] is None:
            continue
        value, out = node.inputs[0], node.outputs[0]
        before = Linear.match(value.producer())
        axis = before.output_channel_axis() if before is not None else None
        if before is None or axis is None or graph.only_user(value) is not node or out.is_graph_output():
            continue
        after = _readers(out, axis, before)
        if after and before.can_shift_output():
            yield _Relu(value, axis, before, after)


def _readers(value: ir.Value, axis: int, before: Linear) -> tuple[Linear, ...]:
    """All that read the value, if all are linear operators that can take a shift; else none."""
    found = []
    for node, index in value.uses():
        linear = Linear.match(node) if node.graph is before.node.graph and index == 0 else None
        if linear is None or not linear.can_shift_input():
            return ()
        if linear.input_channel_axis() != axis or linear.input_channels != before.channels:
            return ()
        found.append(linear)
    return tuple(found)


def _excess(relu: _Relu, stats: Statistics) -> Array | None:
    """How much of each channel can move, float64 ``(channels,)``; None where nothing is known."""
    seen = stats.find(relu.value, ChannelRange(relu.axis))
    mean = stats.find(relu.value, ChannelMean(relu.axis))
    square = stats.find(relu.value, ChannelSquare(relu.axis))
    if seen is None or mean is None or square is None or seen.low is None or mean.count < ENOUGH:
        return None
    deviation = np.sqrt(np.maximum(square.mean - mean.mean**2, 0.0))
    excess: Array = np.maximum(np.minimum(mean.mean - 3 * deviation, seen.low), 0.0)
    return np.where(excess > WORTH * seen.high.max(), excess, 0.0)


def _move(relu: _Relu, excess: Array | None, names: graph.Names) -> bool:
    if excess is None or not np.any(excess):
        return False
    if not relu.before.affine_output(names, np.ones(1), -excess):
        return False
    logger.info(
        "%s: biases of %d of %d channels absorbed",
        graph.describe(relu.before.node),
        np.count_nonzero(excess),
        excess.size,
    )
    for linear in relu.after:
        linear.affine_input(names, np.ones(1), excess)
    rename_between([relu.before.node], [linear.node for linear in relu.after], names, RENAMED)
    return True
