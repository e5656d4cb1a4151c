from __future__ import annotations

import numpy as np
import pytest
import quantized
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp import graph, pipeline, qdq
from qcomp.calibration.observers import Statistics
from qcomp.errors import CalibrationError
from qcomp.models import digits
from qcomp.passes.correct_bias import CorrectBias

ROUNDED = f"{quantized.FLOAT_REWRITES},choose-precision{{by=all}},insert-qdq{{%s}},round-weights"


def conv(b, **attributes):
    group = attributes.get("group", 1)
    x = b.op("Relu", b.input("x", ["N", 4, 9, 8]))
    b.op("Conv", x, b.random(4, 4 // group, 3, 3), b.random(4), name="y", **attributes)


def padded(b):
    conv(b, pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2])


def depthwise(b):
    conv(b, group=4, pads=[1] * 4)


def grouped(b):
    conv(b, group=2)


def conv_relu(b):
    x = b.op("Relu", b.input("x", ["N", 4, 9]))
    c = b.op("Conv", x, b.random(4, 4, 3), b.random(4), name="c")
    b.op("Relu", c, name="y")
    return "y", "c"


def gemm(b):
    b.op("Gemm", b.op("Relu", b.input("x", ["N", 16])), b.random(6, 16), b.random(6), transB=1, name="y")


def gemm_of_rows(b):
    b.op("Gemm", b.op("Relu", b.input("x", ["N", 16])), b.random(16, 6), b.random(1, 6), name="y")


def matmul(b):
    x = b.op("MatMul", b.op("Sigmoid", b.input("x", ["N", 5, 16])), b.random(16, 6))
    b.op("Add", b.random(6), x, name="y")


def static_matmul(b):
    x = b.op("MatMul", b.op("Sigmoid", b.input("x", [3, 5, 16])), b.random(16, 6))
    b.op("Add", x, b.random(6), name="y")


LAYERS = {f.__name__: f for f in (padded, depthwise, grouped, conv_relu, gemm, gemm_of_rows, matmul, static_matmul)}


def rounded_and_corrected(function, options, seed=1):
    """The float model, the rounded one, the corrected one, and the calibration data."""
    b = small.Builder(seed)
    proto = b.model(*(function(b) or ("y",)))
    batch = small.feeds(quantized.loaded(proto), 0, 16)
    before, rounded = quantized.apply(proto, ROUNDED % options, batch)
    after = quantized.quantize(proto, batch, line=f"{ROUNDED % options},correct-bias")
    return before, rounded, after, batch


def shifts(before, after, inputs, name="y"):
    """How far the mean of each channel is from that of the float model."""
    old, new = small.run(before, inputs)[name], small.run(after, inputs)[name]
    axis = 1 if old.ndim == 4 or name == "c" else old.ndim - 1
    return np.abs((new - old).mean(axis=tuple(i for i in range(old.ndim) if i != axis)))


@pytest.mark.parametrize("name", LAYERS)
def test_the_mean_of_every_channel_is_that_of_the_float_layer(name):
    before, rounded, after, batch = rounded_and_corrected(LAYERS[name], "weights=int3 activations=none")
    output = "c" if name == "conv_relu" else "y"
    assert shifts(before, rounded, batch, output).max() > 0.01
    assert shifts(before, after, batch, output).max() < 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_the_mean_is_within_the_noise_of_the_activations(name):
    before, rounded, after, batch = rounded_and_corrected(LAYERS[name], "weights=int3 ranges=minmax")
    output = "c" if name == "conv_relu" else "y"
    assert shifts(before, after, batch, output).max() < 0.2 * shifts(before, rounded, batch, output).max()
    assert quantized.sqnr(before, after, batch)["y"] > quantized.sqnr(before, rounded, batch)["y"]


def shared_conv(b):
    x, weight, bias = b.input("x", ["N", 4, 8, 8]), b.random(4, 4, 3, 3), b.random(4)
    b.op("Conv", b.op("Conv", x, weight, bias, pads=[1] * 4), weight, bias, name="y")


def shared_matmul(b):
    x, weight, bias = b.input("x", ["N", 5, 16]), b.random(16, 16), b.random(16)
    for name in ("first", "second", "y"):
        x = b.op("Add", b.op("MatMul", x, weight), bias, name=name)


@pytest.mark.parametrize("options", ["weights=int3 activations=none", "weights=int3 ranges=minmax"])
@pytest.mark.parametrize("function", [shared_conv, shared_matmul])
def test_layers_that_share_a_bias_are_corrected_each_on_its_own(function, options):
    before, rounded, after, batch = rounded_and_corrected(function, options)
    assert shifts(before, after, batch).max() < 0.1 * shifts(before, rounded, batch).max()
    biases = {str(n.inputs[-1].name) for n in after.graph if n.op_type in ("Conv", "Add")}
    assert len(biases) == len([n for n in after.graph if n.op_type in ("Conv", "Add")])


def test_without_statistics_nothing_changes():
    b = small.Builder(1)
    gemm(b)
    model = quantized.quantize(b.model("y"), line=ROUNDED % "weights=int4")
    before = small.serialized(model)
    assert not CorrectBias().run(model, Statistics())
    assert small.serialized(model) == before


def test_a_weight_that_is_not_rounded_yet_is_left_alone():
    b = small.Builder(1)
    gemm(b)
    line = f"{quantized.FLOAT_REWRITES},choose-precision{{by=all}},insert-qdq,correct-bias"
    before, after = quantized.apply(b.model("y"), line)
    assert quantized.sqnr(before, after, small.feeds(before, 0, 16))["y"] > 30


def test_a_corrected_bias_stays_on_the_grid_of_the_accumulator():
    _, _, after, _ = rounded_and_corrected(padded, "weights=int4")
    found = qdq.read(next(n for n in after.graph if n.op_type == "Conv").inputs[2])
    assert graph.constant(found.source).dtype == np.int32


def narrow_cnn(b):
    """Depthwise separable, whose small kernels shift the mean most."""
    x = b.input("x", ["N", 4, 8, 8])
    for _ in range(4):
        x = b.op("Relu", b.conv(x, 4, 4, pads=[1] * 4, group=4))
        x = b.op("Relu", b.conv(x, 4, 4, 1))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.random(4, 3), b.random(3), name="y")


