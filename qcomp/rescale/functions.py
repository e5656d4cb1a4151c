"""Operators that become functions of the domain ``qcomp``: tables, softmax, layer normalization, means."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.errors import UnsupportedError
from qcomp.graph import Array
from qcomp.integer import tables
from qcomp.integer.functions import DOMAIN
from qcomp.integer.layer_norm import LayerNormalization
from qcomp.integer.mean import ReduceMean
from qcomp.integer.softmax import MOST_LENGTH, Softmax
from qcomp.rescale.arithmetic import counted
from qcomp.rescale.site import Emitter, Site


def table(site: Site, emitter: Emitter) -> ir.Value:
    """``qcomp.Table`` of an operator on one activation.

    Raises:
        UnsupportedError: it is undefined somewhere in the range of its input.
    """
    entries = tables.of_node(site.node, site.input_scale(), _zero(site), site.scale, _result_zero(site))
    result = emitter.add(site, "Table", [site.integers(), emitter.shared(entries, "table")], domain=DOMAIN)
    alpha = graph.attribute(site.node, "alpha", 0.01)
    made, scales = result.producer(), (site.input_scale(), _zero(site), site.scale, _result_zero(site))
    assert made is not None
    tables.Origin(site.node.op_type, alpha, *scales).write(made)
    return result


def softmax(site: Site, emitter: Emitter) -> ir.Value:
    """``qcomp.Softmax``, and a table that adds the zero point where values below 0 share its scale."""
    axis = graph.attribute(site.node, "axis", -1)
    sizes = graph.static_shape(site.integers())
    length = (sizes[axis] if sizes else None) or MOST_LENGTH
    with _blaming(site):
        constants = Softmax.of(site.input_scale(), y_scale=site.scale, length=length).constants
    result = _call(site, emitter, "Softmax", constants, {"axes": [axis]})
    zero = _result_zero(site)
    if not zero:
        return result
    shifted = np.minimum(np.arange(tables.LEVELS) + zero, tables.LEVELS - 1).astype(np.uint8)
    return emitter.add(site, "Table", [result, emitter.shared(shifted, "table")], domain=DOMAIN)


def layer_normalization(site: Site, emitter: Emitter) -> ir.Value:
    """``qcomp.LayerNormalization``.

    Raises:
        UnsupportedError: the size of an axis is not static, or a row is out of reach of 64 bits.
    """
    node = site.node
    sizes = graph.static_shape(site.integers()) or ()
    axis = graph.attribute(node, "axis", -1) % max(len(sizes), 1)
    dims = [size for size in sizes[axis:] if size is not None]
    if not dims or len(dims) < len(sizes) - axis:
        hint = "give the model a fixed size there, or leave it in float with --allow-float"
        raise UnsupportedError("the length of its rows is not known", where=graph.describe(node), hint=hint)
    gamma, beta = (graph.constant(v) if v is not None else None for v in (*node.inputs[1:], None)[:2])
    assert gamma is not None
    epsilon = graph.attribute(node, "epsilon", 1e-5)
    with _blaming(site):
        made = LayerNormalization.of(
            site.input_scale(), gamma, beta, epsilon, site.scale, _result_zero(site), count=int(np.prod(dims))
        )
    return _call(site, emitter, "LayerNormalization", made.constants, {"axes": list(range(axis - len(sizes), 0))})


def reduce_mean(site: Site, emitter: Emitter) -> ir.Value:
    """``qcomp.ReduceMean``; a table where it averages nothing (``noop_with_empty_axes``)."""
    given = graph.constant(site.node.inputs[1]) if len(site.node.inputs) > 1 else None
    axes = [] if given is None else [int(a) for a in given]
    scales = (site.input_scale(), _zero(site), site.scale, _result_zero(site))
    if not axes and graph.attribute(site.node, "noop_with_empty_axes", 0):
        entries = tables.table_of(lambda real: real, *scales)
        return emitter.add(site, "Table", [site.integers(), emitter.shared(entries, "table")], domain=DOMAIN)
    with _blaming(site):
        made = ReduceMean.of(*scales, counted(site))
    keepdims = graph.attribute(site.node, "keepdims", 1)
    every = list(range(graph.rank(site.integers()) or 0))
    return _call(site, emitter, "ReduceMean", made.constants, {"axes": axes or every, "keepdims": keepdims})


def _call(
    site: Site, emitter: Emitter, name: str, constants: Mapping[str, Array], attributes: Mapping[str, object]
) -> ir.Value:
    inputs = [site.integers(), *(emitter.shared(array, key) for key, array in constants.items())]
    return emitter.add(site, name, inputs, attributes, domain=DOMAIN)


def _zero(site: Site) -> int:
    return int(site.inputs[0].zero_point)


def _result_zero(site: Site) -> int:
    zero = graph.constant(site.zero_point)
    assert zero is not None
    return int(zero)


@contextlib.contextmanager
def _blaming(site: Site) -> Iterator[None]:
    """Let an error name the operator of the site."""
    try:
        yield
    except UnsupportedError as error:
        raise UnsupportedError(error.what, where=graph.describe(site.node), hint=error.hint) from error
