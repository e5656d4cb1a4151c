"""Let ONNX Runtime's own kernels take the place of tables where they are proved to compute the same entries.

ONNX Runtime makes a table of QLinearSigmoid and QLinearLeakyRelu too, in float32, and looks it up several times faster
than standard operators do. Its entries are those of the table wherever no real value lies near the middle of two
integers: nearer than float32 may err. Where one does, the table stays.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.calibration.observers import Statistics
from qcomp.integer import functions
from qcomp.integer.tables import LEVELS, Origin
from qcomp.operators import MICROSOFT
from qcomp.pipeline import Pass

logger = logging.getLogger(__name__)

MARGINS = {"LeakyRelu": 1e-4, "Sigmoid": 2e-4}
"""How far from a middle, in steps, every entry must lie.

LeakyRelu is three float32 products: an error of 2^-22 of at most 256 steps, 6e-5. ONNX Runtime's logistic is a quotient
of polynomials, measured to be good to 1.7e-7, which is 4e-5 steps of 1/255, and 3e-5 for the division by the scale."""


@dataclass(frozen=True)
class UseTableKernels(Pass):
    """Replace tables of Sigmoid and LeakyRelu by ONNX Runtime's kernels, which are faster."""

    tolerance: ClassVar[float | None] = 0.0

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        done = [node for node in tuple(model.graph) if _replace(node, model.graph, names)]
        graph.remove(model.graph, done)
        if done:
            model.graph.opset_imports[MICROSOFT] = 1
            functions.detach_uncalled(model)
        return bool(done)


def _replace(node: ir.Node, target: ir.Graph, names: graph.Names) -> bool:
    origin = Origin.read(node) if graph.is_op(node, "Table", domain=functions.DOMAIN) else None
    if origin is None or origin.kind not in MARGINS:
        return False
    real = _real_entries(origin)
    table, expected = graph.constant(node.inputs[1]), np.clip(np.rint(real), 0, LEVELS - 1)
    inside = (real > -1) & (real < LEVELS)
    nearest = np.abs(real - np.floor(real) - 0.5)[inside].min(initial=1.0)
    if table is None or not np.array_equal(table, expected) or nearest < MARGINS[origin.kind]:
        logger.info("%s: stays a table: an entry lies %.1g steps from a middle", graph.describe(node), nearest)
        return False
    scale, zero = (origin.x_scale, origin.y_scale), (origin.x_zero_point, origin.y_zero_point)
    inputs = [node.inputs[0]]
    for s, z in zip(scale, zero, strict=True):
        inputs.append(graph.initializer(target, names, f"{node.name}_scale", np.asarray(s, np.float32)))
        inputs.append(graph.initializer(target, names, f"{node.name}_zero_point", np.asarray(z, np.uint8)))
    attributes = {"alpha": origin.alpha} if origin.kind == "LeakyRelu" else {}
    new = ir.node(f"QLinear{origin.kind}", inputs, attributes, domain=MICROSOFT, name=node.name)
    target.insert_before(node, new)
    graph.take_over(node.outputs[0], new.outputs[0])
    return True


def _real_entries(origin: Origin) -> graph.Array:
    """float64 ``(256,)``: what each input becomes, in steps of the output, before it is rounded and clamped."""
    x = origin.x_scale * (np.arange(float(LEVELS)) - origin.x_zero_point)
    y = (
        1 / (1 + np.exp(-x))
        if origin.kind == "Sigmoid"
        else np.where(x < 0, np.float64(np.float32(origin.alpha)), 1) * x
    )
    entries: graph.Array = y / origin.y_scale + origin.y_zero_point
    return entries
