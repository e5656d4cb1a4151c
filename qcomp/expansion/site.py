"""What the expansions share: the graph under change, and how a result takes its place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.expansion import reading
from qcomp.expansion.emitter import Emitter
from qcomp.expansion.forms import Forms
from qcomp.expansion.requantize import Arrange
from qcomp.integer.requantize import LARGEST
from qcomp.operators import NOTED_MACS
from qcomp.quantization.qparams import IntArray

_SPAN = 1024
"""ONNX Runtime broadcasts a vector of so many elements at full speed."""


class Context:
    """One a run of the pass."""

    def __init__(self, target: ir.Graph) -> None:
        self.emitter = Emitter(target)
        self.forms = Forms(self.emitter)
        self.gone: list[ir.Node] = []
        self.merged: set[ir.Node] = set()
        """Nodes that an earlier one took over, and that the walk passes by."""

    def replace(self, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
        """Let ``new``, in the order of the file, stand for ``old``; the node goes."""
        graph.take_over(old, new)
        self.gone.append(node)

    def replace_last(self, node: ir.Node, old: ir.Value, new: ir.Value, made: Sequence[int]) -> None:
        """Let ``new``, channels-last, stand for ``old``; the node goes.

        Args:
            made: its shape behind N, 0 where dynamic.
        """
        self.forms.define(old, new, made)
        self.gone.append(node)

    def note_macs(self, product: ir.Value, layer: ir.Value, count: int) -> None:
        """Note on a product how many multiplications of one sample it stands for.

        Args:
            layer: the result, whose first size is the batch.
            count: for a batch of 1.
        """
        node, shape = product.producer(), graph.static_shape(layer)
        assert node is not None
        node.metadata_props[NOTED_MACS] = str(count * ((shape or (1,))[0] or 1))

    def absorb_clip(self, node: ir.Node) -> tuple[ir.Value, int, int]:
        """The result of a node, and its bounds: where an integer Clip alone reads it, the Clip's, which goes."""
        result = node.outputs[0]
        found = reading.clip_behind(result)
        if found is None:
            return result, 0, LARGEST
        clip, low, high = found
        self.gone.append(clip)
        self.merged.add(clip)
        return clip.outputs[0], low, high


def repeats(rows: int, channels: int) -> int:
    """How many rows of channels to join, a divisor of all rows, so that broadcasting them is fast."""
    wanted = max(1, _SPAN // channels)
    return next(k for k in range(min(rows, wanted * 2), 0, -1) if rows % k == 0)


def tiled(count: int) -> Arrange:
    """Channels behind one another, so often."""

    def arrange(numbers: IntArray) -> IntArray:
        return np.tile(numbers, count)

    return arrange


def columns(dims: int) -> Arrange:
    """Channels in front of so many other dimensions."""

    def arrange(numbers: IntArray) -> IntArray:
        return numbers.reshape(-1, *(1 for _ in range(dims)))

    return arrange
