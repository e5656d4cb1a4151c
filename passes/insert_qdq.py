"""Insert QuantizeLinear/DequantizeLinear pairs where integer kernels fuse them.

Every operator without a reason to stay in float gets its activations, weight and bias quantized:

- activations asymmetric per tensor, one scale for each group of values that must share one;
- weights symmetric per output channel, kept in float behind their QuantizeLinear until a later pass rounds them;
- biases as int32 with the scale ``x_scale * w_scale``, which must hold them: where it is too fine (dead channels),
  that channel's weight scale grows;
- scales such that every ``x_scale * w_scale / y_scale`` is a dyadic number ``m / 2^c``: integers alone can then compute
  what the graph says, with no second rounding of the weights (see `qcomp.quantization.dyadic`); or all of them powers
  of two, for hardware that only shifts (see `qcomp.quantization.power_of_two`);
- a Relu or Clip that only bounds what an operator computes is absorbed by the quantized range;
- Pad, and a Relu or Clip whose input others read too, stand on the integers, of 8 bits: for 16 ONNX Runtime has no
  kernel, and they stay between DequantizeLinear and QuantizeLinear.

Weights alone (``activations=none``) may have a scale for each group of inputs: DequantizeLinear in blocks, which opset
21 brought (Dettmers and Zettlemoyer 2023, arXiv:2212.09720, section 3). Up to 4 bits they are stored in 4. ONNX Runtime
makes MatMulNBits of both, which quantizes activations by itself; for quantized ones it has a kernel for neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_ir as ir

from qcomp import float_islands, graph, operators, qdq, scale_groups, units, upgrade, weight_grid
from qcomp.calibration.observers import Distribution, Observation, Statistics
from qcomp.linear_qdq import LinearWriter
from qcomp.operators import Role
from qcomp.pipeline import Pass
from qcomp.precision import integer_form
from qcomp.quantization import qtype
from qcomp.quantization.qparams import QParams
from qcomp.weight_grid import WeightGrid


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Insert Q/DQ pairs around every operator that runs in integers.

    Args:
        weights: the type of weights, ``int2`` to ``int8``.
        activations: the type of activations, ``uint4`` .. ``uint8``, ``int8``, ``uint16`` ..., or ``none`` for
            weights only.
        ranges: how ranges are found: minmax, percentile, mse or entropy.
        weight_ranges: ``mse`` searches each channel's range, ``minmax`` takes its largest weight; ``auto`` searches
            below 8 bits.
        per_channel: a scale for each output channel of a weight; else one for the tensor.
        scales: ``dyadic`` ratios, for integer-only forms; ``pow2``, powers of two, zero points being free integers;
            or ``free`` ones.
        portable: weights whose products processors without 8-bit dot products add without saturation: in 7 bits, or
            proved safe as they are.
        group: a scale for each group of so many inputs of each output channel of a MatMul or Gemm, a power of two from
            16 on; for weights only.
        container: of weights: ``int8``, which integer kernels read; ``int4``; ``auto`` is int4 for weights only of at
            most 4 bits.
        wide_ends: inputs and outputs of the model have 8 bits where activations have fewer.
    """

    weights: str = "int8"
    activations: str | None = "uint8"
    ranges: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    weight_ranges: Literal["auto", "minmax", "mse"] = "auto"
    per_channel: bool = True
    scales: Literal["free", "dyadic", "pow2"] = "dyadic"
    portable: bool = False
    group: int | None = None
    container: Literal["auto", "int8", "int4"] = "auto"
    wide_ends: bool = True
    tolerance: ClassVar[float | None] = None

    def observe(self, model: ir.Model) -> Iterable[Observation]:
        self._check_options()
        if self.activations is None:
            return []
        return [Observation(value, Distribution()) for value in integer_form.observable(model)]

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        self._check_options()
        if any(graph.is_op(n, "QuantizeLinear", "DequantizeLinear") for n in model.graph):
            return False
        writer = qdq.Writer(model.graph)
        linear = LinearWriter(writer, self._grid(model))
        nodes = _in_integers(model)
        if self.activations is None:
            return linear.weights_only(nodes)
        kind = qtype.parse(self.activations, "insert-qdq{activations}")
        ends = replace(kind, bits=8) if self.wide_ends and kind.bits < 8 else None
        finder = scale_groups.Ranges(stats, self.ranges, kind, powers=self.scales == "pow2", ends=ends)
        _Insertion(model.graph, nodes, writer, linear, bits=kind.bits).run(finder, self.scales)
        float_islands.shield(writer)
        return bool(nodes)

    def _check_options(self) -> None:
        weight_grid.parse(self.weights, self.container)
        weight_grid.check_group(self.group, alone=self.activations is None)

    def _grid(self, model: ir.Model) -> WeightGrid:
        kind, version, powers = (
            weight_grid.parse(self.weights, self.container),
            upgrade.opset(model),
            self.scales == "pow2",
        )
        weight_grid.check_opset(version, self.group, self.container)
        alone = self.activations is None
        found = WeightGrid(
            kind,
            search=self.weight_ranges == "mse" or (self.weight_ranges == "auto" and (kind.bits < 8 or powers)),
            per_channel=self.per_channel,
            portable=self.portable,
            powers=powers,
            group=self.group,
            packed=weight_grid.packs(self.container, kind, version, alone=alone),
        )
        return found.alone() if alone else found


