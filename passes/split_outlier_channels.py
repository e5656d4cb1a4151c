"""Split the channels that hold the outliers of a layer's weights or activations, so that the others get finer steps.

Outlier channel splitting (Zhao et al. 2019, arXiv:1901.09504) computes channel ``c`` of the producer ``k`` times:

    weights       V_c x_c  =  sum_i V_c,i x_c,    V_c,i = V_c / k + step * (i - (k - 1) / 2) / k,    i = 0 .. k - 1
    activations   V_c x_c  =  sum_i V_c (x_c / k)

The first halves the largest weight of the reader, the second the largest activation; in both the range of a tensor
shrinks for all other channels. The offsets make the split quantization-aware (section 3.3 there): by Hermite's
identity the rounded parts add up to the rounded whole, ``sum_i round(V_c,i) = round(V_c)`` in steps, for any ``k``.

The copies come from the linear operator that computes the channel, through whatever treats each channel alone
(activation functions, pools, depthwise convolutions, Concat); parts of activations only through what commutes with a
factor: Relu, but no Clip. The channels of residual streams and of the graph's inputs stay as they are.

``what=clusters`` is SplitQuant (arXiv:2501.12428) instead: whole layers as sums of three, see `qcomp.weight_clusters`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from qcomp import channel_copies, graph, repeating, weight_clusters
from qcomp.calibration.channels import ChannelRange
from qcomp.calibration.observers import Observation, Statistics
from qcomp.channel_copies import Flows, Layout
from qcomp.graph import Array
from qcomp.linear import Linear
from qcomp.pipeline import Pass
from qcomp.quantization import qtype, ranges
from qcomp.quantization.qtype import QType

logger = logging.getLogger(__name__)

MARK = "qcomp.split"
"""The key of a node's metadata, with what was split behind a dot: its channels are not split again."""


@dataclass(frozen=True)
class SplitOutlierChannels(Pass):
    """Compute the channels that hold outliers several times, and share the weights that read them.

    Args:
        what: ``weights`` splits those of the reader, ``activations`` what it reads, ``clusters`` layers in three.
        budget: how many channels a layer's input may gain, as a share of those it has, rounded up; of clusters, how
            many weights the model may gain, as a share of those it has: 2 for all layers.
        weights: the type the weights will have, for the offsets.
        weight_ranges: how their ranges will be found, as in insert-qdq, for the offsets too. ``minmax`` is better with
            split weights: where parts are clipped alike their errors add up, those of rounding do not.
        per_channel: whether weights will have a scale for each output channel; else one for the tensor.
    """

    what: Literal["weights", "activations", "clusters"] = "weights"
    budget: float = 0.02
    weights: str = "int8"
    weight_ranges: Literal["auto", "minmax", "mse"] = "auto"
    per_channel: bool = True
    tolerance: ClassVar[float | None] = 1e-5
    moves_values: ClassVar[bool] = True

    def observe(self, model: ir.Model) -> Iterable[Observation]:
        if self.what != "activations":
            return []
        flows = self._find(model)
        read = dict.fromkeys(v for r in flows.readers if (v := r.node.inputs[0]) is not None)
        return [Observation(v, ChannelRange(flows.layouts[v].axis)) for v in read]

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        if self.what == "clusters":
            return self._cluster(model)
        kind, flows = qtype.parse_weight(self.weights, "split-outlier-channels{weights}"), self._find(model)
        for source, reason in flows.why_not.items():
            if f"{MARK}.{self.what}" not in source.metadata_props and not source.outputs[0].is_graph_output():
                logger.info("%s: its channels are not split: %s", graph.describe(source), reason)
        copies: dict[ir.Node, Array] = {}
        for layout, readers in _by_layout(flows).items():
            magnitudes = self._magnitudes(flows, readers, stats)
            if magnitudes is not None:
                self._choose(flows, layout, magnitudes, copies)
        copies = {s: c for s, c in copies.items() if c.max(initial=1) > 1}
        for source in _together(flows, copies):
            source.metadata_props[f"{MARK}.{self.what}"] = "done"
        flows.repeat(copies, graph.Names(model.graph), self._sharing(kind), divided=self.what == "activations")
        return bool(copies)

    def _cluster(self, model: ir.Model) -> bool:
        """Split layers in three, those with the largest outliers first, as far as the budget goes."""
        if any(f"{MARK}.clusters" in node.metadata_props for node in model.graph):
            return False
        names, found = graph.Names(model.graph), _clusterable(model.graph)
        left = self.budget * sum(linear.weight.size for linear in found)
        for linear in sorted(found, key=_peak, reverse=True):
            gained = (weight_clusters.CLUSTERS - 1) * linear.weight.size
            if gained > left:
                logger.info("%s: is not split in three: the budget does not hold it", graph.describe(linear.node))
                continue
            left -= gained
            for node in (linear.node, weight_clusters.split(linear, names)):
                node.metadata_props[f"{MARK}.clusters"] = "done"
        return any(f"{MARK}.clusters" in linear.node.metadata_props for linear in found)

    def _find(self, model: ir.Model) -> Flows:
        flows = channel_copies.find(model.graph, linearly=self.what == "activations")
        done = [s for v in flows.layouts.values() for s in v.sources if f"{MARK}.{self.what}" in s.metadata_props]
        flows.why_not.update(dict.fromkeys(done, "they are split already"))
        return flows

    def _magnitudes(self, flows: Flows, readers: list[Linear], stats: Statistics) -> Array | None:
        """What is to shrink, float64 ``(rows, channels)``: a row for each scale; None where it is not known."""
        if self.what == "weights":
            rows = np.concatenate([self._weight_rows(linear) for linear in readers])
        else:
            values = {str(r.node.inputs[0].name): flows.layout(r).axis for r in readers if r.node.inputs[0] is not None}
            states = [stats.find(name, ChannelRange(axis)) for name, axis in values.items()]
            if any(state is None or state.low is None for state in states):
                return None
            rows = np.stack([np.maximum(np.abs(s.low), np.abs(s.high)) for s in states]).astype(np.float64)
        return rows if np.isfinite(rows).all() else None

    def _weight_rows(self, linear: Linear) -> Array:
        """The largest magnitude of each output and input channel's weights, all readers counting alike."""
        weight = np.moveaxis(np.abs(linear.weight), repeating.output_axis(linear), 0)
        rows = weight.reshape(*weight.shape[:2], -1).max(axis=2).astype(np.float64)
        rows = rows if self.per_channel else rows.max(axis=0, keepdims=True)
        return np.asarray(rows / max(np.sqrt(np.sum(rows.max(axis=1) ** 2)), np.finfo(np.float64).tiny))

    def _choose(self, flows: Flows, layout: Layout, magnitudes: Array, copies: dict[ir.Node, Array]) -> None:
        """Add the copies for those that read one layout to those that others asked for."""
        counts, allowed = flows.counts(layout, copies), flows.allowed(layout)
        most = counts.size + math.ceil(self.budget * counts.size)
        while counts.sum() < most and (channel := _worst(magnitudes / counts, allowed)) is not None:
            counts[channel] += 1
        ends = np.cumsum([Linear(s).channels for s in layout.sources])[:-1]
        copies.update(zip(layout.sources, np.split(counts, ends), strict=True))

    def _sharing(self, kind: QType) -> Callable[[Linear, Array], Array]:
        if self.what == "activations":
            return lambda linear, counts: repeating.inputs(linear, linear.weight, counts)
        search = self.weight_ranges == "mse" or (self.weight_ranges == "auto" and kind.bits < 8)
        return lambda linear, counts: _shared(linear, counts, kind, search=search, per_channel=self.per_channel)


