"""Runs an integer graph in NumPy, node by node, in int64, from the definitions of the integer semantics alone.

The operators with scales are computed as ``clamp(round_half_even(sum * m / 2^c) + zero_point)`` with what their scales
are, dyadic numbers, in integers; the functions of the domain ``qcomp`` by their definitions; what moves or compares
integers by onnx's reference implementation.

`tests/conftest.py` puts this folder on the path: ``import integer_oracle``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from protos import info, model_of

from qcomp import graph
from qcomp.integer.layer_norm import LayerNormalization
from qcomp.integer.requantize import Requantize
from qcomp.integer.softmax import Softmax
from qcomp.quantization.dyadic import Dyadic
from qcomp.quantization.qparams import QParams
from qcomp.quantization.qtype import QType
from qcomp.rescale.linear import ACCUMULATOR

INT32 = (1 << 31) - 1
UINT8 = QType(8, signed=False)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of an integer graph of the form qlinear."""
    values = compute(model, feeds)
    return {str(v.name): values[str(v.name)] for v in model.graph.outputs}


def compute(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of the graph."""
    values = {name: v.const_value.numpy() for name, v in model.graph.initializers.items()} | feeds
    for node in model.graph:
        inputs = [None if v is None else values[str(v.name)] for v in node.inputs]
        rule = RULES.get((node.domain, node.op_type))
        results = evaluate(ir.to_proto(node), inputs) if rule is None else [rule(node, *inputs)]
        values.update((str(v.name), result) for v, result in zip(node.outputs, results, strict=True) if v.name)
    return values


def evaluate(node: onnx.NodeProto, inputs: list[np.ndarray | None]) -> list[np.ndarray]:
    """The results of one standard operator, by onnx's reference implementation."""
    model, feeds = alone(node, inputs)
    return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, feeds)]


