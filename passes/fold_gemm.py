"""Bring Gemm to its plain form: ``alpha`` into the weight, ``beta`` into the bias, the bias a vector over the columns.

``alpha * A' * B' + beta * C`` with constant B and C is ``A' * (alpha B') + (beta C)``, and a C of shape ``(1, N)``,
``(1,)`` or ``()`` is the vector ``(N,)`` that it broadcasts to. Integer kernels take only this form.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.calibration.observers import Statistics
from qcomp.pipeline import Pass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldGemm(Pass):
    """Fold Gemm's factors into its constants, and make its bias a vector."""

    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        changed = [_fold(node, names) for node in model.graph if graph.is_op(node, "Gemm")]
        return any(changed)


def _fold(node: ir.Node, names: graph.Names) -> bool:
    changed = (_fold_factor(node, names, "alpha", 1), _fold_factor(node, names, "beta", 2), _flatten(node, names))
    return any(changed)


def _fold_factor(node: ir.Node, names: graph.Names, attribute: str, index: int) -> bool:
    """Multiply a constant input by the factor and drop the attribute; a factor without its input is dropped."""
    factor = graph.attribute(node, attribute, 1.0)
    if attribute not in node.attributes:
        return False
    value = node.inputs[index] if index < len(node.inputs) else None
    if factor != 1.0 and value is not None:
        array = graph.constant(value) if graph.is_float(value) else None
        if array is None:
            logger.info("%s: %s not folded: the input is not a float32 constant", graph.describe(node), attribute)
            return False
        graph.set_constant(node, index, (array.astype(np.float64) * factor).astype(np.float32), names, attribute)
    node.attributes.pop(attribute)
    return True


def _flatten(node: ir.Node, names: graph.Names) -> bool:
    """Broadcast a constant bias to the vector of the output's columns."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    columns = (graph.static_shape(node.inputs[1]) or (None, None))[0 if graph.attribute(node, "transB", 0) else 1]
    array = graph.constant(bias) if graph.is_float(bias) else None
    if array is None or columns is None or array.shape == (columns,):
        return False
    if array.ndim == 2 and array.shape[0] != 1:
        logger.info("%s: bias not made a vector: it differs from row to row", graph.describe(node))
        return False
    graph.set_constant(node, 2, np.broadcast_to(array.reshape(-1), (columns,)).copy(), names, "bias")
    return True
