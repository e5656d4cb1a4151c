from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantized
import random_integer_graphs
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp import graph, pipeline, qdq
from qcomp.calibration.observers import Statistics
from qcomp.errors import CalibrationError
from qcomp.passes import round_weights
from qcomp.passes.round_weights import RoundWeights
from qcomp.quantization import qtype, saturation
from qcomp.quantization.qparams import QParams

INSERT = f"{quantized.FLOAT_REWRITES},choose-precision{{by=all}},insert-qdq{{ranges=minmax weights=%s}}"


def inserted(kind, seed, weights="int8"):
    return quantized.quantize(small.SMALL[kind](seed), line=INSERT % weights)


@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
@pytest.mark.parametrize("kind", small.SMALL)
def test_outputs_stay_bit_for_bit(kind, weights):
    model = inserted(kind, 0, weights)
    inputs = small.feeds(model, 3)
    before = small.run(model, inputs)
    assert RoundWeights().run(model, Statistics())
    quantized.check(model)
    for name, array in small.run(model, inputs).items():
        np.testing.assert_array_equal(array, before[name])


def test_no_float_weight_stays():
    model = inserted("cnn", 0)
    RoundWeights().run(model, Statistics())
    linear = [n for n in model.graph if n.op_type in ("Conv", "Gemm")]
    assert linear
    assert all(qdq.read(n.inputs[1]).source.dtype == ir.DataType.INT8 for n in linear)
    assert max(v.const_value.nbytes for v in model.graph.initializers.values() if graph.is_float(v)) <= 80


@st.composite
def grids(draw):
    seed, rank = draw(st.integers(0, 999)), draw(st.integers(1, 4))
    rng = np.random.default_rng(seed)
    array = rng.normal(size=draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank))).astype("f4")
    axis = draw(st.one_of(st.none(), st.integers(0, rank - 1)))
    kind = qtype.parse_weight(draw(st.sampled_from(["int2", "int4", "int7", "int8"])), "")
    reach = np.asarray(draw(st.floats(1e-6, 1e6))) if axis is None else rng.uniform(0.01, 3, array.shape[axis])
    return array * draw(st.sampled_from([1e-30, 1.0, 1e30])), QParams.symmetric(reach, kind, axis)


@settings(deadline=None, derandomize=True)
@given(grids())
def test_equals_qparams_quantize(case):
    array, params = case
    found = quantize_constant(array, params)
    np.testing.assert_array_equal(round_weights.nearest(found)(array), params.quantize(array))


def quantize_constant(array, params):
    """The Q/DQ pair of a constant on a graph that reads it."""
    target = ir.Graph([], [], nodes=[], opset_imports={"": 21})
    writer = qdq.Writer(target)
    scale, value = writer.scale(params, "w"), writer.constant(array, "w")
    kind = params.qtype
    integers = writer.clip(writer.quantize(value, scale, "w"), kind.qmin, kind.qmax, scale, "w")
    return qdq.read(writer.dequantize(integers, scale, "w"))


def test_rounds_big_weights_when_they_are_written(monkeypatch, tmp_path):
    now, later = inserted("cnn", 0), inserted("cnn", 0)
    RoundWeights().run(now, Statistics())
    monkeypatch.setattr(round_weights, "LAZY_BYTES", 0)
    RoundWeights().run(later, Statistics())
    assert any(isinstance(v.const_value, ir.LazyTensor) for v in later.graph.initializers.values())
    quantized.check(later)
    ir.save(later, tmp_path / "lazy.onnx")
    assert onnx.load(tmp_path / "lazy.onnx").SerializeToString(deterministic=True) == small.serialized(now)


def test_a_constant_operand_is_rounded_too():
    b = small.Builder(0)
    b.op("Add", b.input("x", ["N", 3, 4]), b.random(3, 1), name="y")
    model = quantized.quantize(b.model("y"), line=INSERT % "int8")
    inputs = small.feeds(model, 0)
    before = small.run(model, inputs)["y"]
    assert RoundWeights().run(model, Statistics())
    assert small.kinds(model).count("QuantizeLinear") == 2
    np.testing.assert_array_equal(small.run(model, inputs)["y"], before)


def test_leaves_a_model_without_q_and_dq_alone():
    model = quantized.loaded(small.cnn(0))
    before = small.serialized(model)
    assert not RoundWeights().run(model, Statistics())
    assert small.serialized(model) == before


def searched(method, weights, more="", seed=0):
    insert = f"insert-qdq{{ranges=minmax weights={weights} {more}}}"
    return f"{quantized.FLOAT_REWRITES},choose-precision{{by=all}},{insert},round-weights{{{method}}}"


def spread_cnn(seed):
    """A residual, depthwise separable net whose channels have very different sizes, as those of real ones do."""
    b = small.Builder(seed)
    x = b.op("Relu", b.conv(b.input("x", ["N", 4, 10, 10]), 4, 16, pads=[1] * 4))
    for _ in range(3):
        y = b.op("Clip", b.conv(x, 16, 32, 1), b.constant(0.0), b.constant(6.0))
        y = b.op("Relu", b.conv(y, 32, 32, group=32, pads=[1] * 4))
        x = b.op("Add", x, b.conv(y, 32, 16, 1))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.random(5, 16), b.random(5), transB=1, name="y")
    return b.model("y")


def smooth(seed, count):
    """Inputs whose neighbours are alike, as those of images are: their covariances are what GPTQ lives on."""
    noise = np.random.default_rng(seed).normal(size=(count, 4, 12, 12))
    sums = sum(noise[:, :, i : i + 10, j : j + 10] for i in range(3) for j in range(3))
    return {"x": (sums + 0.5 * sums[:, :1]).astype("f4") / 3}


