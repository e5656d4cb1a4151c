"""Rotate the features of residual streams and attention heads, so that no single one is an outlier.

A vector of features ``x`` that only linear operators write and read may be kept as ``x R``, R orthogonal: the writers
give ``W R``, the readers take ``R^T W``, and nothing is computed anew (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456;
computational invariance: SliceGPT, arXiv:2401.15024). A randomized Hadamard matrix spreads a large feature evenly, in
activations and in weights. What commutes with it:

- residual Adds, moves, means over positions;
- an RMS normalization whose scale went into its readers, ``norm(x R) = norm(x) R``;
- LayerNormalization likewise, where R keeps the ones vector, and with it the mean that is taken away;
- attention: queries and keys by one R for each head, ``(Q R)(K R)^T = Q K^T``, and values, ``P (V R) = (P V) R``.

A LayerNormalization on the residual stream itself, as in BERT, has a scale that others than linear operators read: its
stream stays, its heads are rotated. Nothing is rotated at run time, so what stands between activation functions stays.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcomp import feature_spaces, graph, repeating
from qcomp.calibration.observers import Statistics
from qcomp.feature_spaces import Constant, Space
from qcomp.linear import Linear
from qcomp.pipeline import Pass
from qcomp.quantization.rotations import Rotation, rotation
from qcomp.renaming import rename_between

logger = logging.getLogger(__name__)

MARK = "qcomp.rotated"
"""The key of a node's metadata: the features it writes or adds are rotated already."""
FEWEST = 4
"""Fewer features are not worth a rotation."""


@dataclass(frozen=True)
class Rotate(Pass):
    """Fold Hadamard rotations of residual streams and attention heads into the weights around them.

    Args:
        where: ``residual`` streams, ``attention`` heads, or ``all`` features between linear operators.
        seed: of the signs of the Hadamard matrices.
    """

    where: Literal["all", "residual", "attention"] = "all"
    seed: int = 0
    tolerance: ClassVar[float | None] = 1e-5
    moves_values: ClassVar[bool] = True

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        for space in filter(self._wants, feature_spaces.find(model.graph)):
            for scaled in space.scaled:
                scaled.fold(names)
        spaces = [s for s in feature_spaces.find(model.graph) if s.size >= FEWEST]  # now with the biases of the folds
        wanted = list(filter(self._wants, spaces))
        for space in wanted:
            _rotate(space, rotation(space.size, keeps_ones=space.keeps_ones, seed=self.seed), names)
        for space in spaces:
            if space.why_not and space.readers and space.residual:
                node = space.writers[0].node if space.writers else space.constants[0].node
                logger.info("%s: its features are not rotated: %s", graph.describe(node), space.why_not)
        return bool(wanted)

    def _wants(self, space: Space) -> bool:
        chosen = self.where == "all" or (space.residual if self.where == "residual" else space.attention)
        written, read = space.writers or space.constants, space.readers or space.attention
        if not chosen or not written or not read or space.size < FEWEST or space.why_not:
            return False
        nodes = [*(w.node for w in space.writers), *(c.node for c in space.constants)]
        return not any(MARK in node.metadata_props for node in nodes)


def _rotate(space: Space, by: Rotation, names: graph.Names) -> None:
    for linear in space.writers:
        _rotate_output(linear, by, names)
        linear.node.metadata_props[MARK] = "done"
    for constant in space.constants:
        _rotate_constant(constant, by, names)
        constant.node.metadata_props[MARK] = "done"
    for linear in space.readers:
        rotated = by.apply(linear.weight, 1 - repeating.output_axis(linear))
        graph.set_constant(linear.node, 1, rotated.astype(np.float32), names, "weight")
    written = [*(linear.node for linear in space.writers), *(constant.node for constant in space.constants)]
    rename_between(written, [linear.node for linear in space.readers], names, "_rotated")


def _rotate_output(linear: Linear, by: Rotation, names: graph.Names) -> None:
    weight, bias = by.apply(linear.weight, repeating.output_axis(linear)), graph.constant(linear.bias)
    graph.set_constant(linear.node, 1, weight.astype(np.float32), names, "weight")
    if bias is not None:
        full = np.broadcast_to(bias, np.broadcast_shapes(bias.shape, (linear.channels,)))
        graph.set_constant(linear.node, 2, by.apply(full, -1).astype(np.float32), names, "bias")


def _rotate_constant(constant: Constant, by: Rotation, names: graph.Names) -> None:
    array = graph.constant(constant.node.inputs[constant.index])
    assert array is not None
    array = array.reshape((1,) * max(-constant.axis - array.ndim, 0) + array.shape)
    shape = list(array.shape)
    shape[constant.axis] = constant.size
    rotated = by.apply(np.broadcast_to(array, shape), constant.axis).astype(np.float32)
    graph.set_constant(constant.node, constant.index, rotated, names, "rotated")
