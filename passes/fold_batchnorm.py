"""Fold BatchNormalization into the linear operator beside it.

At inference BatchNormalization is affine per channel, with ``s = scale / sqrt(var + epsilon)``:

    y = s * x + t,    t = bias - mean * s

and an affine map disappears in the weights of a linear operator before it, ``s (W x + b) + t = (s W) x + (s b + t)``,
or after it, ``W (s x + t) + b = (W s) x + (W t + b)``, the latter with ``t`` only where nothing is padded with zeros
(Jacob et al., Quantization and Training of Neural Networks, arXiv:1712.05877, section 3.2). Where neither side can
take it, a Mul and an Add remain.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.calibration.observers import Statistics
from qcomp.graph import Array
from qcomp.linear import Linear
from qcomp.pipeline import Pass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into the weights before or after it: W' = W * s, b' = (b - mean) * s + bias."""

    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        nodes = {n: _affine(n) for n in model.graph if graph.is_op(n, "BatchNormalization")}
        found = {node: affine for node, affine in nodes.items() if affine is not None}
        names = graph.Names(model.graph)
        gone = {n: None for n, affine in found.items() if _fold_before(n, affine, names)}
        gone |= {n: None for n, affine in reversed(found.items()) if n not in gone and _fold_after(n, affine, names)}
        gone |= {n: None for n, affine in found.items() if n not in gone and _to_mul_add(n, affine, names)}
        graph.remove(model.graph, gone)
        return bool(gone)


Affine = tuple[Array, Array]
"""Scale and shift, float64 ``(channels,)``."""


def _affine(node: ir.Node) -> Affine | None:
    """What the node does to each channel, or None, with the reason logged."""
    reason = _not_affine(node)
    parameters = [graph.constant(v) for v in node.inputs[1:5]]
    arrays = [p.astype(np.float64) for p in parameters if p is not None]
    if reason or len(arrays) != 4:
        logger.info("%s: not folded: %s", graph.describe(node), reason or "its parameters are not constant")
        return None
    scale, bias, mean, variance = arrays
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale / np.sqrt(variance + float(graph.attribute(node, "epsilon", 1e-5)))
    if not np.isfinite(factor).all():
        logger.info("%s: not folded: its variance is negative or zero", graph.describe(node))
        return None
    return factor, bias - mean * factor


def _not_affine(node: ir.Node) -> str:
    if graph.attribute(node, "training_mode", 0):
        return "training_mode is set"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its running statistics are read"
    return "" if graph.is_float(node.inputs[0]) else "it is not float32"


def _fold_before(node: ir.Node, affine: Affine, names: graph.Names) -> bool:
    data = node.inputs[0]
    assert data is not None
    linear = Linear.match(data.producer())
    if linear is None or graph.only_user(data) is not node or linear.output_channel_axis() != 1:
        return False
    if not linear.can_shift_output() or not linear.affine_output(names, *affine):
        return False
    graph.take_over(node.outputs[0], data)
    graph.detach([node])
    return True


def _fold_after(node: ir.Node, affine: Affine, names: graph.Names) -> bool:
    data, result = node.inputs[0], node.outputs[0]
    linear = Linear.match(graph.only_user(result))
    if data is None or linear is None or linear.node.inputs[0] is not result or linear.node.graph is not node.graph:
        return False
    if linear.input_channel_axis() != 1 or (np.any(affine[1]) and not linear.can_shift_input()):
        return False
    if not linear.affine_input(names, *affine):
        return False
    linear.node.replace_input_with(0, data)
    graph.detach([node])
    return True


def _to_mul_add(node: ir.Node, affine: Affine, names: graph.Names) -> bool:
    data, result = node.inputs[0], node.outputs[0]
    rank = graph.rank(data)
    if data is None or rank is None or rank < 2:
        logger.info("%s: not folded: the rank of its input is unknown", graph.describe(node))
        return False
    logger.info("%s: becomes Mul and Add: no linear operator beside it can take it", graph.describe(node))
    home, shape = graph.main_graph(node), (-1, *(1,) * (rank - 2))
    constants = [
        graph.initializer(home, names, f"{result.name}_{role}", array.reshape(shape).astype(np.float32))
        for role, array in zip(("scale", "shift"), affine, strict=True)
    ]
    mul = _like(node, "Mul", [data, constants[0]], names.fresh(f"{result.name}_scaled"))
    add = _like(node, "Add", [mul.outputs[0], constants[1]], None)
    home.insert_before(node, (mul, add))
    graph.take_over(result, add.outputs[0])
    graph.detach([node])
    return True


def _like(node: ir.Node, kind: str, inputs: list[ir.Value], name: str | None) -> ir.Node:
    """A node beside ``node`` whose result has the type and shape of its result."""
    old = node.outputs[0]
    result = ir.Value(name=name, shape=old.shape, type=old.type)
    return ir.Node("", kind, inputs, outputs=[result], name=f"{node.name}_{kind.lower()}")
