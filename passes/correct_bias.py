"""Correct the shift of a layer's mean output that rounding its weights has caused.

Rounding changes the mean of an output channel by ``(Wq - W) E[x]``. The bias takes it back: with ``E[y]`` the mean
output of the float layer and ``E[x]`` the mean input of every weight, both from the statistics,
``b = E[y] - Wq E[x]``, exactly, padding included, since a linear layer's mean output is linear in its mean input.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
section 4.2, in its empirical form; also Banner et al. 2019, arXiv:1810.05723.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, qdq, units
from qcomp.calibration.observers import ChannelMean, Observation, PatchMean, Statistics
from qcomp.graph import Array
from qcomp.linear_qdq import BIAS_LIMIT
from qcomp.pipeline import Pass
from qcomp.quantization.qparams import along

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Choose each bias so that the mean output equals that of the float layer."""

    tolerance: ClassVar[float | None] = None

    def observe(self, model: ir.Model) -> Iterable[Observation]:
        for node in model.graph:
            patch, may_have_bias = _patch(node), graph.is_op(node, "Conv", "Gemm") or _bias_value(node) is not None
            if patch is not None and may_have_bias and node.inputs[0] is not None:
                yield Observation(node.inputs[0], patch)
                yield Observation(_last(node).outputs[0], ChannelMean(1 if node.op_type == "Conv" else -1))

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        changed = [self._correct(node, stats, names) for node in model.graph]
        return any(changed)

    def _correct(self, node: ir.Node, stats: Statistics, names: graph.Names) -> bool:
        patch = _patch(node)
        weight, bias = qdq.read(node.inputs[1] if patch is not None else None), _bias_value(node)
        if patch is None or weight is None or bias is None or node.inputs[0] is None:
            return False
        if weight.quantize is not None:
            logger.info("%s: not corrected: its weight is not rounded yet", graph.describe(node))
            return False
        axis = 1 if node.op_type == "Conv" else -1
        mean_in = stats.find(qdq.float_name(node.inputs[0]), patch)
        out = str(_last(node).outputs[0].name)
        mean_out = stats.find(out, ChannelMean(axis)) or stats.find(out.removesuffix(qdq.RAW), ChannelMean(axis))
        if mean_in is None or mean_out is None:
            logger.info("%s: not corrected: no statistics", graph.describe(node))
            return False
        wanted = mean_out.mean - _mean_product(node, _dequantized(weight), mean_in.mean)
        return _write(node, bias, wanted, names)


def _last(node: ir.Node) -> ir.Node:
    return units.bias_add(node) or units.quantized_bias_add(node) or node


def _bias_value(node: ir.Node) -> ir.Value | None:
    last = _last(node)
    if last is not node:
        return next(v for v in last.inputs if v is not node.outputs[0])
    return operators.bias_of(node)


def _patch(node: ir.Node) -> PatchMean | ChannelMean | None:
    """The statistic of a layer's input; None where the layer is not one this pass corrects."""
    if len(node.inputs) < 2 or node.inputs[0] is None:
        return None
    shape = graph.static_shape(node.inputs[1])
    if shape is None or None in shape:
        return None
    if graph.is_op(node, "MatMul", "Gemm"):
        return ChannelMean(-1) if len(shape) == 2 else None
    if not graph.is_op(node, "Conv") or graph.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    kernel = tuple(d for d in shape[2:] if d is not None)
    ones = (1,) * len(kernel)
    return PatchMean(
        kernel,
        tuple(graph.attribute(node, "strides", ones)),
        tuple(graph.attribute(node, "pads", (0,) * 2 * len(kernel))),
        tuple(graph.attribute(node, "dilations", ones)),
    )


def _dequantized(found: qdq.Reader) -> Array:
    """The weight as the quantized layer sees it, float64."""
    integers = graph.constant(found.source)
    assert integers is not None
    scale: Array = along(found.scale.astype(np.float64), found.axis, integers.ndim)
    return integers.astype(np.float64) * scale


def _mean_product(node: ir.Node, weight: Array, mean: Array) -> Array:
    """The mean of each output channel without bias, float64 ``(channels,)``."""
    if graph.is_op(node, "MatMul", "Gemm"):
        matrix = weight.T if graph.attribute(node, "transB", 0) else weight
        product: Array = mean @ matrix
        return product
    group = graph.attribute(node, "group", 1)
    inputs = mean.reshape(group, -1)
    rows = weight.reshape(group, weight.shape[0] // group, -1)
    grouped: Array = np.einsum("goi,gi->go", rows, inputs).ravel()
    return grouped


def _write(node: ir.Node, bias: ir.Value, wanted: Array, names: graph.Names) -> bool:
    """Set the bias of this node alone, on the accumulator's grid where it is quantized; say whether that changed it."""
    found = qdq.read(bias)
    if found is not None:
        steps = np.rint(wanted / found.scale.astype(np.float64))
        return _replace(found.dequantize, 0, np.clip(steps, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32), names)
    last = _last(node)
    index = next(i for i, value in enumerate(last.inputs) if value is bias)
    return _replace(last, index, wanted.astype(np.float32), names)


def _replace(node: ir.Node, index: int, new: Array, names: graph.Names) -> bool:
    old = graph.constant(node.inputs[index])
    if old is None or np.allclose(old, new, rtol=1e-6, atol=0):
        return False
    graph.set_constant(node, index, new, names, "bias")
    return True
