"""Lower ConvTranspose, which has no integer kernel, to a Conv of all phases and operators that move values.

Along one axis, with stride s, kernel W of length k and pads ``begin`` and ``end``, ConvTranspose gives

    y[o] = sum_i x[i] W[o + begin - s i]

Write ``o + begin - d = s q + r`` with a phase ``0 <= r < s`` and any fixed shift d. With ``t = q - i`` each phase is a
convolution of x alone (Shi et al., Is the deconvolution layer the same as a convolutional layer?, arXiv:1609.07009):

    y_r[q] = sum_t x[q - t] W[r + d + s t],    t from -ceil(d / s) to floor((k - 1 - d) / s)

that is a Conv with the flipped sub-kernel ``K_r[j] = W[r + d + s (P - j)]`` (zero outside of W), padded by
``P = floor((k - 1 - d) / s)`` in front. With ``d = 0`` there are ``T = ceil(k / s)`` taps. We take the largest d, for
the least to crop, with as few taps: ``d <= min(begin, k - 1)`` where ``d mod s`` is 0 or more than ``(k - 1) mod s``:

    k = 3, s = 2, pads 1, output_padding 1:   d = 1, T = 2, nothing to crop
    k = 4, s = 2, pads 1:                     d = 0, T = 2, one position to crop on each side
    s = 1:                                    d = begin, T = k: one Conv, padded by k - 1 - begin

The s * s phases of an output channel become channels of the Conv, and the phases are interleaved

- channels last: ``(N, H, W, rh * rw * channels) -> (N, H, W, rh, rw * channels) -> (N, H, rh, W, rw * channels)
  -> (N, H * rh, W * rw, channels)``, where ONNX Runtime's integer Conv is channels last too, so that the outer
  Transposes cancel and whole rows of ``rw * channels`` bytes move;
- by DepthToSpace in mode CRD, with channels ``channel * s * s + rh * s + rw``, where both H and W are dynamic, which
  the last Reshape could not say.

A Slice takes off the first ``begin - d`` and some last positions. The Conv gives ``H + P + E - T + 1`` positions a
phase, of ``s (H - 1) + k + output_padding - begin - end`` that are wanted, so the padding E behind and what is cropped
behind do not depend on H. A Relu or Clip behind the ConvTranspose, which commutes with what only moves values, follows
the Conv, where a quantized range absorbs it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, qdq, units
from qcomp.calibration.observers import Statistics
from qcomp.graph import Array
from qcomp.pipeline import Pass

logger = logging.getLogger(__name__)

_TO_THE_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class LowerConvTranspose(Pass):
    """Lower ConvTranspose to Conv and moves: y_r[q] = sum_t x[q - t] W[r + s t].

    It pays where the model is quantized; what stays in float becomes slower. Where k is no multiple of s the
    sub-kernels hold zeros, which add ``(s T / k)^2 - 1`` times the MACs; an integer MAC costs about a quarter of a
    float one.

    Args:
        waste: the largest share of MACs that may be added; beyond it the node stays.
        keep: patterns of operators that stay in float, as choose-precision has them: these stay as they are.
    """

    waste: float = 2.0
    keep: tuple[str, ...] = ()
    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        names = graph.Names(model.graph)
        gone = []
        for node in [n for n in model.graph if graph.is_op(n, "ConvTranspose")]:
            phases = self._phases(node)
            if isinstance(phases, str):
                node.metadata_props[qdq.NOT_LOWERED] = phases
                logger.info("%s: not lowered: %s", graph.describe(node), phases)
            else:
                gone += _lower(node, phases, names)
        graph.remove(model.graph, gone)
        return bool(gone)

    def _phases(self, node: ir.Node) -> _Phases | str:
        """What the node becomes, or why it stays."""
        weight, bias = graph.constant_tensor(node.inputs[1]), graph.constant(operators.bias_of(node))
        if weight is None or (bias is None and operators.bias_of(node) is not None):
            return "its weight or its bias is not constant"
        kernel = tuple(weight.shape.numpy()[2:])
        pattern = operators.matching(node, self.keep)
        reason = _unlike(node, kernel) if pattern is None else f"kept by {pattern!r}"
        if reason:
            return reason
        stride = int(_pair(node, "strides", 1)[0])
        high, wide = axes = _axes(node, kernel, stride)
        added = stride**2 * high.taps * wide.taps / (kernel[0] * kernel[1]) - 1
        if added > self.waste:
            return f"zero taps would add {added:.1f} times its multiplications; the limit is waste={self.waste:g}"
        return _Phases(node, stride, axes, weight.numpy(), bias)


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of the lowered operator.

    Args:
        taps: T, the length of a sub-kernel.
        lead: zeros in front of the kernel, so that phase r of tap m is ``(0 * lead, W, 0 ...)[s m + r]``.
        pads: before and behind, of the Conv.
        crop: how many positions the Slice takes off before and behind.
    """

    taps: int
    lead: int
    pads: tuple[int, int]
    crop: tuple[int, int]

    @classmethod
    def of(cls, kernel: int, stride: int, begin: int, end: int, output_padding: int) -> _Axis:
        """The axis, from the attributes of the ConvTranspose along it."""
        shift = min(begin, kernel - 1)
        while 0 < shift % stride <= (kernel - 1) % stride:
            shift -= 1
        lead = -shift % stride
        before = (kernel - 1 - shift) // stride
        taps = before + (shift + lead) // stride + 1
        spare = stride * (before - taps + 2) - kernel - output_padding + shift + end
        behind = max(0, -(spare // stride))
        return cls(taps, lead, (before, behind), (begin - shift, spare + stride * behind))

    def length(self, size: int | None) -> int | None:
        """How many positions the Conv gives, of so many."""
        return None if size is None else size + sum(self.pads) - self.taps + 1


@dataclass(frozen=True)
class _Phases:
    """A ConvTranspose that can be lowered.

    Args:
        stride: s, of both axes.
        axes: height and width.
        weight, bias: its constants, ``(input channels, output channels, kh, kw)`` and ``(output channels,)``.
    """

    node: ir.Node
    stride: int
    axes: tuple[_Axis, _Axis]
    weight: Array
    bias: Array | None

    @property
    def channels_last(self) -> bool:
        """Whether the channels of the Conv are ``(rh, rw, channel)``; else they are ``(channel, rh, rw)``."""
        return self.shape(1)[2:].count(None) < 2

    def kernel(self) -> Array:
        """The weight of the Conv, ``(channels * s * s, input channels, taps, taps)``."""
        inputs, outputs, *size = self.weight.shape
        pairs = list(zip(self.axes, size, strict=True))
        zeros = [(0, 0), (0, 0), *((a.lead, self.stride * a.taps - k - a.lead) for a, k in pairs)]
        (high, wide), s = (a.taps for a in self.axes), self.stride
        split = np.pad(self.weight, zeros).reshape(inputs, outputs, high, s, wide, s)
        order = (3, 5, 1, 0, 2, 4) if self.channels_last else (1, 3, 5, 0, 2, 4)
        flipped = split[:, :, ::-1, :, ::-1, :].transpose(order)
        return flipped.reshape(outputs * s * s, inputs, high, wide)

    def repeated_bias(self) -> Array | None:
        """The bias of the Conv, ``(channels * s * s,)``: each channel's for all its phases."""
        if self.bias is None:
            return None
        count = self.stride**2
        return np.tile(self.bias, count) if self.channels_last else np.repeat(self.bias, count)

    def shape(self, block: int) -> list[Any]:
        """The shape of the phases, as channels (block 1) or interleaved (block s); None where unknown."""
        source = self.node.inputs[0]
        known = source.shape if source is not None and source.shape is not None else ir.Shape([None] * 4)
        channels = self.weight.shape[1] * (self.stride // block) ** 2
        sizes = (d if isinstance(d, int) else None for d in known[2:])
        lengths = (axis.length(size) for axis, size in zip(self.axes, sizes, strict=True))
        return [known[0], channels, *(None if n is None else n * block for n in lengths)]


def _axes(node: ir.Node, kernel: tuple[int, ...], stride: int) -> tuple[_Axis, _Axis]:
    pads, extra = list(graph.attribute(node, "pads", ())) or [0] * 4, _pair(node, "output_padding", 0)
    high, wide = (_Axis.of(kernel[i], stride, int(pads[i]), int(pads[i + 2]), extra[i]) for i in (0, 1))
    return high, wide


def _unlike(node: ir.Node, kernel: tuple[int, ...]) -> str:
    """Why the attributes do not allow it; empty where they do."""
    if len(kernel) != 2 or 0 in kernel:
        return "it is not two-dimensional"
    if not (operators.handles_floats(node) and graph.is_float(node.inputs[1])):
        return "its tensors are not known to be float32"
    if "output_shape" in node.attributes or graph.attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return "its pads follow from its size (auto_pad or output_shape)"
    if any(d != 1 for d in _pair(node, "dilations", 1)):
        return "its kernel is dilated"
    if len(set(_pair(node, "strides", 1))) != 1:
        return "its strides differ, and DepthToSpace has one block size"
    if graph.attribute(node, "group", 1) != 1:
        return "its channels are grouped, and integer kernels of groups are no faster"
    if any(p < 0 for p in (*graph.attribute(node, "pads", ()), *_pair(node, "output_padding", 0))):
        return "its pads are negative"
    reason = qdq.why_float(node)
    return f"it stays in float: {reason}" if reason else ""


def _pair(node: ir.Node, name: str, default: int) -> list[int]:
    return list(graph.attribute(node, name, ())) or [default, default]


def _lower(node: ir.Node, phases: _Phases, names: graph.Names) -> list[ir.Node]:
    """Put the new nodes in place; give back those to remove."""
    clamp = units.clamp_behind(node.outputs[0])
    clamp = clamp if clamp is not None and clamp.graph is node.graph else None
    old = [node] if clamp is None else [node, clamp]
    result = old[-1].outputs[0]
    new = [_conv(phases, names)]
    if clamp is not None:
        new.append(_behind(new, clamp.op_type, clamp.inputs[1:], {}, names, phases.shape(1)))
    if phases.stride > 1 and phases.channels_last:
        _interleave(new, phases, names)
    elif phases.stride > 1:
        shuffle = {"blocksize": phases.stride, "mode": "CRD"}
        new.append(_behind(new, "DepthToSpace", [], shuffle, names, phases.shape(phases.stride)))
    if any(any(axis.crop) for axis in phases.axes):
        new.append(_behind(new, "Slice", _crop(phases, names), {}, names, result.shape))
    graph.main_graph(node).insert_before(old[-1], new)
    graph.take_over(result, new[-1].outputs[0])
    graph.detach(old)
    return old


def _conv(phases: _Phases, names: graph.Names) -> ir.Node:
    """The Conv of all phases, under the name of the ConvTranspose."""
    node, out = phases.node, str(phases.node.outputs[0].name)
    home = graph.main_graph(node)
    inputs = [node.inputs[0], graph.initializer(home, names, f"{out}_weight", phases.kernel())]
    bias = phases.repeated_bias()
    if bias is not None:
        inputs.append(graph.initializer(home, names, f"{out}_bias", bias))
    taps, pads = [a.taps for a in phases.axes], [a.pads[end] for end in (0, 1) for a in phases.axes]
    attributes: dict[str, Any] = {"kernel_shape": taps, "pads": pads, "strides": [1, 1]}
    result = _value(names.fresh(f"{out}_phases"), phases.shape(1))
    return ir.node("Conv", inputs, attributes, outputs=[result], name=node.name)


def _interleave(new: list[ir.Node], phases: _Phases, names: graph.Names) -> None:
    """Append the moves from phases as channels to phases interleaved, channels last."""
    s, (batch, _, rows, columns), (_, channels, high, wide) = (
        phases.stride,
        phases.shape(1),
        phases.shape(phases.stride),
    )
    depth = s * channels
    _transpose(new, [0, 2, 3, 1], [batch, rows, columns, s * depth], names)
    _reshape(new, [0, 0, 0, s, depth], [batch, rows, columns, s, depth], phases, names)
    _transpose(new, [0, 1, 3, 2, 4], [batch, rows, s, columns, depth], names)
    sizes = [0, *(-1 if n is None else n for n in (high, wide)), channels]
    _reshape(new, sizes, [batch, high, wide, channels], phases, names)
    _transpose(new, [0, 3, 1, 2], [batch, channels, high, wide], names)


def _transpose(new: list[ir.Node], order: list[int], shape: list[Any], names: graph.Names) -> None:
    new.append(_behind(new, "Transpose", [], {"perm": order}, names, shape))


def _reshape(new: list[ir.Node], sizes: list[int], shape: list[Any], phases: _Phases, names: graph.Names) -> None:
    home, name = graph.main_graph(phases.node), f"{phases.node.outputs[0].name}_shape"
    constant = graph.initializer(home, names, name, np.array(sizes, np.int64))
    new.append(_behind(new, "Reshape", [constant], {}, names, shape))


def _crop(phases: _Phases, names: graph.Names) -> list[ir.Value]:
    """The inputs of the Slice behind its data; ends count from behind."""
    home, name = graph.main_graph(phases.node), phases.node.outputs[0].name
    starts = [axis.crop[0] for axis in phases.axes]
    ends = [-axis.crop[1] or _TO_THE_END for axis in phases.axes]
    arrays = {"starts": starts, "ends": ends, "axes": [2, 3]}
    return [graph.initializer(home, names, f"{name}_{role}", np.array(a, np.int64)) for role, a in arrays.items()]


def _behind(
    before: list[ir.Node], kind: str, inputs: Any, attributes: dict[str, Any], names: graph.Names, shape: Any
) -> ir.Node:
    """A node that reads the last one's result."""
    data = before[-1].outputs[0]
    name = names.fresh(f"{before[0].outputs[0].name}_{kind.lower()}")
    return ir.node(kind, [data, *inputs], attributes, outputs=[_value(name, shape)], name=name)


def _value(name: str, shape: Any) -> ir.Value:
    known = None if shape is None else ir.Shape(shape)
    return ir.Value(name=name, shape=known, type=ir.TensorType(ir.DataType.FLOAT))
