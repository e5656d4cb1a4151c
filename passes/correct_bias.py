"""Correct the shift of a layer's mean output that rounding its weights has caused.

Rounding changes the mean of an output channel by ``(Wq - W) E[x]``. The bias takes it back: with ``E[y]`` the mean
output of the float layer and ``E[x]`` the mean input of every weight, both from the statistics,
``b = E[y] - Wq E[x]``, exactly, padding included, since a linear layer's mean output is linear in its mean input.

``statistics`` takes ``E[x]`` from the float model. ``empirical`` measures it in the quantized model itself, layer by
layer with the earlier corrections in effect, so that what earlier layers and activations did to the means is taken back
too; where something is added to a layer's result, the sum gets the mean it has in the float model. This is the
re-estimation of normalization statistics, and bias tuning, of Hubara et al. 2020, "Improving Post Training Neural
Quantization: Layer-wise Calibration and Integer Programming" (AdaQuant), arXiv:2006.10518.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
section 4.2, in its empirical form; also Banner et al. 2019, arXiv:1810.05723.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcomp import graph, qdq
from qcomp.calibration.observers import ChannelMean, MeanState, Observation, PatchMean, Statistics
from qcomp.errors import CalibrationError
from qcomp.graph import Array
from qcomp.pipeline import Pass
from qcomp.rounding import bias
from qcomp.rounding.rounder import wanted_values
from qcomp.rounding.walk import Pair, dequantized, kept_of, walk

logger = logging.getLogger(__name__)

_Patch = PatchMean | ChannelMean


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Choose each bias so that the mean output equals that of the float layer.

    Args:
        method: where the mean input comes from: ``statistics`` of the float model, or ``empirical``, of the quantized
            model on the samples.
    """

    method: Literal["statistics", "empirical"] = "statistics"
    tolerance: ClassVar[float | None] = None

    def observe(self, model: ir.Model) -> Iterable[Observation]:
        for node in model.graph:
            patch, may_have_bias = _patch(node), graph.is_op(node, "Conv", "Gemm") or bias.value(node) is not None
            if patch is not None and may_have_bias and node.inputs[0] is not None:
                yield Observation(node.inputs[0], patch)
                yield Observation(bias.last(node).outputs[0], ChannelMean(_axis(node)))

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        found = {node: patch for node in model.graph if (patch := _correctable(node)) is not None}
        if self.method == "empirical" and found:
            return self._walk(model, stats, found, names)
        changed = []
        for node, patch in found.items():
            state = stats.find(qdq.float_name(node.inputs[0]), patch) if node.inputs[0] is not None else None
            changed.append(state is not None and _correct(node, state, stats, names))
            if state is None:
                logger.info("%s: not corrected: no statistics of its input", graph.describe(node))
        return any(changed)

    def _walk(self, model: ir.Model, stats: Statistics, found: dict[ir.Node, _Patch], names: graph.Names) -> bool:
        if stats.replay is None:
            what, hint = "it needs samples", "give calibration data, or correct-bias{method=statistics}"
            raise CalibrationError(what, where=str(self), hint=hint)
        changed: list[bool] = []
        wanted, added = wanted_values(list(found), stats.replay)

        def visit(nodes: list[ir.Node], batches: Iterator[list[list[Pair]]]) -> None:
            states = [(found[node].start(), ChannelMean(_axis(node)).start()) for node in nodes]
            for pairs in batches:
                for node, (read, lost), pair in zip(nodes, states, pairs, strict=True):
                    read.update(dequantized(node.inputs[0], pair[0].quantized))
                    if len(pair) > 1:
                        lost.update(pair[1].real - dequantized(added[node], pair[1].quantized))
            for node, (read, lost) in zip(nodes, states, strict=True):
                changed.append(_correct(node, read, stats, names, lost.mean))

        kept = {n: [(v, None), *wanted[n][1:]] for n in found if (v := kept_of(n.inputs[0])) is not None}
        walk(model, stats.replay, kept, stats.samples, visit)
        return any(changed)


def _correctable(node: ir.Node) -> _Patch | None:
    """The statistic of the input of a layer with a quantized weight and a bias."""
    patch = _patch(node)
    weight = qdq.read(node.inputs[1]) if patch is not None else None
    if weight is None or bias.real(node) is None:
        return None
    if weight.quantize is not None:
        logger.info("%s: not corrected: its weight is not rounded yet", graph.describe(node))
        return None
    return patch


def _axis(node: ir.Node) -> int:
    """That of the output's channels."""
    return 1 if node.op_type == "Conv" else -1


def _correct(
    node: ir.Node, mean_in: MeanState, stats: Statistics, names: graph.Names, lost: Array | float = 0.0
) -> bool:
    """Set a bias.

    Args:
        node: the layer.
        mean_in: what it reads.
        stats: those of the float model.
        names: of the graph.
        lost: the mean that is missing in what is added to its result, ``(channels,)``, to be made good.
    """
    weight, axis = qdq.read(node.inputs[1]), _axis(node)
    out = str(bias.last(node).outputs[0].name)
    mean_out = stats.find(out, ChannelMean(axis)) or stats.find(out.removesuffix(qdq.RAW), ChannelMean(axis))
    if weight is None or mean_out is None or not mean_in.count:
        logger.info("%s: not corrected: no statistics", graph.describe(node))
        return False
    wanted = mean_out.mean + lost - _mean_product(node, _dequantized(weight), mean_in.mean)
    return bias.write(node, wanted, names)


def _patch(node: ir.Node) -> _Patch | None:
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
    scale: Array = found.along(found.scale.astype(np.float64), integers.shape)
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