def _clusterable(target: ir.Graph) -> list[Linear]:
    """The linear operators of one group whose result is inside the graph."""
    found = [linear for node in target if (linear := Linear.match(node)) is not None and linear.groups == 1]
    return [
        linear
        for linear in found
        if (linear.kind != "MatMul" or len(linear.weight_shape) == 2)
        and graph.is_float(linear.node.outputs[0])
        and not linear.node.outputs[0].is_graph_output()
    ]


def _peak(linear: Linear) -> float:
    """The largest weight over their root mean square."""
    square = float(np.mean(np.square(linear.weight, dtype=np.float64)))
    return float(np.abs(linear.weight).max(initial=0.0)) / np.sqrt(square) if square > 0 else 0.0


def _by_layout(flows: Flows) -> dict[Layout, list[Linear]]:
    """The readers of equal channels, where some may be split."""
    found: dict[Layout, list[Linear]] = {}
    for linear in flows.readers:
        layout = flows.layout(linear)
        if not all(source in flows.why_not for source in layout.sources):
            found.setdefault(layout, []).append(linear)
    return found


def _together(flows: Flows, copies: dict[ir.Node, Array]) -> list[ir.Node]:
    """The sources that some reader reads together with one that is split: they have had their turn."""
    layouts = [flows.layout(linear) for linear in flows.readers]
    return list(dict.fromkeys(s for v in layouts if any(n in copies for n in v.sources) for s in v.sources))


def _worst(magnitudes: Array, allowed: Array) -> int | None:
    """The channel that holds the largest magnitude of the rows with the most to gain; None where none may be split."""
    gain = np.bincount(magnitudes.argmax(axis=1), magnitudes.max(axis=1) ** 2, magnitudes.shape[1]) * allowed
    return int(gain.argmax()) if gain.any() else None


def _shared(linear: Linear, counts: Array, kind: QType, *, search: bool, per_channel: bool) -> Array:
    """The weights with each channel's shared among its copies, so that the rounded parts add up to the rounded whole.

    Args:
        linear: the reader.
        counts: how often each of its input channels is computed.
        kind: the type of the weights; the offsets need the step that it will give.
        search: whether the range will be searched; else it is that of the largest weight.
        per_channel: whether each output channel has a step of its own.
    """
    weight, axis = linear.weight.astype(np.float64), repeating.output_axis(linear)
    along = [-1 if i == 1 - axis else 1 for i in range(weight.ndim)]
    parts = repeating.inputs(linear, weight / counts.reshape(along), counts)
    rows = np.moveaxis(parts, axis, 0).reshape(weight.shape[axis] if per_channel else 1, -1)
    step = ranges.weight_reach(rows, kind, search=search) / kind.qmax
    offsets = np.concatenate([(np.arange(k) - (k - 1) / 2) / k for k in counts])
    return np.asarray(
        parts + step.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]) * offsets.reshape(along)
    )
