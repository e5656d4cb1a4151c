"""Round weights to integers: the float weight behind its QuantizeLinear becomes an integer initializer.

Before: ``W -> QuantizeLinear (-> Clip) -> DequantizeLinear``; after: ``W_quantized -> DequantizeLinear``. Methods that
round better than to the nearest integer see the final grid, since the scales are fixed already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, qdq
from qcomp.calibration.observers import Replay, Statistics
from qcomp.errors import CalibrationError
from qcomp.graph import Array
from qcomp.operators import Role
from qcomp.pipeline import Pass
from qcomp.rounding import second_order
from qcomp.rounding.layer import Layer
from qcomp.rounding.rounder import Rounder, wanted_values
from qcomp.rounding.walk import Counterparts, walk

logger = logging.getLogger(__name__)

LAZY_BYTES = 1 << 24
"""Weights above this size are rounded when they are written, one at a time."""


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Replace every constant behind a QuantizeLinear by its integers.

    Args:
        method: ``nearest`` rounds half to even, as QuantizeLinear does; ``gptq`` rounds a layer's weights one after
            the other, the next making good for the last; ``learned`` then changes integers and scales for as long as
            that lowers the error of the layer's output.
        samples: how many calibration samples the last two look at.
        positions: how many outputs of each sample they look at, in every layer.
        rescale: whether they may change the weights' scales.
    """

    method: Literal["nearest", "gptq", "learned"] = "nearest"
    samples: int = 256
    positions: int = 64
    rescale: bool = True
    tolerance: ClassVar[float | None] = 1e-5

    def __post_init__(self) -> None:
        if self.method != "nearest":
            object.__setattr__(self, "tolerance", None)  # numbers change on purpose

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        found = [r for n in model.graph if (r := qdq.read(n.outputs[0])) is not None and _rounds(r)]
        layers = {} if self.method == "nearest" or not found else self._layers(model, stats)
        searched = {layer.found.dequantize for layer in layers.values()}
        for reader in found:
            if reader.dequantize not in searched:
                self._round(model.graph, names, reader)
        if layers and stats.replay is not None:
            self._search(model, stats.replay, layers, names)
        graph.remove(model.graph, [n for r in found for n in r.between])
        return bool(found)

    def _search(self, model: ir.Model, replay: Replay, layers: dict[ir.Node, Layer], names: graph.Names) -> None:
        wanted, added = wanted_values(list(layers), replay)
        learned = self.method == "learned"
        search = second_order.learned if learned else second_order.gptq
        rounder = Rounder(layers, added, names, search, self.positions, self.rescale, clamps=learned)
        walk(model, replay, wanted, self.samples, rounder.visit)

    def _layers(self, model: ir.Model, stats: Statistics) -> dict[ir.Node, Layer]:
        """The layers to search, by each of their nodes."""
        if stats.replay is None:
            what, hint = "it needs samples", "give calibration data, or round-weights{method=nearest}"
            raise CalibrationError(what, where=str(self), hint=hint)
        readers: dict[ir.Value, list[ir.Node]] = {}
        for node in model.graph:
            value = node.inputs[1] if operators.role(node) is Role.LINEAR and len(node.inputs) > 1 else None
            weight = qdq.read(value)
            if value is not None and weight is not None and _rounds(weight):
                readers.setdefault(value, []).append(node)
        result: dict[ir.Node, Layer] = {}
        counterparts = Counterparts(stats.replay)
        for nodes in readers.values():
            layer = Layer.read(nodes)
            if isinstance(layer, Layer) and None in [counterparts.of(n.inputs[0]) for n in nodes]:
                layer = "what it reads is not found in the float model"
            if isinstance(layer, str):
                logger.info("%s: rounded to nearest: %s", graph.describe(nodes[0]), layer)
            else:
                result |= dict.fromkeys(nodes, layer)
        return {n: result[n] for n in model.graph if n in result}

    def _round(self, target: ir.Graph, names: graph.Names, found: qdq.Reader) -> None:
        tensor = graph.constant_tensor(found.source)
        assert tensor is not None
        big = tensor.nbytes > LAZY_BYTES
        rounded = _lazily(tensor, found) if big else found.stored(graph.reading(tensor, nearest(found)))
        new = graph.initializer(target, names, f"{found.source.name}_rounded", rounded)
        found.dequantize.replace_input_with(0, new)


def _rounds(found: qdq.Reader) -> bool:
    return found.quantize is not None and graph.constant_tensor(found.source) is not None


def nearest(found: qdq.Reader) -> Callable[[Array], Array]:
    """A function from the float array to its nearest integers on the found grid."""
    scale, zero, bounds = found.scale, found.zero_point, found.bounds

    def rounded(array: Array) -> Array:
        info = np.iinfo(zero.dtype)
        low, high = bounds or (int(info.min), int(info.max))
        real = np.asarray(array / found.along(scale, array.shape))
        np.rint(real, out=real)
        real += found.along(zero, array.shape)
        result: Array = np.clip(real, low, high, out=real).astype(zero.dtype)
        return result

    return rounded


def _lazily(tensor: ir.TensorProtocol, found: qdq.Reader) -> ir.LazyTensor:
    function = nearest(found)
    return ir.LazyTensor(
        lambda: found.stored(graph.reading(tensor, function)),
        dtype=found.dtype,
        shape=ir.Shape(graph.shape_of(tensor)),
    )
