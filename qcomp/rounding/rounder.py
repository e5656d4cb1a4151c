"""Rounds the weights of a graph layer by layer, each for the inputs that the layers before, rounded, give it.

With ``X`` what a layer reads in the float model and ``Xq`` in the quantized one so far, both centred, the rounded
weights ``Wq`` shall make ``E |W X - Wq Xq|^2`` small. That is the error around the target ``W* = W G^T H^-1`` with
``H = cov(Xq)`` and ``G = cov(Xq, X)``: what earlier layers lost is made good where it can be. The bias takes the
difference of the means, ``b + W E[X] - Wq E[Xq]``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from qcomp import graph, qdq
from qcomp.calibration.observers import Replay
from qcomp.graph import Array
from qcomp.rounding import bias
from qcomp.rounding.collected import Collected
from qcomp.rounding.damping import best_damping
from qcomp.rounding.grid import Grid
from qcomp.rounding.layer import Layer, added_to
from qcomp.rounding.moments import Moments, Objective
from qcomp.rounding.walk import Counterparts, Pair, Values

logger = logging.getLogger(__name__)

Search = Callable[[Objective, Grid], tuple[Array, Array]]
"""Integers and scales for an objective on a grid."""


@dataclass
class Rounder:
    """Visits layers in a walk and rounds their weights.

    Args:
        layers: of every node that is visited.
        added: what is added to the result of a node, where something is: its error is made good too.
        names: of the graph.
        search: how integers and scales are found.
        positions: how many outputs of each sample are looked at.
        rescale: whether scales may change.
        clamps: whether outputs that a clamp cuts off count less.
    """

    layers: dict[ir.Node, Layer]
    added: dict[ir.Node, ir.Value]
    names: graph.Names
    search: Search
    positions: int
    rescale: bool
    clamps: bool
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    _done: dict[ir.Node, Array] = field(default_factory=dict)
    """The real values of the rounded rows, by the weight's DequantizeLinear."""

    def visit(self, nodes: list[ir.Node], batches: Iterator[list[list[Pair]]]) -> None:
        """Round the weights of a stage, and correct the biases."""
        collected = {
            n: Collected(n, self.layers[n], self.added.get(n), self.positions, clamps=self.clamps) for n in nodes
        }
        for pairs in batches:
            for node, pair in zip(nodes, pairs, strict=True):
                collected[node].update(pair, self._random)
        for node in nodes:
            layer = self.layers[node]
            dequantize = layer.found.dequantize
            if dequantize not in self._done:
                together = [collected[n] for n in nodes if self.layers[n] is layer]
                self._done[dequantize] = self._round(layer, together)
            self._correct(node, layer, collected[node])

    def _round(self, layer: Layer, collected: list[Collected]) -> Array:
        """Round one weight for all its readers; the real values of the rounded rows."""
        fitted, check = (Moments.together([c.parts[part] for c in collected]) for part in (0, 1))
        shape = fitted.means[1].shape
        weight, grid = layer.real(shape), layer.grid(shape)
        grid = grid if self.rescale else replace(grid, kind="fixed")
        centred = all(bias.real(n) is not None for n in layer.nodes)
        damping = best_damping(weight, fitted, check, grid, centred=centred)
        objective = Objective.of(weight, Moments.together([fitted, check]), centred=centred, damping=damping)
        integers, scale = self._found(layer, weight, objective, grid)
        layer.write(integers, scale, self.names)
        result: Array = integers * scale[..., None]
        error = objective.error(result).sum()
        logger.debug("%s: error %g, damping %g", graph.describe(layer.nodes[0]), error, damping)
        return result

    def _found(self, layer: Layer, weight: Array, objective: Objective, grid: Grid) -> tuple[Array, Array]:
        """Integers and scales that are proved exact, on every processor and in integers, where the nearest are."""
        nearest = np.clip(np.rint(weight / grid.current[..., None]), grid.low, grid.high)
        exact, portable = layer.is_exact(nearest, grid.current), layer.is_portable(nearest)
        for tried in (grid, grid.coarser()):
            integers, scale = self.search(objective, tried)
            if (layer.is_exact(integers, scale) or not exact) and (layer.is_portable(integers) or not portable):
                return integers, scale
        logger.info("%s: rounded to nearest: nothing better is proved exact", graph.describe(layer.nodes[0]))
        return nearest, grid.current

    def _correct(self, node: ir.Node, layer: Layer, collected: Collected) -> None:
        """Let the bias take the difference of the means."""
        old = bias.real(node)
        if old is None:
            return
        inputs, wanted = Moments.together(collected.parts).means
        rounded = self._done[layer.found.dequantize].reshape(*wanted.shape, -1)
        shift = wanted - np.einsum("gok,gk->go", rounded, inputs)
        kept = qdq.read(node.inputs[0])
        step = None
        weight = graph.constant(layer.found.dequantize.inputs[1])
        if kept is not None and weight is not None:
            step = kept.scale.reshape(()).astype(np.float64) * weight.astype(np.float64)
        bias.write(node, old + shift.ravel(), self.names, step)


def wanted_values(
    nodes: Sequence[ir.Node], replay: Replay
) -> tuple[dict[ir.Node, list[Values]], dict[ir.Node, ir.Value]]:
    """What to look at for each layer in a walk, and what is added to the results of some, of which `Rounder` tells."""
    counterparts = Counterparts(replay)
    wanted: dict[ir.Node, list[Values]] = {}
    added: dict[ir.Node, ir.Value] = {}
    for node in nodes:
        wanted[node] = [found for found in (counterparts.of(node.inputs[0]),) if found is not None]
        pair = added_to(node)
        result, other = (None, None) if pair is None else (counterparts.of(value) for value in pair)
        if pair is None or result is None or other is None:
            continue
        if not graph.is_op(result[1].producer(), "Relu", "Clip"):
            wanted[node].append(other)
            added[node] = pair[1]
    return wanted, added
