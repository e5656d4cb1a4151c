"""Operators that move or compare integers: they stand on them as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.errors import UnsupportedError
from qcomp.rescale.site import Emitter, Site, note_scale


def same_scale(site: Site, emitter: Emitter) -> None:
    """Let the operator read the integers; its results are the quantized ones, or positions.

    Raises:
        UnsupportedError: its scales differ, or it has no form on integers.
    """
    for index, quantize in enumerate(site.quantizes):
        out = site.node.outputs[index]
        if quantize is not None:
            _check_same(site, quantize)
            _settle(out, quantize, emitter)
        elif graph.is_float(out):  # nothing reads it
            out.type = ir.TensorType(ir.DataType.UINT8)
    if graph.is_op(site.node, "Resize"):
        _resize_by_sizes(site, emitter)
    for index, value in enumerate(site.node.inputs):
        if value is site.inputs[0].dequantize.outputs[0]:
            site.node.replace_input_with(index, site.integers())


def global_max_pool(site: Site, emitter: Emitter) -> ir.Value:
    """``ReduceMax`` over the spatial axes: the pool has no integer kernel."""
    rank = graph.rank(site.integers())
    assert rank is not None
    axes = emitter.shared(np.arange(2, rank), "axes")
    return emitter.add(site, "ReduceMax", [site.integers(), axes], {"keepdims": 1})


def _check_same(site: Site, quantize: ir.Node) -> None:
    scale, zero = (graph.constant(v) for v in quantize.inputs[1:3])
    assert scale is not None
    assert zero is not None
    if float(scale) != site.input_scale() or int(zero) != int(site.inputs[0].zero_point):
        what, hint = "its input and output have different scales", "let qcomp insert Q/DQ"
        raise UnsupportedError(what, where=graph.describe(site.node), hint=hint)


def _settle(out: ir.Value, quantize: ir.Node, emitter: Emitter) -> None:
    """Make a result the quantized one, under its name."""
    quantized = quantize.outputs[0]
    note_scale(out, quantize)
    kind = ir.TensorType(ir.DataType.UINT8)
    graph.redirect(quantized, out, keep=[quantize])
    name, quantized.name = quantized.name, emitter.names.fresh(f"{quantized.name}_removed")
    out.name, out.type = name, kind
    emitter.removed.append(quantize)


def _resize_by_sizes(site: Site, emitter: Emitter) -> None:
    """Sizes in place of the float scales, where those that change are static and agree.

    Sizes of all axes: ONNX Runtime's transpose optimizer spoils those of a Resize with the attribute ``axes``.
    """
    node = site.node
    before, after = (graph.static_shape(v) for v in (node.inputs[0], node.outputs[0]))
    scales = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or not scales.size or before is None or after is None:
        return
    axes = graph.attribute(node, "axes", range(len(before)))
    moved = [(int(axis), float(scale)) for axis, scale in zip(axes, scales, strict=True) if scale != 1]
    if any(not after[axis] or (before[axis] or 0) * scale != after[axis] for axis, scale in moved):
        what, hint = "its scales give no whole sizes", "give the model a fixed height and width"
        raise UnsupportedError(what, where=graph.describe(node), hint=hint)
    sizes = _sizes(site, emitter, after)
    unread = [value for value in node.inputs[1:3] if value is not None]
    node.resize_inputs(4)
    for index, value in enumerate((None, None, sizes), start=1):
        node.replace_input_with(index, value)
    for value in unread:
        graph.drop_unread(value)
    node.attributes.pop("axes", None)


def _sizes(site: Site, emitter: Emitter, known: Sequence[int | None]) -> ir.Value:
    """int64; what is dynamic has the size of the source."""
    if None not in known:
        return emitter.shared(np.array(known, np.int64), "sizes")
    parts = []
    for axis, size in enumerate(known):
        span = {"start": axis, "end": axis + 1}
        own = emitter.add(site, "Shape", [site.integers()], span, dtype=ir.DataType.INT64) if size is None else None
        parts.append(own or emitter.shared(np.array([size], np.int64), "size"))
    return emitter.add(site, "Concat", parts, {"axis": 0}, dtype=ir.DataType.INT64)
