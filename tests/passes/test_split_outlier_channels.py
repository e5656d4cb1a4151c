from __future__ import annotations

import numpy as np
import pytest
import quantized
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp import files
from qcomp.calibration.observers import Statistics
from qcomp.linear import Linear
from qcomp.passes import split_outlier_channels
from qcomp.passes.split_outlier_channels import SplitOutlierChannels
from qcomp.quantization import qtype

QUANTIZED = "choose-precision{by=all},insert-qdq{%s per_channel=%s ranges=minmax weight_ranges=minmax},round-weights"


ONE_MORE = SplitOutlierChannels()


def split(proto, step=ONE_MORE, *, changed=True):
    """Run the pass: outputs stay, the graph is valid, and a second run changes nothing."""
    model = files.load(proto)
    inputs = small.feeds(model, 7)
    before, observed = small.run(model, inputs), list(step.observe(model))
    stats = quantized.statistics(model, observed, inputs) if observed else Statistics()
    assert step.run(model, stats) is changed
    quantized.check(model)
    assert small.moved(before, small.run(model, inputs)) < 1e-5
    assert not step.run(model, stats)
    return model


def widths(model):
    """How many inputs each linear operator reads, in order."""
    return [linear.input_channels for n in model.graph if (linear := Linear.match(n)) is not None]


def between(b, x, kind):
    """What may stand between a Conv of 4 channels and its reader."""
    if kind == "Clip":
        return b.op("Clip", x, b.constant(np.float32(0)), b.constant(np.float32(6)))
    if kind == "depthwise":
        return b.op("Relu", b.conv(x, 4, 4, group=4, pads=[1] * 4))
    if kind in ("MaxPool", "AveragePool"):
        return b.op(kind, x, kernel_shape=[2, 2])
    if kind == "Pad":
        return b.op("Pad", x, b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    if kind in ("channels", "number"):
        return b.op("Add", b.op("Mul", x, b.random(4, 1, 1)), b.random(*((4, 1, 1) if kind == "channels" else ())))
    if kind == "Concat":
        return b.op("Concat", b.op("Relu", b.conv(b.op("Identity", "x"), 3, 4)), b.op("Relu", x), axis=1)
    if kind == "gate":
        return b.op("Mul", x, b.op("Sigmoid", x))
    return b.op(kind, x)


THROUGH = ["Relu", "MaxPool", "AveragePool", "Pad", "depthwise", "Concat", "number", "channels", "LeakyRelu"]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    kind=st.sampled_from([*THROUGH, "Clip", "Sigmoid", "gate", "HardSwish"]),
    per_channel=st.booleans(),
    weights=st.sampled_from(["int8", "int4", "int2"]),
    budget=st.sampled_from([0.01, 0.4, 1.0, 2.0]),
    second=st.booleans(),
)
def test_weights_split_through_what_treats_channels_alone(seed, kind, per_channel, weights, budget, second):
    b = small.Builder(seed)
    x = between(b, b.conv(b.input("x", ["N", 3, 8, 8]), 3, 4), kind)
    channels = 8 if kind == "Concat" else 4
    ends = [b.conv(x, channels, 5, pads=[1] * 4), *([b.conv(x, channels, 2, 1, bias=False)] if second else [])]
    model = split(b.model(*ends), SplitOutlierChannels("weights", budget, weights, per_channel=per_channel))
    assert widths(model)[-1] == channels + int(np.ceil(budget * channels))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**16), kind=st.sampled_from(THROUGH), budget=st.sampled_from([0.01, 0.5, 2.0]))
def test_activations_split_through_what_commutes_with_a_factor(seed, kind, budget):
    b = small.Builder(seed)
    x = between(b, b.conv(b.input("x", ["N", 3, 8, 8]), 3, 4), kind)
    channels = 8 if kind == "Concat" else 4
    model = split(b.model(b.conv(x, channels, 5)), SplitOutlierChannels("activations", budget))
    assert widths(model)[-1] == channels + int(np.ceil(budget * channels))


@pytest.mark.parametrize("kind", ["Clip", "Sigmoid", "gate"])
def test_activations_do_not_split_where_a_part_is_not_a_multiple(kind, caplog):
    b = small.Builder()
    x = between(b, b.conv(b.input("x", ["N", 3, 8, 8]), 3, 4), kind)
    with caplog.at_level("INFO"):
        split(b.model(b.conv(x, 4, 5)), SplitOutlierChannels("activations"), changed=False)
    assert "not split" in caplog.text


