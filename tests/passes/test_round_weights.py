from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small
from hypothesis import given, settings
from hypothesis import strategies as st

from qcomp import graph, qdq
from qcomp.calibration.observers import Statistics
from qcomp.passes import round_weights
from qcomp.passes.round_weights import RoundWeights
from qcomp.quantization import qtype
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
