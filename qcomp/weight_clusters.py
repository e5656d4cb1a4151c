"""SplitQuant: a layer as the sum of three, one for each cluster of its weights, which get scales of their own.

    W x + b  =  W_lower x + (W_middle x + b) + W_upper x        each weight in one of them, zero in the others

(arXiv:2501.12428). The three stay one operator, of three times the output channels; what sums them up is one more, of
weights that are ones. The gain is in the middle cluster, whose range is shorter; with symmetric scales that of the
outer clusters is that of the whole.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph, repeating
from qcomp.graph import Array
from qcomp.linear import Linear

CLUSTERS = 3
_STEPS = 30
_SAMPLE = 1 << 16
"""How many weights, spread evenly over all, decide about the clusters."""


def boundaries(weight: Array) -> Array:
    """Where one cluster ends and the next begins: k-means in one dimension by Lloyd's steps, float64 ``(2,)``."""
    values = np.sort(weight.reshape(-1)[:: max(weight.size // _SAMPLE, 1)].astype(np.float64))
    centres = np.quantile(values, (np.arange(CLUSTERS) + 0.5) / CLUSTERS)
    for _ in range(_STEPS):
        parts = np.split(values, np.searchsorted(values, (centres[1:] + centres[:-1]) / 2))
        centres = np.array([part.mean() if part.size else old for part, old in zip(parts, centres, strict=True)])
    return np.asarray((centres[1:] + centres[:-1]) / 2)


def split(linear: Linear, names: graph.Names) -> ir.Node:
    """Let the operator compute each channel in three parts, and insert what sums them up.

    Args:
        linear: of one group, no output of the graph; a MatMul's weight is a matrix.
        names: the pass's.

    Returns:
        The operator that sums.
    """
    node, weight, axis = linear.node, linear.weight, repeating.output_axis(linear)
    cluster = np.searchsorted(boundaries(weight), weight)
    parts = [np.where(cluster == index, weight, 0) for index in range(CLUSTERS)]
    summing = _insert_sum(node, linear.channels, names)
    bias = graph.constant(linear.bias)
    if bias is not None:
        full = np.broadcast_to(bias, np.broadcast_shapes(bias.shape, (linear.channels,)))
        nothing = np.zeros_like(full)
        graph.set_constant(node, 2, np.concatenate([nothing, full, nothing], axis=-1), names, "bias")
    graph.set_constant(node, 1, np.concatenate(parts, axis=axis).astype(np.float32), names, "weight")
    return summing


def _insert_sum(node: ir.Node, channels: int, names: graph.Names) -> ir.Node:
    home, out, linear = graph.main_graph(node), node.outputs[0], Linear(node)
    ones = np.tile(np.eye(channels, dtype=np.float32), (CLUSTERS, 1))
    matrix = node.op_type in ("Gemm", "MatMul")
    kernel = ones if matrix else ones.T.reshape(channels, -1, *[1] * (len(linear.weight_shape) - 2))
    weight = graph.initializer(home, names, f"{out.name}_ones", kernel)
    result = ir.Value(name=names.fresh(f"{out.name}_summed"), shape=out.shape, type=out.type)
    kind = "MatMul" if matrix else "Conv"
    summing = ir.Node("", kind, [out, weight], outputs=[result], name=names.fresh(f"{node.name}_sum"))
    home.insert_after(node, summing)
    graph.redirect(out, result, keep=[summing])
    axis, rank = linear.output_channel_axis(), graph.rank(out)
    if axis is not None and rank is not None:
        repeating.widen(out, axis, CLUSTERS * channels)
    return summing
