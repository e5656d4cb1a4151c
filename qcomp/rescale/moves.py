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
    for quantize in site.quantizes:
        if quantize is not None:
            _check_same(site, quantize)
    if graph.is_op(site.node, "Resize"):
        _resize_by_sizes(site, emitter)
    for out, quantize in zip(site.node.outputs, site.quantizes, strict=True):
        if quantize is not None:
            _settle(out, quantize, emitter)
        elif graph.is_float(out):  # nothing reads it
            out.type = ir.TensorType(ir.DataType.UINT8)
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
    """Sizes in place of the float scales, where they are whole numbers.

    Sizes of all axes: ONNX Runtime's transpose optimizer spoils those of a Resize with the attribute ``axes``.
    """
    node = site.node
    before = graph.static_shape(node.inputs[0])
    scales = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or not scales.size:
        return
    axes = graph.attribute(node, "axes", range(len(before or scales)))
    by_axis = {int(axis): float(scale) for axis, scale in zip(axes, scales, strict=True)}
    if before is None or not all(_is_whole(before[axis], scale) for axis, scale in by_axis.items()):
        what, hint = "its scales give no whole sizes", "leave it in float with --allow-float"
        raise UnsupportedError(what, where=graph.describe(node), hint=hint)
    factors = [by_axis.get(axis, by_axis.get(axis - len(before), 1.0)) for axis in range(len(before))]
    sizes = _sizes(site, emitter, before, factors)
    unread = [value for value in node.inputs[1:3] if value is not None]
    node.resize_inputs(4)
    for index, value in enumerate((None, None, sizes), start=1):
        node.replace_input_with(index, value)
    for value in unread:
        graph.drop_unread(value)
    node.attributes.pop("axes", None)


def _is_whole(size: int | None, scale: float) -> bool:
    """Whether that many times a size, or any size where it is dynamic, is a whole number."""
    made = (1 if size is None else size) * scale
    return made >= 1 and made.is_integer()


def _sizes(site: Site, emitter: Emitter, before: Sequence[int | None], factors: Sequence[float]) -> ir.Value:
    """int64; where the source is dynamic, so often its size."""
    known = [size for size in before if size is not None]
    if len(known) == len(before):
        return emitter.shared((np.array(known) * factors).astype(np.int64), "sizes")
    parts = [_size(site, emitter, axis, size, factors[axis]) for axis, size in enumerate(before)]
    return emitter.add(site, "Concat", parts, {"axis": 0}, dtype=ir.DataType.INT64)


def _size(site: Site, emitter: Emitter, axis: int, size: int | None, factor: float) -> ir.Value:
    if size is not None:
        return emitter.shared(np.array([size * factor]).astype(np.int64), "size")
    span = {"start": axis, "end": axis + 1}
    own = emitter.add(site, "Shape", [site.integers()], span, dtype=ir.DataType.INT64)
    if factor == 1:
        return own
    times = emitter.shared(np.array([int(factor)], np.int64), "times")
    return emitter.add(site, "Mul", [own, times], dtype=ir.DataType.INT64)
