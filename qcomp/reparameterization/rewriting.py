"""The rewrite: ``x' = (x - t) / s`` in what computes the value, ``W' = W s`` and ``b' = b + W t`` in what reads it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.graph import Array
from qcomp.qdq import FLOAT_REASON
from qcomp.renaming import rename_between
from qcomp.reparameterization.producers import Normalization, Producer
from qcomp.reparameterization.sites import Site

RENAMED = "_scaled"
"""The suffix of values that hold something else than before."""
REASON = "it scales channels before they are quantized"


def apply(site: Site, scale: Array, shift: Array, names: graph.Names) -> None:
    """Let the consumers of a site read ``(x - shift) / scale`` and undo it.

    Args:
        site: where.
        scale, shift: float64 ``(channels,)``; without `Site.shifts` the shifts are 0.
        names: the pass's.
    """
    factor, constant = 1 / scale, -shift / scale
    if site.producer is None or site.inserted:
        _insert(site, factor, constant, names)
    else:
        producer = _copy(site, names) if site.copied else site.producer
        producer.apply(names, factor, constant)
        rename_between([producer.node], [c.linear.node for c in site.consumers], names, RENAMED)
    for consumer in site.consumers:
        consumer.undo(names, scale, shift)


def _copy(site: Site, names: graph.Names) -> Producer:
    """A normalization of the consumers' own beside the one that others read."""
    assert site.producer is not None
    old = site.producer.node
    result = _like(site.value, names, RENAMED.strip("_"))
    new = ir.Node(
        old.domain, old.op_type, old.inputs, old.attributes.values(), outputs=[result], name=f"{old.name}_scaled"
    )
    graph.main_graph(old).insert_after(old, new)
    _reroute(site, result)
    return Normalization(new)


def _insert(site: Site, factor: Array, constant: Array, names: graph.Names) -> None:
    """A Mul and an Add in float between the value and the consumers."""
    home = graph.main_graph(site.consumers[0].linear.node)
    shape = (-1, *(1,) * ((graph.rank(site.value) or 0) - site.axis - 1))
    value, made = site.value, []
    for kind, array in (("Mul", factor), ("Add", constant)) if np.any(constant) else (("Mul", factor),):
        vector = graph.initializer(
            home, names, f"{site.value.name}_{kind.lower()}", array.reshape(shape).astype(np.float32)
        )
        result = _like(site.value, names, f"after_{kind.lower()}")
        made.append(ir.Node("", kind, [value, vector], outputs=[result], name=str(result.name)))
        made[-1].metadata_props[FLOAT_REASON] = REASON
        value = result
    before = site.value.producer()
    if before is None:
        home.insert_before(home[0], made)
    else:
        home.insert_after(before, made)
    _reroute(site, value)


def _reroute(site: Site, value: ir.Value) -> None:
    for consumer in site.consumers:
        consumer.linear.node.replace_input_with(0, value)


def _like(value: ir.Value, names: graph.Names, suffix: str) -> ir.Value:
    return ir.Value(name=names.fresh(f"{value.name}_{suffix}"), shape=value.shape, type=value.type)
