"""Where channels can be scaled and shifted: a value, what computes it, and the linear operators that read it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from qcomp import graph
from qcomp.reparameterization import attention, producers
from qcomp.reparameterization.consumers import MARK, Consumer
from qcomp.reparameterization.producers import Normalization, Producer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """One place.

    Args:
        value: what the consumers read.
        axis: that of its channels, from the front.
        consumers: linear operators with constant weights.
        producer: what absorbs the scale and the shift; None for a value that only inserted operators can scale.
        source: the value that the producer gives: `value` itself, or the V of an attention.
        others: whether something else reads the value, so that the consumers need one of their own.
    """

    value: ir.Value
    axis: int
    consumers: tuple[Consumer, ...]
    producer: Producer | None
    source: ir.Value
    others: bool

    @property
    def shifts(self) -> bool:
        """Whether a shift can be absorbed and undone everywhere; not through an attention, see its module."""
        absorbed = self.producer is not None and self.producer.shifts and self.source is self.value
        return (self.inserted or absorbed) and all(c.shifts for c in self.consumers)

    @property
    def observed(self) -> tuple[ir.Value, ...]:
        """The values that are scaled: both will be quantized."""
        return (self.value,) if self.source is self.value or self.inserted else (self.value, self.source)

    @property
    def copied(self) -> bool:
        """Whether the consumers need a copy of the producer."""
        return self.others and isinstance(self.producer, Normalization)

    @property
    def inserted(self) -> bool:
        """Whether it takes operators of its own."""
        return self.producer is None or (self.others and not self.copied)


def find(model: ir.Model) -> Iterator[Site]:
    """Every value that linear operators with constant weights read, in the order of the graph."""
    seen: set[int] = set()
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        if value is None or id(value) in seen or Consumer.match(node, 0, model.graph) is None:
            continue
        seen.add(id(value))
        site = at(value, model.graph)
        if site is not None:
            yield site


def at(value: ir.Value, home: ir.Graph) -> Site | None:
    """The site of a value as the graph is now; an earlier rewrite may have put a bias behind its producer."""
    if not graph.is_float(value) or graph.constant_tensor(value) is not None:
        return None
    readers = [Consumer.match(node, index, home) for node, index in value.uses()]
    consumers = tuple(dict.fromkeys(c for c in readers if c is not None))
    axes = {c.linear.input_channel_axis() for c in consumers}
    marked = any(MARK in c.linear.node.metadata_props for c in consumers)
    axis = axes.pop()
    if marked or axes or axis is None or (graph.static_shape(value) or ())[axis] is None:
        return None
    others = None in readers or value.is_graph_output()
    source = attention.values_of(value) or value
    alone = source is value or graph.only_user(source) is not None
    producer = producers.find(source, axis) if alone else None
    return Site(value, axis, consumers, producer, source, others)
