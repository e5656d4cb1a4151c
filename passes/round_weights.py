"""Round weights to integers: the float weight behind its QuantizeLinear becomes an integer initializer.

Before: ``W -> QuantizeLinear (-> Clip) -> DequantizeLinear``; after: ``W_quantized -> DequantizeLinear``. Methods that
round better than to the nearest integer see the final grid, since the scales are fixed already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcomp import graph, qdq
from qcomp.calibration.observers import Statistics
from qcomp.graph import Array
from qcomp.pipeline import Pass
from qcomp.quantization.qparams import along

LAZY_BYTES = 1 << 24
"""Weights above this size are rounded when they are written, one at a time."""


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Replace every constant behind a QuantizeLinear by its integers.

    Args:
        method: ``nearest`` rounds half to even, as QuantizeLinear does.
    """

    method: Literal["nearest"] = "nearest"
    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        done: list[ir.Node] = []
        for node in tuple(model.graph):
            found = qdq.read(node.outputs[0])
            if found is None or found.quantize is None or graph.constant_tensor(found.source) is None:
                continue
            self._round(model.graph, names, found)
            done += [n for n in (found.clip, found.quantize) if n is not None]
        graph.remove(model.graph, done)
        return bool(done)

    def _round(self, target: ir.Graph, names: graph.Names, found: qdq.Reader) -> None:
        tensor = graph.constant_tensor(found.source)
        assert tensor is not None
        rounded = _lazily(tensor, found) if tensor.nbytes > LAZY_BYTES else graph.reading(tensor, nearest(found))
        new = graph.initializer(target, names, f"{found.source.name}_rounded", rounded)
        found.dequantize.replace_input_with(0, new)


def nearest(found: qdq.Reader) -> Callable[[Array], Array]:
    """A function from the float array to its nearest integers on the found grid."""
    scale, zero, axis, bounds = found.scale, found.zero_point, found.axis, found.bounds

    def rounded(array: Array) -> Array:
        info = np.iinfo(zero.dtype)
        low, high = bounds or (int(info.min), int(info.max))
        real = np.asarray(array / along(scale, axis, array.ndim))
        np.rint(real, out=real)
        real += along(zero, axis, array.ndim)
        result: Array = np.clip(real, low, high, out=real).astype(zero.dtype)
        return result

    return rounded


def _lazily(tensor: ir.TensorProtocol, found: qdq.Reader) -> ir.LazyTensor:
    function = nearest(found)
    return ir.LazyTensor(
        lambda: ir.Tensor(graph.reading(tensor, function)),
        dtype=ir.DataType.from_numpy(found.zero_point.dtype),
        shape=ir.Shape(graph.shape_of(tensor)),
    )
