"""Linear operators: QLinearConv, QGemm, QLinearMatMul, whose weight scales are the dyadic factors.

The accumulator's bound is proved from the weights, ``sum |w| * max |x - x_zero_point| + |bias|``, and noted in the
node's metadata under ``qcomp.accumulator``, where backends choose widths by it. Products of two activations of a
dynamic length have no such note: that int32 holds them is assumed, for up to `TERMS` terms, and not proved.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators, qdq
from qcomp.errors import UnsupportedError
from qcomp.graph import Array
from qcomp.linear_qdq import BIAS_LIMIT
from qcomp.operators import MICROSOFT
from qcomp.quantization import dyadic
from qcomp.quantization.dyadic import Dyadic
from qcomp.rescale.site import Emitter, Site

ACCUMULATOR = "qcomp.accumulator"
"""The key of a node's metadata with the largest magnitude its accumulator can have."""
TERMS = 1 << 14
"""How many products of two activations are added where the graph does not say it: int32 holds twice as many."""
_CLOSE = 2.0**-21
"""How far float32 scales may lie from the dyadic ratio they were chosen for, relative to it."""


def conv(site: Site, emitter: Emitter) -> ir.Value:
    """``QLinearConv``."""
    weight = _Weight(site)
    inputs = [
        *(site.integers(), emitter.one, site.zero()),
        *(weight.integers, *weight.scale(emitter)),
        *(emitter.one, site.zero_point),
        *([weight.bias(emitter)] if weight.has_bias else []),
    ]
    out = emitter.add(site, "QLinearConv", inputs, site.node.attributes)
    return weight.noted(out)


def matmul(site: Site, emitter: Emitter) -> ir.Value:
    """``QGemm`` of the rows where there is a bias, else ``QLinearMatMul``; so too for two activations."""
    if len(site.inputs) == 2:
        return _two_activations(site, emitter)
    weight = _Weight(site)
    if weight.has_bias:
        return _gemm_of_rows(site, emitter, weight)
    inputs = [site.integers(), emitter.one, site.zero(), weight.integers, *weight.scale(emitter)]
    return weight.noted(emitter.add(site, "QLinearMatMul", [*inputs, emitter.one, site.zero_point]))


def gemm(site: Site, emitter: Emitter) -> ir.Value:
    """``com.microsoft.QGemm``."""
    weight = _Weight(site)
    return _gemm(site, emitter, weight, site.integers(), graph.attribute(site.node, "transB", 0))


def _gemm(site: Site, emitter: Emitter, weight: _Weight, rows: ir.Value, transposed: int) -> ir.Value:
    bias = weight.bias(emitter) if weight.has_bias else None
    inputs = [rows, emitter.one, site.zero(), weight.integers, *weight.scale(emitter), bias]
    attributes = {"transB": transposed, "alpha": 1.0}
    out = emitter.add(site, "QGemm", [*inputs, emitter.one, site.zero_point], attributes, domain=MICROSOFT)
    return weight.noted(out)


def _gemm_of_rows(site: Site, emitter: Emitter, weight: _Weight) -> ir.Value:
    source = site.integers()
    if graph.rank(source) == 2:
        return _gemm(site, emitter, weight, source, 0)
    width = weight.width
    rows = emitter.add(site, "Reshape", [source, emitter.shared(np.array([-1, width]), "rows")])
    result = _gemm(site, emitter, weight, rows, 0)
    return emitter.add(site, "Reshape", [result, _shape_behind(site, emitter, source, weight.channels)])


def _shape_behind(site: Site, emitter: Emitter, source: ir.Value, channels: int) -> ir.Value:
    """The shape of the result, from that of the source with its last axis replaced; int64."""
    sizes = graph.static_shape(source) or ()
    if sizes[1:-1].count(None) + (sizes[:1] == (None,)) <= 1:
        known = [-1 if d is None else d for d in sizes[:-1]]
        return emitter.shared(np.array([*known, channels]), "shape")
    before = emitter.add(site, "Shape", [source], {"end": len(sizes) - 1}, dtype=ir.DataType.INT64)
    last = emitter.shared(np.array([channels]), "channels")
    return emitter.add(site, "Concat", [before, last], {"axis": 0}, dtype=ir.DataType.INT64)


def _two_activations(site: Site, emitter: Emitter) -> ir.Value:
    length = (graph.static_shape(site.integers(0)) or (None,))[-1]
    bound = site.inputs[0].largest * site.inputs[1].largest * (length or TERMS)
    _check_bound(site.node, np.asarray(bound))
    factor = Dyadic.nearest(site.input_scale(0) * site.input_scale(1) / site.scale)
    scale = emitter.shared(factor.value, "factor")
    inputs = [site.integers(0), emitter.one, site.zero(0), site.integers(1), scale, site.zero(1)]
    out = emitter.add(site, "QLinearMatMul", [*inputs, emitter.one, site.zero_point])
    return out if length is None else _noted(out, bound)