@pytest.mark.parametrize("what", ["weights", "activations"])
@pytest.mark.parametrize("flat", ["Flatten", "Reshape", "Squeeze"])
@pytest.mark.parametrize("target", [(-1, 4), (0, -1), (0, 4)])
def test_through_the_flattening_of_a_mean(flat, target, what):
    b = small.Builder()
    x = b.op("GlobalAveragePool", b.op("Relu", b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4)))
    constants = {"Reshape": [b.constant(np.array(target))], "Squeeze": [b.constant(np.array([2, 3]))]}.get(flat, [])
    x = b.op(flat, x, *constants)
    b.op("Gemm", x, b.random(3, 4), b.random(3), transB=1, name="y")
    assert widths(split(b.model("y"), SplitOutlierChannels(what)))[-1] == 5


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    trans=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5]),
    shape=st.sampled_from([(6,), (1, 6), (3, 6), (1,), ()]),
    what=st.sampled_from(["weights", "activations"]),
)
def test_between_matrix_products(seed, trans, alpha, shape, what):
    b = small.Builder(seed)
    weight = b.random(6, 5) if trans else b.random(5, 6)
    x = b.op("Gemm", b.input("x", [3, 5]), weight, b.random(*shape), transB=int(trans), alpha=alpha, beta=2.0)
    b.op("MatMul", b.op("LeakyRelu", x), b.random(6, 4), name="y")
    assert widths(split(b.model("y"), SplitOutlierChannels(what)))[-1] == 7


@pytest.mark.parametrize("what", ["weights", "activations"])
def test_between_products_of_higher_rank_and_their_biases(what):
    b = small.Builder()
    x = b.op("Add", b.random(6), b.op("MatMul", b.input("x", ["N", 3, 5]), b.random(5, 6)))
    b.op("MatMul", b.op("Relu", x), b.random(6, 4), name="y")
    assert widths(split(b.model("y"), SplitOutlierChannels(what)))[-1] == 7


def test_the_channels_of_residual_streams_stay(caplog):
    b = small.Builder()
    x = b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4)
    b.op("Add", x, b.conv(x, 4, 4, pads=[1] * 4), name="sum")
    with caplog.at_level("INFO"):
        split(b.model(b.conv("sum", 4, 5)), changed=False)
    assert "not split: Add 'node_sum'" in caplog.text


@pytest.mark.parametrize("why", ["output", "transposed", "grouped"])
def test_refused(why):
    b = small.Builder()
    x = b.op("Relu", b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4))
    x = b.op("Transpose", x, perm=[0, 1, 3, 2]) if why == "transposed" else x
    y = b.conv(x, 4, 4, group=2 if why == "grouped" else 1)
    split(b.model(y, *([x] if why == "output" else [])), changed=False)


def test_weights_that_others_read_are_copied():
    b = small.Builder()
    x, weight, bias = b.input("x", ["N", 4, 9, 9]), b.random(4, 4, 3, 3, name="w"), b.random(4, name="b")
    b.op("Conv", b.op("Relu", b.op("Conv", x, weight, bias)), weight, bias, name="y")
    b.op("Conv", x, weight, bias, name="z")
    assert sorted(widths(split(b.model("y", "z")))) == [4, 4, 5]


def test_dead_channels_and_weights_of_zero_are_harmless():
    b = small.Builder()
    x = b.op("Relu", b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4))
    b.op("Conv", x, b.constant(np.zeros((5, 4, 1, 1), "f4")), name="y")
    split(b.model("y"), changed=False)


@given(
    weight=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8),
    count=st.integers(1, 5),
)
def test_rounded_parts_add_up_to_the_rounded_whole(weight, count):
    """Zhao et al. 2019, section 3.3, for any number of copies (Hermite's identity)."""
    b = small.Builder()
    array = np.array([*weight, 127.0 * count - 3], "f4")[None, :]
    halfway = np.abs(array - np.floor(array) - 0.5) < 1e-3
    b.op("MatMul", b.input("x", ["N", 1]), b.constant(np.where(halfway, np.rint(array), array)), name="y")
    linear = Linear.match(next(iter(files.load(b.model("y")).graph)))
    assert linear is not None
    kind = qtype.parse_weight("int8", "test")
    parts = split_outlier_channels._shared(linear, np.array([count]), kind, search=False, per_channel=False)
    step = np.abs(linear.weight / count).max() / kind.qmax
    whole = linear.weight[0].astype("f8") / step
    fair = np.abs(whole - np.floor(whole) - 0.5) > 1e-3
    assert np.array_equal(np.rint(parts / step).sum(axis=0)[fair], np.rint(whole)[fair])
    assert np.allclose(parts.sum(axis=0), linear.weight[0], rtol=1e-6, atol=1e-6)


def perceptron(*, outlier_weight=0.0, outlier_channel=1.0):
    """Two layers, the first of signs, which any type holds; one of its 64 channels is large, or its weights are."""
    b = small.Builder(3)
    first, second = np.sign(b.rng.normal(size=(32, 64))), b.rng.normal(size=(64, 16))
    second[5, 3] = outlier_weight or second[5, 3]
    first[:, 5] *= outlier_channel
    second[5] /= outlier_channel
    x = b.op("Gemm", b.input("x", ["N", 32]), b.constant(first), b.random(64))
    b.op("Gemm", b.op("Relu", x), b.constant(second), b.random(16), name="y")
    return b.model("y")


def gained(proto, step, options, *, per_channel=False):
    """dB of the output that the pass brings, of 500 other samples."""
    line = QUANTIZED % (options, str(per_channel).lower())
    model = files.load(proto)
    calibration, inputs = small.feeds(model, 1, 500), small.feeds(model, 2, 500)
    without, with_it = (quantized.quantize(proto, calibration, line=f"{s}{line}") for s in ("", f"{step},"))
    return quantized.sqnr(model, with_it, inputs)["y"] - quantized.sqnr(model, without, inputs)["y"]