def alone(node: onnx.NodeProto, inputs: list[np.ndarray | None]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of that operator, and its inputs."""
    feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    infos = [info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in feeds.items()]
    results = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output]
    return model_of([node], infos, results), feeds


def half_even(value: np.ndarray, shift: int) -> np.ndarray:
    """``value / 2^shift``, rounded to the nearest integer, a half to the even one."""
    quotient, rest = np.divmod(value, 1 << shift)
    return quotient + ((2 * rest > 1 << shift) | ((2 * rest == 1 << shift) & (quotient % 2 == 1)))


def saturate(value: np.ndarray) -> np.ndarray:
    return np.clip(value, 0, 255).astype(np.uint8)


def requantize(accumulator, scale, zero_point, axis=-1) -> np.ndarray:
    """``clamp(round_half_even(accumulator * m / 2^c) + zero_point)`` with ``m / 2^c`` a scale, or one a channel."""
    factor = Dyadic.of(scale)
    multiplier = factor.multiplier
    if multiplier.ndim:
        multiplier = multiplier.reshape([-1 if i == axis % accumulator.ndim else 1 for i in range(accumulator.ndim)])
    return saturate(half_even(accumulator * multiplier, factor.shift) + wide(zero_point))


def wide(integers: np.ndarray) -> np.ndarray:
    return np.asarray(integers).astype(np.int64)


def only_ones(*scales: np.ndarray) -> None:
    assert all(np.asarray(scale).size == 1 and scale == 1 for scale in scales)


def within(node: ir.Node, accumulator: np.ndarray) -> np.ndarray:
    """The accumulator, which lies in int32, and within the bound that the compiler noted where it proved one."""
    bound = int(node.metadata_props.get(ACCUMULATOR, INT32))
    assert np.abs(accumulator).max(initial=0) <= bound <= INT32
    return accumulator


def quantize_linear(node, x, scale, zero_point):
    return QParams(UINT8, np.asarray(scale), np.asarray(zero_point)).quantize(x)


def dequantize_linear(node, x, scale, zero_point):
    return QParams(UINT8, np.asarray(scale), np.asarray(zero_point)).dequantize(x)


def qlinear_conv(node, x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias=None):
    only_ones(x_scale, y_scale)
    assert not w_zero.any()
    total = convolve(node, wide(x) - wide(x_zero), wide(w))
    if bias is not None:
        total += wide(bias).reshape(-1, *(1,) * (w.ndim - 2))
    return requantize(within(node, total), w_scale, y_zero, axis=1)


def convolve(node, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Sums of ``x`` [N, C, *sizes] and ``w`` [OC, C / group, *kernel]."""
    group, total = graph.attribute(node, "group", 1), 0
    for tap, window in windows(node, x, w.shape[2:]):
        inputs = window.reshape(x.shape[0], group, w.shape[1], *window.shape[2:])
        weights = w[(..., *tap)].reshape(group, -1, w.shape[1])
        total += np.einsum("ngc...,goc->ngo...", inputs, weights)
    return total.reshape(x.shape[0], w.shape[0], *total.shape[3:])


def windows(node, x: np.ndarray, kernel: Sequence[int]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Each tap of the kernel, and what it meets in ``x`` [N, C, *sizes], padded with zeros: ``[N, C, *outputs]``."""
    dims = len(kernel)
    strides, dilations = (graph.attribute(node, key, [1] * dims) for key in ("strides", "dilations"))
    pads = graph.attribute(node, "pads", [0] * 2 * dims)
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:dims], pads[dims:], strict=True)])
    axes = list(zip(x.shape[2:], kernel, strides, dilations, strict=True))
    spans = [((n - (k - 1) * d - 1) // s) * s + 1 for n, k, s, d in axes]
    for tap in np.ndindex(*kernel):
        starts = [t * d for t, (_, _, _, d) in zip(tap, axes, strict=True)]
        yield (
            tap,
            x[(..., *(slice(start, start + span, s) for start, span, s in zip(starts, spans, strides, strict=True)))],
        )


def qlinear_matmul(node, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    only_ones(a_scale, y_scale)
    return requantize(within(node, (wide(a) - wide(a_zero)) @ (wide(b) - wide(b_zero))), b_scale, y_zero)


def qgemm(node, a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero):
    only_ones(a_scale, y_scale)
    assert not b_zero.any()
    assert not graph.attribute(node, "transA", 0)
    assert graph.attribute(node, "alpha", 1.0) == 1.0
    weight = wide(b).T if graph.attribute(node, "transB", 0) else wide(b)
    total = (wide(a) - wide(a_zero)) @ weight + (0 if c is None else wide(c))
    return requantize(within(node, total), b_scale, y_zero)


def qlinear_add(node, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    only_ones(y_scale)
    factors = Dyadic.of(np.array([a_scale, b_scale]))
    left, right = factors.multiplier
    total = (wide(a) - wide(a_zero)) * left + (wide(b) - wide(b_zero)) * right
    return saturate(half_even(total, factors.shift) + wide(y_zero))


def qlinear_mul(node, a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    only_ones(b_scale, y_scale)
    return requantize((wide(a) - wide(a_zero)) * (wide(b) - wide(b_zero)), a_scale, y_zero)


def qlinear_global_average_pool(node, x, x_scale, x_zero, y_scale, y_zero):
    only_ones(y_scale)
    axes = tuple(range(2, x.ndim))
    count = np.prod([x.shape[axis] for axis in axes])
    total = (wide(x) - wide(x_zero)).sum(axis=axes, keepdims=True)
    return requantize(total, np.float64(x_scale) / count, y_zero)


def qlinear_concat(node, y_scale, y_zero, *rest):
    only_ones(y_scale)
    triples = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    parts = [requantize(wide(x) - wide(zero), scale, y_zero) for x, scale, zero in triples]
    return np.concatenate(parts, axis=graph.attribute(node, "axis", 0))


def max_pool(node, x):
    """In NumPy, for onnx's reference implementation mixes up the axes where there are dilations."""
    assert x.dtype == np.uint8, "padded with 0, the least"
    return np.max([window for _, window in windows(node, x, graph.attribute(node, "kernel_shape", None))], axis=0)


def table(node, x, entries):
    return entries[x]


def softmax(node, x, entries, numerator, shift):
    (axis,) = graph.attribute(node, "axes", None)
    return Softmax(entries, int(numerator), int(shift))(x, axis)


def layer_normalization(node, x, gamma, beta, epsilon, count, scaling, numerator, shift):
    numbers = (int(n) for n in (epsilon, count, scaling, numerator, shift))
    return LayerNormalization(gamma, beta, *numbers)(x, graph.attribute(node, "axes", None))


def reduce_mean(node, x, offset, multiplier, shift, zero_point):
    axes, keepdims = graph.attribute(node, "axes", None), graph.attribute(node, "keepdims", 1)
    total = wide(x).sum(axis=tuple(axes), keepdims=bool(keepdims))
    return Requantize(multiplier, int(shift), int(zero_point))(total - int(offset))


RULES = {
    ("", "QuantizeLinear"): quantize_linear,
    ("", "DequantizeLinear"): dequantize_linear,
    ("", "QLinearConv"): qlinear_conv,
    ("", "QLinearMatMul"): qlinear_matmul,
    ("com.microsoft", "QGemm"): qgemm,
    ("com.microsoft", "QLinearAdd"): qlinear_add,
    ("com.microsoft", "QLinearMul"): qlinear_mul,
    ("com.microsoft", "QLinearGlobalAveragePool"): qlinear_global_average_pool,
    ("com.microsoft", "QLinearConcat"): qlinear_concat,
    ("", "MaxPool"): max_pool,
    ("qcomp", "Table"): table,
    ("qcomp", "Softmax"): softmax,
    ("qcomp", "LayerNormalization"): layer_normalization,
    ("qcomp", "ReduceMean"): reduce_mean,
}
"""By domain and operator; the others by onnx's reference implementation."""
