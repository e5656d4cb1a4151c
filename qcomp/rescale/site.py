"""One operator of the Q/DQ graph with the integers around it, and the writer of what takes its place."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp import graph, noted_scales, operators, qdq, units
from qcomp.errors import UnsupportedError
from qcomp.graph import Array, Names


@dataclass(frozen=True)
class Site:
    """An operator whose activations are dequantized integers and whose results are quantized.

    Args:
        node: the operator.
        last: the operator, or the Add of a MatMul's bias.
        inputs: its activations as found on the graph, in their order.
        quantizes: the QuantizeLinear of each result; None where it is not read, or gives positions.
    """

    node: ir.Node
    last: ir.Node
    inputs: tuple[qdq.Reader, ...]
    quantizes: tuple[ir.Node | None, ...]

    @property
    def quantize(self) -> ir.Node:
        """The QuantizeLinear of the only result."""
        found = self.quantizes[0]
        assert found is not None
        return found

    @property
    def scale(self) -> float:
        """Of the result."""
        array = graph.constant(self.quantize.inputs[1])
        assert array is not None
        return float(array.reshape(()))

    @property
    def zero_point(self) -> ir.Value:
        """Of the result: the initializer."""
        value = self.quantize.inputs[2]
        assert value is not None
        return value

    def input_scale(self, index: int = 0) -> float:
        """Of an activation."""
        return float(self.inputs[index].scale.reshape(()))

    def integers(self, index: int = 0) -> ir.Value:
        """The integers of an activation."""
        value = self.inputs[index].dequantize.inputs[0]
        assert value is not None
        return value

    def zero(self, index: int = 0) -> ir.Value:
        """The initializer with the zero point of an activation."""
        value = self.inputs[index].dequantize.inputs[2]
        assert value is not None
        return value


def find(node: ir.Node) -> Site | None:
    """The site of an operator; None where it computes in float, or its neighbours do."""
    if operators.find(node) is None or qdq.why_float(node) is not None or not _takes_part(node):
        return None
    inputs = [qdq.read(value) for value in _activations(node)]
    known = tuple(reader for reader in inputs if reader is not None)
    if not inputs or len(known) < len(inputs):
        return None
    last = units.quantized_bias_add(node) or node
    quantizes = tuple(_quantize(value) for value in last.outputs)
    for value, quantize in zip(last.outputs, quantizes, strict=True):
        if quantize is None and graph.is_float(value) and (value.uses() or value.is_graph_output()):
            return None
    return Site(node, last, known, quantizes)


def _activations(node: ir.Node) -> list[ir.Value]:
    """The float activations: not a weight behind its DequantizeLinear."""
    linear = operators.role(node) is operators.Role.LINEAR
    return [v for i, v in operators.activations(node) if not (linear and i == 1 and _is_weight(v))]


def _is_weight(value: ir.Value) -> bool:
    found = qdq.read(value)
    return found is not None and graph.constant_tensor(found.source) is not None


def _takes_part(node: ir.Node) -> bool:
    """Whether the operator reads floats, rather than stands on integers already."""
    return all(graph.is_float(value) for value in _activations(node))


def _quantize(value: ir.Value) -> ir.Node | None:
    user = graph.only_user(value)
    return user if user is not None and graph.is_op(user, "QuantizeLinear") else None


def check_types(site: Site) -> None:
    """Activations of the integer graph are uint8, with even zero points.

    Raises:
        UnsupportedError: names the operator.
    """
    ends = [q.inputs[2] if len(q.inputs) > 2 else None for q in site.quantizes if q is not None]
    given = [graph.constant(zero) for zero in ends]
    zeros = [*(reader.zero_point for reader in site.inputs), *(zero for zero in given if zero is not None)]
    where = graph.describe(site.node)
    if any(zero.dtype != np.uint8 for zero in zeros):
        hint = "compile with --activations uint8, or a shorter uint type"
        raise UnsupportedError("integer forms take uint8 activations", where=where, hint=hint)
    if None in ends or any(zero.ndim or int(zero) % 2 for zero in zeros):
        hint = "let qcomp insert Q/DQ"
        raise UnsupportedError("integer forms need one even zero point a tensor", where=where, hint=hint)


class Emitter:
    """Writes the nodes that take a site's place; one a pass."""

    def __init__(self, target: ir.Graph) -> None:
        self.graph, self.names = target, Names(target)
        self.removed: list[ir.Node] = []
        self._shared: dict[Hashable, ir.Value] = {}

    def constant(self, array: Array, name: str) -> ir.Value:
        """A new initializer."""
        return graph.initializer(self.graph, self.names, name, array)

    @property
    def one(self) -> ir.Value:
        """The scale that leaves integers as they are; one initializer for all."""
        return self.shared(np.asarray(1.0, np.float32), "one")

    def shared(self, array: Array, name: str) -> ir.Value:
        """An initializer that all who ask for these contents share."""
        key = graph.contents(array)
        if key not in self._shared or self._shared[key].graph is not self.graph:
            self._shared[key] = self.constant(array, name)
        return self._shared[key]

    def add(
        self,
        site: Site,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        name: str = "",
        dtype: ir.DataType = ir.DataType.UINT8,
        shape: ir.Shape | None = None,
    ) -> ir.Value:
        """A node right before the site's operator; its only result has a fresh name unless it becomes the site's."""
        wanted = name or f"{site.last.outputs[0].name}_{op}"
        out = ir.Value(name=self.names.fresh(wanted), shape=shape, type=ir.TensorType(dtype))
        node = ir.node(
            op, inputs, attributes or {}, domain=domain, outputs=[out], name=self.names.fresh(f"{wanted}_node")
        )
        self.graph.insert_before(site.last, node)
        return out

    def finish(self, site: Site, result: ir.Value) -> None:
        """Let a value stand for the quantized result of the site, under its name, and forget the operator."""
        old, node = site.quantize.outputs[0], result.producer()
        note_scale(result, site.quantize)
        graph.take_over(old, result)
        if node is not None:
            node.name = site.node.name
        self.removed += [site.node, site.quantize, *([site.last] if site.last is not site.node else [])]

    def clean_up(self) -> None:
        """Remove what was replaced, and every DequantizeLinear that nothing reads any more."""
        graph.detach(self.removed)
        idle = [n for n in self.graph if graph.is_op(n, "DequantizeLinear") and _is_idle(n.outputs[0])]
        graph.remove(self.graph, self.removed)
        graph.remove(self.graph, idle)


def note_scale(value: ir.Value, quantize: ir.Node) -> None:
    """Note on an integer tensor the scale and zero point of the QuantizeLinear it takes the place of."""
    scale, zero = (graph.constant(v) for v in quantize.inputs[1:3])
    assert scale is not None
    assert zero is not None
    noted_scales.note(value, float(scale), int(zero))


def _is_idle(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()