@pytest.mark.parametrize("bits", [4, 8])
def test_one_channel_more_halves_the_step_of_weights_with_an_outlier(bits):
    """Zhao et al. 2019: the range of the tensor halves, which is up to 6 dB."""
    step = SplitOutlierChannels(budget=0.01, weights=f"int{bits}", weight_ranges="minmax", per_channel=False)
    assert gained(perceptron(outlier_weight=16.0), step, f"weights=int{bits} activations=uint16") > 3.5


def test_three_channels_more_quarter_it():
    step = SplitOutlierChannels(budget=0.04, weights="int4", weight_ranges="minmax", per_channel=False)
    assert gained(perceptron(outlier_weight=16.0), step, "weights=int4 activations=uint16") > 9


def test_one_channel_more_halves_the_step_of_activations_with_an_outlier():
    step = SplitOutlierChannels("activations", budget=0.01)
    assert gained(perceptron(outlier_channel=16.0), step, "activations=uint6") > 4


def test_offsets_make_the_split_better_than_plain_halves(monkeypatch):
    """Zhao et al. 2019, figure 2: plain halves round twice alike."""
    step = SplitOutlierChannels(budget=1.0, weights="int4", weight_ranges="minmax", per_channel=False)
    aware = gained(perceptron(), step, "weights=int4 activations=uint16")

    def plainly(linear, counts, *_, **__):
        return np.repeat(linear.weight.astype("f8") / counts[:, None], counts, axis=0)

    monkeypatch.setattr(split_outlier_channels, "_shared", plainly)
    assert aware > gained(perceptron(), step, "weights=int4 activations=uint16") + 1


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul", "batched"]),
    bias=st.sampled_from([(6,), (1, 6), (3, 6), ()]),
    trans=st.booleans(),
)
def test_clusters_of_weights_are_summed(seed, kind, bias, trans):
    b = small.Builder(seed)
    if "Conv" in kind:
        shape = (6, 4) if kind == "Conv" else (4, 6)
        x = b.op(kind, b.input("x", ["N", 4, 5, 5]), b.random(*shape, 3, 3), b.random(6))
    elif kind == "Gemm":
        weight = b.random(6, 5) if trans else b.random(5, 6)
        x = b.op("Gemm", b.input("x", [3, 5]), weight, b.random(*bias), transB=int(trans), alpha=0.5, beta=2.0)
    else:
        x = b.op("MatMul", b.input("x", ["N", 3, 5] if kind == "batched" else ["N", 5]), b.random(5, 6))
    b.op("Relu", x, name="y")
    model = split(b.model("y"), SplitOutlierChannels("clusters", 2.0))
    first, summing = ("MatMul" if kind == "batched" else kind), ("Conv" if "Conv" in kind else "MatMul")
    assert small.kinds(model) == [first, summing, "Relu"]


def test_the_budget_of_clusters_goes_to_the_largest_outliers(caplog):
    b = small.Builder()
    x = b.conv(b.input("x", ["N", 4, 9, 9]), 4, 4)
    weight = b.rng.normal(size=(4, 4, 3, 3))
    weight[0, 0, 0, 0] = 50
    b.op("Relu", b.op("Conv", b.op("Relu", x), b.constant(weight)), name="y")
    with caplog.at_level("INFO"):
        model = split(b.model("y"), SplitOutlierChannels("clusters", 1.0))
    assert small.kinds(model) == ["Conv", "Relu", "Conv", "Conv", "Relu"]
    assert "the budget does not hold it" in caplog.text


def test_clusters_give_most_weights_finer_steps():
    """SplitQuant (arXiv:2501.12428): 4-bit weights with outliers lose less."""
    b = small.Builder(3)
    weight = b.rng.normal(size=(64, 16))
    weight[np.arange(16) * 4, np.arange(16)] = 16
    b.op("Relu", b.op("MatMul", b.input("x", ["N", 64]), b.constant(weight)), name="y")
    step = SplitOutlierChannels("clusters", 2.0)
    assert gained(b.model("y"), step, "weights=int4 activations=uint16", per_channel=True) > 9


def test_weights_and_then_activations():
    b = small.Builder()
    x = b.op("Relu", b.conv(b.input("x", ["N", 3, 6, 6]), 3, 4))
    model, step = split(b.model(b.conv(x, 4, 5))), SplitOutlierChannels("activations")
    assert step.run(model, quantized.statistics(model, step.observe(model), small.feeds(model, 0)))
    quantized.check(model)


def test_offsets_follow_the_range_that_will_be_found():
    changed = []
    for ranges in ("minmax", "mse"):
        model = files.load(perceptron())
        SplitOutlierChannels(weights="int4", weight_ranges=ranges).run(model, Statistics())
        changed.append(Linear(list(model.graph)[-1]).weight)
    assert not np.array_equal(*changed)
