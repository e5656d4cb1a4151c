"""Lower averages over positions to operators that have fast integer kernels, which AveragePool and ReduceMean lack.

- an AveragePool whose window is its whole, unpadded input is a GlobalAveragePool;
- so is a ReduceMean over exactly the spatial axes, with a Flatten behind it where it drops them;
- any other AveragePool that divides by one number is a depthwise Conv whose weights are ``1 / window``:
  ONNX Runtime's integer AveragePool is ten times slower than float, its depthwise Conv is not.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph, qdq
from qcomp.calibration.observers import Statistics
from qcomp.pipeline import Pass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowerAveragePool(Pass):
    """Replace AveragePool and ReduceMean over positions by GlobalAveragePool or a depthwise Conv."""

    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        gone = []
        for node in tuple(model.graph):
            if _pools_everything(node) or _means_everything(node):
                _replace(model.graph, node, names)
                gone.append(node)
            elif _convolves(node):
                _replace_by_conv(model.graph, node, names)
                gone.append(node)
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
    return axes is not None and sorted(a % rank for a in axes) == list(range(2, rank)) and not _normalizes(node)


def _normalizes(node: ir.Node) -> bool:
    """Whether the mean is that of a normalization spelled out: of squares, or subtracted from what it is the mean of.

    It is no pooling, but near zero, and ONNX Runtime fuses the whole where it stays as it is.
    """
    source = node.inputs[0]
    maker = source.producer() if source is not None else None
    squared = maker is not None and graph.is_op(maker, "Mul") and maker.inputs[0] is maker.inputs[1]
    if squared or graph.is_op(maker, "Pow"):
        return True
    return any(graph.is_op(user, "Sub") and user.inputs[0] is source for user, _ in node.outputs[0].uses())


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


def _convolves(node: ir.Node) -> bool:
    """Whether it is an AveragePool that divides by the size of its window at every position."""
    if not graph.is_op(node, "AveragePool") or not graph.is_float(node.inputs[0]) or qdq.why_float(node) is not None:
        return False
    shape = graph.static_shape(node.inputs[0])
    padded = any(graph.attribute(node, "pads", ())) or graph.attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    reason = None
    if graph.attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        reason = "its pads follow from its size (auto_pad)"
    elif padded and not graph.attribute(node, "count_include_pad", 0):
        reason = "it leaves its padding out of the average (count_include_pad=0)"
    elif graph.attribute(node, "ceil_mode", 0):
        reason = "its last windows reach beyond its input (ceil_mode)"
    elif shape is None or shape[1] is None:
        reason = "its channels are not known"
    if reason is not None:
        node.metadata_props[qdq.NOT_LOWERED] = reason
        logger.info("%s: not lowered: %s", graph.describe(node), reason)
    return reason is None


def _replace_by_conv(home: ir.Graph, node: ir.Node, names: graph.Names) -> None:
    out, source = node.outputs[0], node.inputs[0]
    channels = (graph.static_shape(source) or ())[1]
    assert channels is not None
    kernel = list(graph.attribute(node, "kernel_shape", ()))
    weight = np.full((channels, 1, *kernel), 1 / math.prod(kernel), np.float32)
    kept = {k: a for k, a in node.attributes.items() if k in ("kernel_shape", "strides", "pads", "dilations")}
    inputs = [source, graph.initializer(home, names, f"{out.name}_weight", weight)]
    conv = ir.node("Conv", inputs, {"group": channels}, name=node.name)
    conv.attributes.update(kept)
    conv.outputs[0].name = names.fresh(f"{out.name}_averaged")
    home.insert_before(node, conv)
    graph.take_over(out, conv.outputs[0])