class _Weight:
    """The rounded weight and bias of a site, its factor, and the proof that int32 holds the accumulator.

    Raises:
        UnsupportedError: the weight is not rounded, it or the bias is on another grid than the integer operators know,
            the accumulator may leave int32, or the scales are not dyadic.
    """

    def __init__(self, site: Site) -> None:
        node = site.node
        self._name = str(site.last.outputs[0].name)
        found = qdq.read(node.inputs[1])
        array = None if found is None else graph.constant(found.source)
        if found is None or found.quantize is not None or array is None or array.dtype != np.int8:
            hint = "run round-weights before"
            raise UnsupportedError("its weight is not rounded to int8", where=graph.describe(node), hint=hint)
        self.integers = found.source
        axis = operators.weight_axis(node, array.shape)
        _check_grid(node, found, axis)
        rows = _summed(array) if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        self.channels = rows.shape[0]
        self.width = array.shape[0]
        step = site.input_scale() * found.scale.astype(np.float64)
        self._bias = _bias(site, step)
        self._bound = np.abs(rows.astype(np.int64)).sum(axis=1) * site.inputs[0].largest
        if self._bias is not None:
            self._bound = self._bound + np.abs(self._bias.astype(np.int64))
        _check_bound(node, self._bound)
        self._factor = _factor(node, step / site.scale, self._bound)

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    def scale(self, emitter: Emitter) -> list[ir.Value]:
        """The factor as the weight's scale, and the zero points of the weight."""
        factor = self._factor.value
        zeros = emitter.shared(np.zeros(factor.shape, np.int8), "weight_zero_point")
        return [emitter.shared(factor, f"{self._name}_factor"), zeros]

    def bias(self, emitter: Emitter) -> ir.Value:
        """int32 ``(channels,)``."""
        assert self._bias is not None
        return emitter.constant(self._bias, f"{self._name}_bias")

    def noted(self, out: ir.Value) -> ir.Value:
        """The result, with the accumulator's bound noted in its node."""
        return _noted(out, int(self._bound.max(initial=0)))


def _summed(array: Array) -> Array:
    """The columns of matrices of any number, as rows: what a batched product adds up."""
    columns = array.reshape(-1, 1) if array.ndim < 2 else np.moveaxis(array, -2, -1)
    return columns.reshape(-1, array.shape[-2] if array.ndim > 1 else array.size)


def _noted(out: ir.Value, bound: int) -> ir.Value:
    node = out.producer()
    assert node is not None
    node.metadata_props[ACCUMULATOR] = str(bound)
    return out


def _bias(site: Site, step: Array) -> Array | None:
    """int32: as it stands behind its DequantizeLinear, or rounded from a float one with the accumulator's step."""
    if site.last is not site.node:
        value = next(v for v in site.last.inputs if v is not site.node.outputs[0])
    else:
        value = operators.bias_of(site.node)
    if value is None:
        return None
    found = qdq.read(value)
    array = graph.constant(found.source if found is not None else value)
    assert array is not None
    if found is not None:
        _check_bias(site.node, found, step)
        return array.astype(np.int32)
    rounded: Array = np.clip(np.rint(array / step), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
    return rounded


def _check_grid(node: ir.Node, weight: qdq.Reader, axis: int | None) -> None:
    """The integer operators know symmetric weights alone, with scales for output channels."""
    where, hint = graph.describe(node), "let qcomp insert Q/DQ"
    if weight.zero_point.any():
        raise UnsupportedError("its weight has a zero point other than 0", where=where, hint=hint)
    if weight.scale.size > 1 and (weight.scale.ndim > 1 or weight.axis != axis):
        raise UnsupportedError("its weight's scales are not those of its output channels", where=where, hint=hint)


def _check_bias(node: ir.Node, bias: qdq.Reader, step: Array) -> None:
    """The bias is added to the accumulator as it is, so it must have the accumulator's step."""
    if bias.zero_point.any() or not np.allclose(bias.scale, step, rtol=_CLOSE, atol=0):
        what = "its bias has a zero point, or another scale than x_scale * w_scale"
        raise UnsupportedError(what, where=graph.describe(node), hint="let qcomp insert Q/DQ")


def _check_bound(node: ir.Node, bound: Array) -> None:
    most = int(bound.max(initial=0))
    if most > dyadic.ACCUMULATOR:
        what = f"its accumulator may reach {most:,}, which int32 does not hold"
        hint = "give it fewer bits, or leave it in float with --allow-float"
        raise UnsupportedError(what, where=graph.describe(node), hint=hint)


def _factor(node: ir.Node, ratio: Array, bound: Array) -> Dyadic:
    """The dyadic numbers that the ratios of scales are, but for float32's rounding."""
    for shift in range(dyadic.SHIFT, dyadic.LARGEST_SHIFT + 1):
        steps = np.minimum(np.rint(ratio * 2.0**shift), dyadic.LARGEST_MULTIPLIER)
        close = np.abs(ratio * 2.0**shift - steps) <= steps * _CLOSE
        if close.all() and steps.min(initial=1) >= 1:
            found = Dyadic(steps.astype(np.int64), shift).reduced()
            if found.is_exact_in_float32(bound if found.multiplier.ndim else bound.max(initial=0)):
                return found
            break
    what = "its scales are no dyadic ratios that float32 kernels compute exactly"
    raise UnsupportedError(what, where=graph.describe(node), hint="insert Q/DQ with scales=dyadic")
