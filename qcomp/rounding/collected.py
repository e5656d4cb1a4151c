"""What is collected of a layer in a walk: the moments of its inputs and of the outputs it should give."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import qdq
from qcomp.graph import Array
from qcomp.rounding import bias
from qcomp.rounding.layer import Layer, limits
from qcomp.rounding.moments import Moments
from qcomp.rounding.walk import Pair, dequantized

CUT_OFF = 0.1
"""The weight of an output that a clamp cuts off in the float model: it should stay cut off."""
SELDOM = 0.1
"""The share of outputs that must be cut off for rows to get weights of their own."""
LARGEST = 1 << 24
"""Elements of the second moments of all rows, above which they share them."""
LOST = 0.25
"""The share of its input's energy that an output may lose to be looked at."""
OUTLYING = 10.0
"""How many times the median's loss that must be for an output to be left out."""
CHECKED = 4
"""Every so many batches one is left for the check."""


class Collected:
    """The moments of one layer, over the batches of a walk.

    Args:
        node: a linear layer.
        layer: its weight.
        added: what is added to its result, if anything: then the result should make good what that has lost.
        positions: how many outputs of each sample are looked at.
        clamps: whether outputs that a clamp cuts off count less.
    """

    def __init__(self, node: ir.Node, layer: Layer, added: ir.Value | None, positions: int, *, clamps: bool) -> None:
        self._node, self._layer, self._added, self._positions = node, layer, added, positions
        self._weight = layer.real(layer.shape).astype(np.float32)
        found = bias.real(node)
        self._bias = np.zeros(self._weight.shape[:2]) if found is None else found.reshape(self._weight.shape[:2])
        seen = clamps and found is not None and len(layer.nodes) == 1
        self._limits = limits(node) if seen else (-np.inf, np.inf)
        self._by_row = False
        self._batches = 0
        self.parts: list[Moments] = []
        """Of three batches in four, and of the fourth, to check with. Inputs are those of the quantized model; the
        wanted outputs leave the bias out."""

    def update(self, pairs: list[Pair], random: np.random.Generator) -> None:
        """Take in a batch: what the layer reads, and, if it is there, what is added to its result."""
        columns = self._layer.columns
        positions = columns.sample(pairs[0].real.shape, self._positions, random)
        kept = qdq.read(self._node.inputs[0])
        zero = 0 if kept is None else int(kept.zero_point.reshape(()))
        inputs = dequantized(self._node.inputs[0], columns.take(pairs[0].quantized, positions, zero))
        real = columns.take(pairs[0].real, positions)
        there = enough_is_read(inputs, real)
        inputs, real, positions = inputs[there], real[there], tuple(index[there] for index in positions)
        outputs = np.matmul(real.transpose(1, 0, 2), self._weight.transpose(0, 2, 1)).transpose(1, 0, 2)
        result = outputs + self._bias.astype(np.float32)
        inside = (result >= self._limits[0]) & (result <= self._limits[1])
        if len(pairs) > 1:
            outputs = outputs + columns.outputs(pairs[1].real - dequantized(self._added, pairs[1].quantized), positions)
        if not self.parts:
            self.parts = self._start(inside)
        self._batches += 1
        moments = self.parts[self._batches % CHECKED == 0]
        if self._by_row:
            moments.update_weighted(inputs, outputs, np.where(inside, 1, CUT_OFF).astype(np.float32))
        else:
            moments.update(inputs, outputs)

    def _start(self, inside: Array) -> list[Moments]:
        groups, rows, inputs = self._weight.shape
        self._by_row = groups * rows * inputs**2 <= LARGEST and bool(inside.mean() < 1 - SELDOM)
        sizes = (groups * rows, 1, inputs) if self._by_row else (groups, rows, inputs)
        return [Moments(*sizes) for _ in range(2)]


def enough_is_read(inputs: Array, real: Array) -> Array:
    """Of which outputs enough of the input is read, bool ``(n,)``; no weights make good what the others have lost.

    Args:
        inputs: what the quantized layer reads for each output, ``(n, groups, inputs)``.
        real: the same in the float model.

    In transformers single tokens have activations a thousand times those of others, which ranges rightly clip and
    normalizations take back (Sun et al. 2024, "Massive Activations in Large Language Models", arXiv:2402.17762).
    """
    lost, energy = (np.einsum("ngk,ngk->n", a, a, dtype=np.float64) for a in (inputs - real, real))
    there: Array = (lost <= LOST * energy) | (lost <= OUTLYING * np.median(lost))
    return there