def test_raises_the_accuracy_of_a_depthwise_net_with_four_bits():
    gains = []
    for seed in range(6):
        before, rounded, after, _ = rounded_and_corrected(narrow_cnn, "weights=int4 weight_ranges=minmax", seed)
        unseen = small.feeds(before, 50 + seed, 64)
        gains.append(quantized.sqnr(before, after, unseen)["y"] - quantized.sqnr(before, rounded, unseen)["y"])
    assert np.mean(gains) > 3


def test_raises_the_accuracy_of_the_digits_cnn_with_four_bits():
    images = digits.data()
    batch = {"image": images["train"][:256]}
    model = quantized.files.load(digits.load("cnn"))
    outputs = {}
    for line in ("", ",correct-bias"):
        work = model.clone()
        hooks = pipeline.Hooks(calibrate=lambda m, o: quantized.statistics(m, o, batch))
        pipeline.run(work, pipeline.parse(f"{ROUNDED % 'weights=int4 weight_ranges=minmax'}{line}"), hooks)
        outputs[line] = quantized.sqnr(model, work, {"image": images["test"]})["logits"]
    assert outputs[",correct-bias"] > outputs[""] + 0.5


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 999), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 2), st.data())
def test_random_convolutions(seed, group, kernel, stride, data):
    pads = data.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4))
    dilation = data.draw(st.integers(1, 2))

    def function(b):
        x = b.op("Sigmoid", b.input("x", ["N", 4, 7, 6]))
        weight = b.random(4, 4 // group, kernel, kernel)
        sizes = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": pads}
        b.op("Conv", x, weight, b.random(4), name="y", group=group, **sizes)

    before, _, after, batch = rounded_and_corrected(function, "weights=int2 activations=none", seed)
    assert shifts(before, after, batch).max() < 1e-5


def channel_means(model, names, batch):
    session = quantized.runtime.session(quantized.runtime.with_outputs(model, names), optimize=False)
    return [array.mean(axis=(0, 2, 3)) for array in session.run(names, batch)]


def residual_net(b):
    x = b.op("Relu", b.conv(b.input("x", ["N", 4, 8, 8]), 4, 8, pads=[1] * 4))
    for _ in range(3):
        y = b.op("Relu", b.conv(x, 8, 8, pads=[1] * 4))
        x = b.op("Relu", b.op("Add", x, b.conv(y, 8, 8, pads=[1] * 4)))
    b.op("GlobalAveragePool", x, name="y")


def test_empirical_means_are_those_of_the_float_model_in_every_layer():
    b = small.Builder(3)
    residual_net(b)
    proto = b.model("y")
    batch = small.feeds(quantized.loaded(proto), 0, 32)
    worst = {}
    for method in ("statistics", "empirical"):
        line = f"{ROUNDED % 'weights=int3 activations=uint4'},correct-bias{{method={method}}}"
        before, after = quantized.apply(proto, line, batch)
        real = {v.name for n in before.graph for v in n.outputs}
        sums = [n for n in after.graph if n.op_type == "Add"]
        first = [n for n in after.graph if n.op_type == "Conv"][:2]
        names = [str(n.outputs[0].name) for n in (*first, *sums) if n.outputs[0].name in real]
        assert len(names) == 5
        means = zip(channel_means(before, names, batch), channel_means(after, names, batch), strict=True)
        worst[method] = max(float(np.abs(one - two).max()) for one, two in means)
    assert worst["empirical"] < 0.5 * worst["statistics"]


def test_empirical_correction_raises_the_accuracy_where_activations_are_coarse():
    gains = []
    for seed in range(6):
        b = small.Builder(seed)
        narrow_cnn(b)
        proto = b.model("y")
        batch = small.feeds(quantized.loaded(proto), 0, 32)
        ratios = []
        for method in ("statistics", "empirical"):
            line = f"{ROUNDED % 'weights=int4 activations=uint4'},correct-bias{{method={method}}}"
            before, after = quantized.apply(proto, line, batch)
            ratios.append(quantized.sqnr(before, after, small.feeds(before, 50 + seed, 64))["y"])
        gains.append(ratios[1] - ratios[0])
    assert np.mean(gains) > 1


def test_empirical_correction_needs_samples():
    b = small.Builder(1)
    gemm(b)
    model = quantized.quantize(b.model("y"), line=ROUNDED % "weights=int4")
    with pytest.raises(CalibrationError, match="samples"):
        CorrectBias(method="empirical").run(model, Statistics())


@pytest.mark.parametrize(("network", "step"), [(padded, CorrectBias()), (residual_net, CorrectBias("empirical"))])
def test_a_second_run_changes_nothing(network, step):
    b = small.Builder(1)
    network(b)
    model = quantized.loaded(b.model("y"))
    line = [*pipeline.parse(ROUNDED % "weights=int4"), step]
    stats = quantized.statistics(model, [o for p in line for o in p.observe(model)], small.feeds(model, 0, 8))
    pipeline.run(model, line[:-1], stats=stats)
    assert step.run(model, stats)
    once = small.serialized(model)
    assert not step.run(model, stats)
    assert small.serialized(model) == once
