"""Fold Pad with zeros into the pads of the convolutions or average pools that read it.

    Conv(Pad(x, p), pads=q) = Conv(x, pads=p + q)

since a convolution pads with zeros itself. AveragePool does so only where it counts what it pads
(``count_include_pad``); one without pads of its own is told to. MaxPool pads with minus infinity: refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcomp import graph
from qcomp.calibration.observers import Statistics
from qcomp.pipeline import Pass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldPad(Pass):
    """Fold Pad with zeros into Conv and AveragePool: pads' = pads + pad."""

    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        gone = []
        for node in reversed(model.graph):
            if graph.is_op(node, "Pad"):
                reason = _fold(node)
                if reason:
                    logger.info("%s: not folded: %s", graph.describe(node), reason)
                else:
                    gone.append(node)
        graph.remove(model.graph, gone)
        return bool(gone)


def _fold(node: ir.Node) -> str:
    """Fold one Pad into all who read it, or say why not, and change nothing."""
    data, result = node.inputs[0], node.outputs[0]
    pads = _spatial_pads(node)
    if data is None or isinstance(pads, str):
        return str(pads)
    users = [user for user, _ in result.uses()]
    if not users or result.is_graph_output():
        return "its result is an output of the model, or unread"
    for user in users:
        reason = _cannot_take(user, result, pads)
        if reason:
            return f"{graph.describe(user)} {reason}"
    for user in users:
        _take(user, data, pads)
    graph.detach([node])
    return ""


def _spatial_pads(node: ir.Node) -> list[int] | str:
    """The begins, then the ends, of the spatial axes; or why they are not simply zeros around an image."""
    inputs = [*node.inputs, None, None, None][:4]
    rank = graph.rank(inputs[0])
    pads, axes = graph.constant(inputs[1]), graph.constant(inputs[3])
    if graph.attribute(node, "mode", "constant") != "constant":
        return "it does not pad with a constant"
    if rank is None or pads is None or (inputs[3] is not None and axes is None):
        return "its pads, its axes or the rank are not constant"
    if inputs[2] is not None and graph.scalar(inputs[2]) != 0:
        return "it does not pad with zeros"
    chosen = [int(a) % rank for a in axes] if axes is not None else list(range(rank))
    full = [0] * (2 * rank)
    for index, axis in enumerate(chosen):
        full[axis], full[rank + axis] = int(pads[index]), int(pads[len(chosen) + index])
    if min(full) < 0 or any(full[:2]) or any(full[rank : rank + 2]):
        return "it crops, or pads the batch or the channels"
    return [*full[2:rank], *full[rank + 2 :]]


def _cannot_take(user: ir.Node, value: ir.Value, pads: list[int]) -> str:
    if not graph.is_op(user, "Conv", "AveragePool") or [v is value for v in user.inputs].count(True) != 1:
        return "cannot pad with zeros"
    if user.inputs[0] is not value or user.graph is not value.graph:
        return "does not read it as its image, or lies in a subgraph"
    if graph.attribute(user, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "pads by itself (auto_pad)"
    return _average_cannot_take(user, pads) if user.op_type == "AveragePool" else ""


def _average_cannot_take(user: ir.Node, pads: list[int]) -> str:
    own = _own_pads(user, len(pads))
    if graph.attribute(user, "ceil_mode", 0):
        return "rounds its size up (ceil_mode)"
    if any(own) and not graph.attribute(user, "count_include_pad", 0):
        return "does not count its own pads"
    kernel = list(graph.attribute(user, "kernel_shape", ()))
    if any(p + q >= k for p, q, k in zip(pads, own, [*kernel, *kernel], strict=True)):
        return "has a kernel no larger than the pads"
    return ""


def _own_pads(user: ir.Node, count: int) -> list[int]:
    return list(graph.attribute(user, "pads", ())) or [0] * count


def _take(user: ir.Node, data: ir.Value, pads: list[int]) -> None:
    both = [p + q for p, q in zip(pads, _own_pads(user, len(pads)), strict=True)]
    user.attributes["pads"] = ir.AttrInt64s("pads", both)
    user.attributes.pop("auto_pad", None)
    if user.op_type == "AveragePool":
        user.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    user.replace_input_with(0, data)
