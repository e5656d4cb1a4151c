"""The scales that insert-qdq chooses: their ratios are dyadic numbers in the Q/DQ graph already."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small

from qcomp import graph, qdq
from qcomp.quantization.saturation import saturates

LINE = quantized.WITHOUT_CHOICE


def with_options(**options):
    text = " ".join(["ranges=minmax", *(f"{k}={v}" for k, v in options.items())])
    return LINE.replace("ranges=minmax", text)


def build(function, seed=1, line=LINE):
    b = small.Builder(seed)
    function(b, b.input("x", ["N", 4, 8, 8]))
    return quantized.quantize(b.model("y"), line=line)


def scale_of(value: ir.Value) -> float:
    return float(qdq.read(value).scale)


def factor(model: ir.Model, kind: str):
    """Of the only operator of that type: the product of its inputs' scales over that of its result."""
    node = next(n for n in model.graph if n.op_type == kind)
    quantize = next(n for n in model.graph if n.op_type == "QuantizeLinear" and n.inputs[0] is node.outputs[0])
    scales = [qdq.read(v).scale.astype("f8") for v in node.inputs[:2] if qdq.read(v) is not None]
    return np.prod(np.broadcast_arrays(*scales), axis=0) / graph.scalar(quantize.inputs[1])


def is_dyadic(values, shift=16) -> bool:
    steps = np.asarray(values) * 2.0**shift
    return bool((np.abs(steps - np.rint(steps)) <= np.rint(steps) * 2.0**-21).all())


def conv(b, x):
    b.op("Relu", b.conv(x, 4, 6), name="y")


def gemm(b, x):
    b.op("Gemm", b.op("Flatten", x), b.random(256, 7), b.random(7), name="y")


def two_activations(b, x):
    b.op("MatMul", x, b.op("Relu", b.conv(x, 4, 4, kernel=1)), name="y")


def product(b, x):
    b.op("Mul", x, b.conv(x, 4, 4, kernel=1), name="y")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("function", "kind"), [(conv, "Conv"), (gemm, "Gemm"), (two_activations, "MatMul"), (product, "Mul")]
)
def test_factors_are_dyadic_and_free_ones_are_not(function, kind, seed):
    assert is_dyadic(factor(build(function, seed), kind))
    assert not is_dyadic(factor(build(function, seed, with_options(scales="free")), kind))


def test_one_scale_for_the_tensor_is_dyadic_too():
    assert is_dyadic(factor(build(conv, line=with_options(per_channel="false")), "Conv"))


def test_a_mean_has_a_dyadic_factor_with_its_count():
    def mean(b, x):
        b.op("GlobalAveragePool", x, name="y")

    assert is_dyadic(factor(build(mean), "GlobalAveragePool") / 64)


def test_ranges_are_covered_as_with_free_scales():
    free, dyadic = (build(two_activations, line=line) for line in (with_options(scales="free"), LINE))
    scales = [
        graph.scalar(next(n for n in m.graph if n.outputs[0].name == "y_quantized").inputs[1]) for m in (free, dyadic)
    ]
    assert scales[0] <= scales[1] <= scales[0] * 1.02


def test_a_scale_that_two_operators_share_is_left_alone():
    def shared(b, x):
        left = b.op("Mul", x, b.conv(x, 4, 4, kernel=1))
        b.op("Concat", left, b.op("Mul", x, b.conv(x, 4, 4, kernel=1)), axis=1, name="y")

    def scale(line):
        model = build(shared, line=line)
        return graph.scalar(next(n for n in model.graph if n.outputs[0].name == "y_quantized").inputs[1])

    assert scale(LINE) == scale(with_options(scales="free"))


@pytest.mark.parametrize("function", [conv, gemm])
def test_portable_weights_are_safe(function):
    def weights(**options):
        model = build(function, line=with_options(**options))
        node = next(n for n in model.graph if n.op_type in ("Conv", "Gemm"))
        array = graph.constant(qdq.read(node.inputs[1]).source)
        return array.reshape(len(array), -1) if node.op_type == "Conv" else array.T

    assert not saturates(weights(portable="true"))
    assert saturates(weights())
    assert np.abs(weights(portable="true")).max() > 50


def test_portable_weights_of_one_scale_have_seven_bits():
    model = build(conv, line=with_options(portable="true", per_channel="false"))
    node = next(n for n in model.graph if n.op_type == "Conv")
    assert np.abs(graph.constant(qdq.read(node.inputs[1]).source)).max() <= 63


def test_a_single_large_weight_keeps_its_channel_finer_than_seven_bits():
    def spiked(b, x):
        weight = b.rng.uniform(-0.3, 0.3, (6, 4, 3, 3))
        weight[:, 0, 0, 0] = 1.0
        b.op("Conv", x, b.constant(weight), name="y")

    model = build(spiked, line=with_options(portable="true"))
    node = next(n for n in model.graph if n.op_type == "Conv")
    weight = graph.constant(qdq.read(node.inputs[1]).source)
    assert np.abs(weight).max() > 90
    assert not saturates(weight.reshape(6, -1))


def test_a_layer_that_is_proved_safe_keeps_its_eight_bits():
    def sparse(b, x):
        weight = np.zeros((6, 4, 1, 1), "f4")
        weight[range(6), [0, 1, 2, 3, 0, 1]] = 1.0
        b.op("Conv", x, b.constant(weight), name="y")

    model = build(sparse, line=with_options(portable="true"))
    node = next(n for n in model.graph if n.op_type == "Conv")
    assert np.abs(graph.constant(qdq.read(node.inputs[1]).source)).max() > 100