@pytest.mark.parametrize("weights", ["int4", "int3"])
def test_raises_the_accuracy_of_low_bits(weights):
    """GPTQ gains several dB over nearest; learned rounding gains on GPTQ; both on inputs that did not calibrate."""
    found = {"nearest": [], "gptq": [], "learned": []}
    for seed, (method, ratios) in itertools.product(range(5), found.items()):
        proto, unseen = spread_cnn(seed), smooth(999 + seed, 64)
        line = searched(f"method={method}", weights) + (",correct-bias" if method == "nearest" else "")
        before, after = quantized.apply(proto, line, *(smooth(10 * seed + i, 16) for i in range(8)))
        old, new = (small.run(model, unseen)["y"] for model in (before, after))
        ratios.append(quantized.ratio(old - old.mean(axis=0), new - old.mean(axis=0)))
    nearest, gptq, learned = (np.mean(ratios) for ratios in found.values())
    assert gptq > nearest + 2
    assert learned > gptq + 0.1


@pytest.mark.parametrize("kind", small.SMALL)
@pytest.mark.parametrize("options", ["int4", "int8", "int4 per_channel=false", "int4 scales=free", "int3 scales=pow2"])
def test_every_small_model_stays_valid_and_loses_nothing(kind, options):
    proto = small.SMALL[kind](1)
    given = [small.feeds(quantized.loaded(proto), i, 16) for i in range(4)]
    weights, _, more = options.partition(" ")
    ratios = []
    for method in ("method=nearest", "method=learned"):
        before, after = quantized.apply(proto, searched(method, weights, more), *given)
        ratios.append(min(quantized.sqnr(before, after, given[0]).values()))
    assert ratios[1] > ratios[0] - 2


@pytest.mark.parametrize("method", ["gptq", "learned"])
def test_only_the_integers_of_the_grid_are_used(method):
    given = [smooth(i, 16) for i in range(4)]
    after = quantized.quantize(spread_cnn(0), *given, line=searched(f"method={method}", "int3"))
    weights = [graph.constant(qdq.read(n.inputs[1]).source) for n in after.graph if n.op_type in ("Conv", "Gemm")]
    assert all(np.abs(w).max() <= 3 and w.dtype == np.int8 for w in weights)


def test_scales_stay_powers_of_two():
    given = [smooth(i, 16) for i in range(4)]
    after = quantized.quantize(spread_cnn(0), *given, line=searched("method=learned", "int4", "scales=pow2"))
    for node in after.graph:
        if node.op_type == "DequantizeLinear":
            assert (np.frexp(graph.constant(node.inputs[1]))[0] == 0.5).all()


def test_scales_can_be_left_alone():
    given = [smooth(i, 16) for i in range(4)]
    scales = []
    for method in ("method=nearest", "method=learned rescale=false", "method=learned"):
        after = quantized.quantize(spread_cnn(0), *given, line=searched(method, "int3"))
        found = [qdq.read(n.inputs[1]).scale for n in after.graph if n.op_type in ("Conv", "Gemm")]
        scales.append(np.concatenate([s.ravel() for s in found]))
    np.testing.assert_array_equal(scales[0], scales[1])
    assert not np.array_equal(scales[0], scales[2])


@pytest.mark.parametrize("seed", range(25))
def test_integer_forms_still_agree_bit_for_bit(seed):
    case = random_integer_graphs.case(seed)
    line = case.line.replace("round-weights", "round-weights{method=learned}")
    assert line != case.line
    work = quantized.quantize(case.model, case.calibration, line=line)
    pipeline.run(work, pipeline.parse("dyadic-rescale"))
    expanded = work.clone()
    pipeline.run(expanded, pipeline.parse("expand-integer"))
    for name, array in small.run(work, case.feeds).items():
        np.testing.assert_array_equal(small.run(expanded, case.feeds)[name], array)


def test_portable_weights_stay_portable():
    given = [smooth(i, 16) for i in range(4)]
    line = searched("method=learned", "int8", "portable=true")
    after = quantized.quantize(spread_cnn(0), *given, line=line)
    for node in after.graph:
        if node.op_type in ("Conv", "Gemm"):
            weight = graph.constant(qdq.read(node.inputs[1]).source)
            assert not saturation.saturates(weight.reshape(len(weight), -1))


def test_without_samples_the_better_methods_say_so():
    model = inserted("cnn", 0)
    with pytest.raises(CalibrationError, match="samples"):
        RoundWeights(method="learned").run(model, Statistics())


@pytest.mark.parametrize("activations", ["none", "uint8"])
def test_layers_that_share_a_weight(activations):
    b = small.Builder(2)
    x, weight, bias = b.input("x", ["N", 4, 8, 8]), b.random(4, 4, 3, 3), b.random(4)
    first = b.op("Conv", x, weight, bias, pads=[1] * 4)
    b.op("Add", b.op("Conv", first, weight, bias, pads=[1] * 4), b.op("Conv", x, weight, pads=[1] * 4), name="y")
    proto = b.model("y")
    given = [small.feeds(quantized.loaded(proto), i, 16) for i in range(4)]
    ratios = []
    for method in ("nearest", "learned"):
        more = f"activations={activations} weight_ranges=minmax"
        before, after = quantized.apply(proto, searched(f"method={method}", "int3", more), *given)
        ratios.append(quantized.sqnr(before, after, given[0])["y"])
    assert ratios[1] > ratios[0]


def test_numbers_change_on_purpose_only_where_they_do():
    assert RoundWeights().tolerance == 1e-5
    assert RoundWeights(method="learned").tolerance is None
