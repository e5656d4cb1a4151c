"""Say GlobalAveragePool where that is meant: it has a fast integer kernel, AveragePool and ReduceMean have not.

- an AveragePool whose window is its whole, unpadded input;
- a ReduceMean over exactly the spatial axes, with a Flatten behind it where it drops them.

Padding that the pool does not count changes nothing it averages over and is no obstacle where the window covers all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.calibration.observers import Statistics
from qcomp.pipeline import Pass


@dataclass(frozen=True)
class GlobalPool(Pass):
    """Replace AveragePool and ReduceMean over all positions by GlobalAveragePool."""

    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        gone = [node for node in tuple(model.graph) if _pools_everything(node) or _means_everything(node)]
        for node in gone:
            _replace(model.graph, node, names)
        graph.remove(model.graph, gone)
        return bool(gone)


def _pools_everything(node: ir.Node) -> bool:
    """Whether it is an AveragePool whose one window is the whole input."""
    shape = graph.static_shape(node.inputs[0]) if graph.is_op(node, "AveragePool") else None
    if shape is None or len(shape) < 3:
        return False
    padded = any(graph.attribute(node, "pads", ())) or graph.attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    dilated = any(d != 1 for d in graph.attribute(node, "dilations", ()))
    return not padded and not dilated and tuple(graph.attribute(node, "kernel_shape", ())) == shape[2:]


def _means_everything(node: ir.Node) -> bool:
    """Whether it is a ReduceMean over the spatial axes of images."""
    rank = graph.rank(node.inputs[0]) if graph.is_op(node, "ReduceMean") else None
    if rank is None or rank < 3 or not graph.is_float(node.inputs[0]):
        return False
    axes = _axes(node)
    return axes is not None and sorted(a % rank for a in axes) == list(range(2, rank))


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of a ReduceMean: an attribute before opset 18, then an input."""
    if "axes" in node.attributes:
        return list(graph.attribute(node, "axes", ()))
    array = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else [int(a) for a in np.ravel(array)]


def _replace(home: ir.Graph, node: ir.Node, names: graph.Names) -> None:
    """Put the new operators before the old one, under its name, and let the last stand for its output."""
    out, source = node.outputs[0], node.inputs[0]
    assert source is not None
    flat = node.op_type == "ReduceMean" and not graph.attribute(node, "keepdims", 1)
    pooled = ir.node("GlobalAveragePool", [source], name=node.name)
    pooled.outputs[0].name = names.fresh(f"{out.name}_pooled")
    dims = list(source.shape or ())
    pooled.outputs[0].shape = ir.Shape([*dims[:2], *[1] * (len(dims) - 2)])
    pooled.outputs[0].type = source.type
    new = [pooled]
    if flat:
        new.append(ir.node("Flatten", [pooled.outputs[0]], {"axis": 1}, name=names.fresh(f"{node.name}_flatten")))
        new[-1].outputs[0].name = names.fresh(f"{out.name}_flat")
    home.insert_before(node, new)
    graph.take_over(out, new[-1].outputs[0])
