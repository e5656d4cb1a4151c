"""The inputs of single outputs of a linear layer, at sampled positions: rows of im2col, without im2col."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.graph import Array

Positions = tuple[Array, ...]
"""The index of the sample and, for each spatial axis of the output, the position; each int64 ``(n,)``."""


@dataclass(frozen=True)
class Columns:
    """How a layer reads its input.

    Args:
        kernel, strides, dilations: one entry a spatial axis; empty for matrix products.
        pads: begins, then ends.
        groups: of a convolution.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    groups: int = 1

    def sample(self, shape: tuple[int, ...], count: int, random: np.random.Generator) -> Positions:
        """Positions of outputs, at most so many of each sample, for an input of that shape."""
        sizes = self._sizes(shape)
        total = int(np.prod(sizes, dtype=np.int64))
        if total <= count:
            chosen = np.tile(np.arange(total), (shape[0], 1))
        else:
            chosen = np.stack([random.choice(total, count, replace=False) for _ in range(shape[0])])
        rows = np.repeat(np.arange(shape[0]), chosen.shape[1])
        return (rows, *np.unravel_index(chosen.ravel(), sizes)) if sizes else (rows,)

    def take(self, array: Array, positions: Positions, zero: int | float = 0) -> Array:
        """What the outputs at these positions read, ``(n, groups, inputs of a group)``, of the array's dtype.

        Args:
            array: ``(samples, channels, *spatial)``, or rows along the last axis for matrix products.
            positions: from `sample`.
            zero: what padding holds.
        """
        if not self.kernel:
            rows = array[positions]
            return rows.reshape(len(rows), 1, -1)
        taps = [self._tap(array, positions, tap, zero) for tap in np.ndindex(*self.kernel)]
        stacked = np.stack(taps, axis=-1)
        return stacked.reshape(len(stacked), self.groups, -1)

    def outputs(self, array: Array, positions: Positions) -> Array:
        """What a value of the shape of the output holds there, ``(n, groups, outputs of a group)``."""
        where: tuple[Any, ...] = (positions[0], slice(None), *positions[1:])
        taken = array[where] if self.kernel else array[positions]
        return taken.reshape(len(taken), self.groups, -1)

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self.kernel:
            return shape[1:-1]
        dims = len(self.kernel)
        return tuple(
            (n + self.pads[i] + self.pads[dims + i] - self.dilations[i] * (self.kernel[i] - 1) - 1) // self.strides[i]
            + 1
            for i, n in enumerate(shape[2:])
        )

    def _tap(self, array: Array, positions: Positions, tap: tuple[int, ...], zero: int | float) -> Array:
        """``(n, channels)``: the channels under one weight of the kernel."""
        inside, index = np.ones(len(positions[0]), bool), []
        for i, offset in enumerate(tap):
            at = positions[1 + i] * self.strides[i] + offset * self.dilations[i] - self.pads[i]
            size = array.shape[2 + i]
            inside &= (at >= 0) & (at < size)
            index.append(np.clip(at, 0, size - 1))
        where: tuple[Any, ...] = (positions[0], slice(None), *index)
        taken: Array = array[where]
        if not inside.all():
            taken[~inside] = zero
        return taken


def columns_of(node: ir.Node) -> Columns | str:
    """How a Conv, Gemm or MatMul with a constant weight reads its input, or why that is not known here."""
    rank = graph.rank(node.inputs[1])
    if graph.is_op(node, "MatMul", "Gemm"):
        if rank != 2:
            return "its weight is no matrix"
        plain = not graph.attribute(node, "transA", 0) and graph.attribute(node, "alpha", 1.0) == 1.0
        return Columns() if plain else "it has transA or alpha"
    shape = graph.static_shape(node.inputs[1])
    if not graph.is_op(node, "Conv") or shape is None:
        return f"{node.op_type} is rounded to nearest only"
    if graph.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its padding depends on the size of its input"
    kernel = tuple(d or 1 for d in shape[2:])
    ones = (1,) * len(kernel)
    return Columns(
        kernel,
        tuple(graph.attribute(node, "strides", ones)),
        tuple(graph.attribute(node, "dilations", ones)),
        tuple(graph.attribute(node, "pads", (0,) * 2 * len(kernel))),
        int(graph.attribute(node, "group", 1)),
    )