def _in_integers(model: ir.Model) -> list[ir.Node]:
    """The operators that run in integers; a clamp only with what it alone bounds, which has no range of its own."""
    inside: dict[int, ir.Node] = {}
    masked = integer_form.masks(model)
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        alone = value is not None and units.clamped(value) and id(value.producer()) not in inside
        if _may_run_in_integers(node, masked) and not alone:
            inside[id(node)] = node
    return list(inside.values())


def _may_run_in_integers(node: ir.Node, masked: set[int]) -> bool:
    if operators.find(node) is None or qdq.why_float(node) is not None or integer_form.why_not(node) is not None:
        return False
    return not any(id(v) in masked for v in (*node.inputs, *node.outputs))


class _Insertion:
    """One run of the pass: which values are quantized, with what scale, and the edits."""

    def __init__(
        self, target: ir.Graph, nodes: list[ir.Node], writer: qdq.Writer, linear: LinearWriter, *, bits: int
    ) -> None:
        self.on_integers = (Role.CLAMP, Role.ON_INTEGERS) if bits <= 8 else ()
        self.graph, self.nodes, self.writer, self.linear = target, nodes, writer, linear
        self.inside = {id(n) for n in nodes}
        self.absorbed = {id(clamp): node for node in nodes if (clamp := self._absorbs(node)) is not None}
        self.bias_adds = {id(add): node for node in nodes if (add := units.bias_add(node)) is not None}
        self.moved: list[ir.Node] = []
        """Those that now stand on the integers, whose float forms go in the end."""
        self.scales: dict[int, qdq.Scale] = {}
        self.integers: dict[int, ir.Value] = {}
        """The quantized tensor of each value, by the value's id."""
        self.result_scales: dict[int, float] = {}
        """The scale of each value, by the value's id, where those of the weights are to fit it."""

    def run(self, finder: scale_groups.Ranges, scales: str) -> None:
        values = self._quantized_values()
        compute = [n for n in self.nodes if id(n) not in self.bias_adds and id(n) not in self.absorbed]
        params = scale_groups.assign(values, compute, finder)
        if scales == "dyadic":
            scale_groups.align(params, compute, self._result)
        if scales != "free":
            self.result_scales = {key: float(found.scale) for key, (found, _) in params.items()}
        shared: dict[int, qdq.Scale] = {}
        for value in values:
            found, first = params[id(value)]
            if id(found) not in shared:
                shared[id(found)] = self.writer.scale(found, str(first.name))
            self.scales[id(value)] = shared[id(found)]
        made = {id(v) for n in self.nodes for v in n.outputs}
        for value in [v for v in values if id(v) not in made]:
            self._insert(value, value)
        for node in self.nodes:
            self._rewrite(node)
        absorbed = [n for n in self.nodes if id(n) in self.absorbed and id(n.outputs[0]) in self.scales]
        graph.remove(self.graph, [*absorbed, *self.moved])

    def _absorbs(self, node: ir.Node) -> ir.Node | None:
        """The clamp that the node's quantized output range may absorb."""
        clamp = units.clamp_behind(self._last(node).outputs[0]) if operators.computes(node) else None
        return clamp if id(clamp) in self.inside else None

    def _last(self, node: ir.Node) -> ir.Node:
        """The node itself, or the Add of its bias."""
        add = units.bias_add(node)
        return add if add is not None and id(add) in self.inside else node

    def _result(self, node: ir.Node) -> ir.Value:
        """The value that stands for the output of a computing node: that of its absorbed clamp, if it has one."""
        return (self._absorbs(node) or self._last(node)).outputs[0]

    def _quantized_values(self) -> list[ir.Value]:
        found: dict[int, ir.Value] = {}
        for node in self.nodes:
            if id(node) not in self.absorbed and id(node) not in self.bias_adds:
                found.update((id(v), v) for _, v in operators.activations(node))
        for node in self.nodes:
            if id(node) in self.absorbed or id(node) in self.bias_adds:
                continue
            row = operators.find(node)
            outs = [self._result(node)] if len(node.outputs) == 1 else list(node.outputs)
            for out in outs:
                if graph.is_float(out) and not (row and row.float_output and not out.is_graph_output()):
                    found[id(out)] = out
        return [v for v in found.values() if v.uses() or v.is_graph_output()]

    def _rewrite(self, node: ir.Node) -> None:
        if id(node) in self.absorbed or id(node) in self.bias_adds:
            return
        if operators.role(node) in self.on_integers:
            self._move_onto_integers(node)
            return
        last, result = self._last(node), self._result(node)  # a quantized weight no longer shows what is its bias
        if operators.role(node) is Role.LINEAR:
            self.linear.quantize(node, last, self.result_scales.get(id(result)))
        if len(node.outputs) > 1:
            for out in node.outputs:
                if id(out) in self.scales:
                    self._insert(out, out)
        elif id(result) in self.scales:
            self._insert(last.outputs[0], result)

    def _insert(self, raw: ir.Value, value: ir.Value) -> None:
        """Quantize ``raw`` and let its dequantized form stand for ``value`` (what an absorbed clamp computes)."""
        scale, name = self.scales[id(value)], str(value.name)
        users = tuple(value.uses())
        bounds = self._needed_bounds(raw, value, scale.params)
        if bounds is not None and not self.on_integers:
            self.absorbed.pop(id(value.producer()))
            raw, bounds = value, None
        integers = self.writer.quantize(raw, scale, name)
        if bounds is not None:
            integers = self.writer.clip(integers, *bounds, scale, name)
        self._stand_for(value, integers, users)

    def _stand_for(self, value: ir.Value, integers: ir.Value, users: Iterable[tuple[ir.Node, int]]) -> None:
        """Let every integer reader of a value, and where an integer node makes it every reader, read its DQ."""
        self.integers[id(value)] = integers
        producer = value.producer()
        everybody = producer is not None and id(producer) in self.inside
        readers = []
        for user, index in users:
            if graph.is_op(user, "Shape") and everybody:
                user.replace_input_with(index, integers)
            elif self._reads(user, index, value, everybody=everybody):
                readers.append((user, index))
        becomes_output = value.is_graph_output() and everybody
        if not readers and not becomes_output:
            return
        dequantized = self.writer.dequantize(integers, self.scales[id(value)], str(value.name))
        for user, index in readers:
            user.replace_input_with(index, dequantized)
        if becomes_output:
            self._become_output(value, dequantized)

    def _reads(self, user: ir.Node, index: int, value: ir.Value, *, everybody: bool) -> bool:
        """Whether a reader of a value must read its dequantized form: not those that will read the integers."""
        inside = id(user) in self.inside
        if inside and operators.role(user) in self.on_integers:
            return False
        return everybody or (inside and (index, value) in operators.activations(user))

    def _become_output(self, value: ir.Value, dequantized: ir.Value) -> None:
        name = value.name
        value.name = self.writer.names.fresh(f"{name}{qdq.RAW}")
        dequantized.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = dequantized

    def _needed_bounds(self, raw: ir.Value, value: ir.Value, params: QParams) -> tuple[int, int] | None:
        """The integer bounds that saturation alone does not imply: of a narrow type, or of an absorbed clamp."""
        kind = params.qtype
        low, high = kind.qmin, kind.qmax
        clamp = value.producer() if value is not raw else None
        if clamp is not None:
            bounds = operators.clamp_bounds(clamp)
            assert bounds is not None
            low, high = self._integer_bounds(params, bounds)
        return None if kind.fills_container and (low, high) == (kind.qmin, kind.qmax) else (low, high)

    def _integer_bounds(self, params: QParams, bounds: tuple[float, float]) -> tuple[int, int]:
        """Real bounds as integers; one that lies within half a step of the type's end is that end."""
        steps = [round(max(min(b / float(params.scale), 1e9), -1e9)) + int(params.zero_point) for b in bounds]
        low, high = (min(max(step, params.qtype.qmin), params.qtype.qmax) for step in steps)
        return low, high

    def _move_onto_integers(self, node: ir.Node) -> None:
        """Pad, or a Relu or Clip: the node reads and gives the integers themselves."""
        value, out = node.inputs[0], node.outputs[0]
        assert value is not None
        scale = self.scales[id(out)]
        zero = scale.zero_point
        users = tuple(out.uses())
        if graph.is_op(node, "Pad"):
            inputs = [self.integers[id(value)], node.inputs[1], zero, *node.inputs[3:]]
            new = ir.node("Pad", inputs, node.attributes, name=node.name)
            integers = new.outputs[0]
            integers.name = self.writer.names.fresh(f"{out.name}{graph.QUANTIZED}")
            integers.shape, integers.type = out.shape, ir.TensorType(zero.dtype or ir.DataType.UINT8)
            self.graph.insert_after(node, new)
        else:
            bounds = operators.clamp_bounds(node)
            assert bounds is not None
            low, high = self._integer_bounds(scale.params, bounds)
            integers = self.writer.clip(self.integers[id(value)], low, high, scale, str(out.name))
        self._stand_for(out, integers, users)
        self.moved.append(node)
