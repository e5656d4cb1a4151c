"""Operators that move or compare integers: they stand on them as they are."""

from __future__ import annotations

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
        if quantize is not None:
            _check_same(site, quantize)
            _settle(site.node.outputs[index], quantize, emitter)
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
    """Sizes in place of the float scales, where both are static and agree."""
    node = site.node
    before, after = (graph.static_shape(v) for v in (node.inputs[0], node.outputs[0]))
    scales = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or before is None or after is None:
        return
    axes = list(graph.attribute(node, "axes", range(len(before))))
    pairs = list(zip(axes, scales, strict=True))
    moved = [(axis, scale) for axis, scale in pairs if scale != 1] or pairs[-1:]
    sizes = np.array([after[axis] or 0 for axis, _ in moved], np.int64)
    if any((before[axis] or 0) * scale != size or not size for (axis, scale), size in zip(moved, sizes, strict=True)):
        what, hint = "its scales give no whole sizes", "give the model a fixed height and width"
        raise UnsupportedError(what, where=graph.describe(node), hint=hint)
    unread = [value for value in node.inputs[1:3] if value is not None]
    node.resize_inputs(4)
    node.replace_input_with(1, None)
    node.replace_input_with(2, None)
    node.replace_input_with(3, emitter.shared(sizes, "sizes"))
    for value in unread:
        graph.drop_unread(value)
    node.attributes["axes"] = ir.AttrInt64s("axes", [axis for axis, _ in moved])
