"""insert-qdq for weights alone: groups of inputs, and weights stored in 4 bits."""

from __future__ import annotations

import logging

import command_line
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import quantized
import small_graphs as small

import qcomp
from qcomp import files, graph, linear_qdq, pipeline, qdq
from qcomp.calibration.observers import Statistics
from qcomp.errors import ModelError, OptionError
from qcomp.passes.insert_qdq import InsertQdq
from qcomp.passes.round_weights import RoundWeights

REWRITES = f"{quantized.FLOAT_REWRITES},choose-precision{{by=all}}"


def alone(options: str, behind: str = ",round-weights") -> str:
    return f"{REWRITES},insert-qdq{{activations=none {options}}}{behind}"


def matmul(seed=0, inputs=100, outputs=48):
    b = small.Builder(seed)
    b.op("MatMul", b.input("x", ["N", 3, inputs]), b.random(inputs, outputs), name="y")
    return b.model("y")


def gemm(seed=0, **attributes):
    b = small.Builder(seed)
    shape = (48, 100) if attributes.get("transB") else (100, 48)
    b.op("Gemm", b.input("x", ["N", 100]), b.random(*shape), b.random(48), name="y", **attributes)
    return b.model("y")


def weight_of(model: ir.Model, kind: str = "MatMul") -> qdq.Reader:
    return qdq.read(next(n for n in model.graph if n.op_type == kind).inputs[1])


def dequantized(found: qdq.Reader) -> np.ndarray:
    integers = graph.constant(found.source)
    return integers.astype("f4") * found.along(found.scale, integers.shape)


@pytest.mark.parametrize("group", [16, 32, 64])
@pytest.mark.parametrize("weights", ["int2", "int3", "int4", "int5", "int8"])
def test_each_group_has_a_scale_and_every_weight_is_near(weights, group):
    before, after = quantized.apply(matmul(), alone(f"weights={weights} weight_ranges=minmax group={group}"))
    found, real = weight_of(after), graph.constant(before.graph[0].inputs[1])
    assert found.block == group
    assert found.scale.shape == (-(-100 // group), 48)
    assert (found.source.dtype == ir.DataType.INT4) == (weights in ("int2", "int3", "int4"))
    steps = np.abs(dequantized(found) - real) / found.along(found.scale, real.shape)
    assert steps.max() <= 0.5 + 1e-5


@pytest.mark.parametrize("options", ["weights=int4", "weights=int4 group=16", "weights=int2 group=32", "weights=int3"])
@pytest.mark.parametrize("kind", ["matmul", "gemm"])
def test_rounding_changes_no_bit(kind, options):
    _, model = quantized.apply({"matmul": matmul, "gemm": gemm}[kind](), alone(options, ""))
    inputs = small.feeds(model, 3)
    before = small.run(model, inputs)["y"]
    assert "Cast" in small.kinds(model)
    assert RoundWeights().run(model, Statistics())
    quantized.check(model)
    assert small.kinds(model) == ["DequantizeLinear", small.kinds(model)[-1]]
    np.testing.assert_array_equal(small.run(model, inputs)["y"], before)


def test_big_weights_are_turned_and_rounded_when_they_are_written(monkeypatch, tmp_path):
    line, proto = alone("weights=int4 group=32"), gemm(transB=1)
    now = quantized.apply(proto, line)[1]
    monkeypatch.setattr(linear_qdq, "LAZY_BYTES", 0)
    monkeypatch.setattr("qcomp.passes.round_weights.LAZY_BYTES", 0)
    later = quantized.apply(proto, line)[1]
    files.save(later, tmp_path / "later.onnx")
    assert onnx.load(tmp_path / "later.onnx").SerializeToString(deterministic=True) == small.serialized(now)


@pytest.mark.parametrize("seed", range(3))
def test_groups_hold_what_a_channel_of_uneven_inputs_loses(seed):
    """With inputs of uneven magnitude, a scale for 32 of them loses less than one for all."""
    b = small.Builder(seed)
    weight = b.rng.normal(size=(512, 64)) * 2.0 ** np.repeat(b.rng.uniform(-3, 3, 16), 32)[:, None]
    b.op("MatMul", b.input("x", ["N", 512]), b.constant(weight), name="y")

    def noise(options):
        before, after = quantized.apply(b.model("y"), alone(options))
        spread = small.feeds(before, 5, 64)["x"] / np.abs(weight).mean(axis=1)
        return quantized.sqnr(before, after, {"x": spread.astype("f4")})["y"]

    assert noise("weights=int4 group=32") > noise("weights=int4") + 6


@pytest.mark.parametrize("inputs", [33, 65, 100, 128])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_onnx_runtime_has_a_kernel_for_them(weights, inputs):
    """It quantizes the activations too: the result is near, not equal."""
    _, model = quantized.apply(matmul(inputs=inputs), alone(f"weights={weights} group=32"))
    assert quantized.fused(model) == ["MatMulNBits"]
    feeds = small.feeds(model, 1)
    assert quantized.ratio(small.run(model, feeds)["y"], quantized.run_optimized(model, feeds)[0]) > 30


@pytest.mark.parametrize("options", ["weights=int8", "weights=int4", "weights=int4 group=32"])
def test_a_transposed_gemm_is_turned_for_that_kernel(options):
    before, after = quantized.apply(gemm(transB=1), alone(options))
    assert quantized.fused(after) == ["MatMulNBits"]
    assert graph.attribute(after.graph[-1], "transB", 0) == 0
    feeds = small.feeds(after, 1)
    assert quantized.sqnr(before, after, feeds)["y"] > (15 if "int4" in options else 40)
    assert len([v for v in after.graph.initializers.values() if v.const_value.size == 4800]) == 1


def test_a_weight_that_two_gemms_share_is_turned_once():
    b = small.Builder(0)
    x, weight = b.input("x", ["N", 64]), b.random(64, 64)
    b.op("Gemm", b.op("Relu", b.op("Gemm", x, weight, transB=1)), weight, transB=1, name="y")
    before, after = quantized.apply(b.model("y"), alone("weights=int4 group=32"))
    assert small.kinds(after).count("DequantizeLinear") == 1
    assert quantized.sqnr(before, after, small.feeds(after, 1))["y"] > 12


def test_a_weight_that_another_operator_reads_stays_as_it_is_for_that_one():
    b = small.Builder(0)
    x, weight = b.input("x", ["N", 48]), b.random(48, 48)
    b.op("Add", b.op("Gemm", x, weight, transB=1), b.op("ReduceSum", weight, keepdims=0), name="y")
    before, after = quantized.apply(b.model("y"), "choose-precision{by=all},insert-qdq{activations=none},round-weights")
    assert quantized.sqnr(before, after, small.feeds(after, 1))["y"] > 35


def test_short_weights_and_convolutions_keep_a_scale_a_channel(caplog):
    b = small.Builder(0)
    x = b.op("Flatten", b.conv(b.input("x", ["N", 32, 4, 4]), 32, 2, kernel=1))
    b.op("Gemm", x, b.random(32, 7), name="y")
    with caplog.at_level(logging.INFO, logger="qcomp"):
        _, after = quantized.apply(b.model("y"), alone("weights=int4 group=32"))
    assert [weight_of(after, kind).block for kind in ("Conv", "Gemm")] == [None, None]
    assert any("Conv" in r.getMessage() and "no groups" in r.getMessage() for r in caplog.records)


def test_powers_of_two_in_groups():
    _, after = quantized.apply(matmul(), alone("weights=int4 group=32 scales=pow2"))
    assert (np.frexp(weight_of(after).scale)[0] == 0.5).all()


def test_files_of_four_bits_are_half_as_large(tmp_path):
    sizes, proto = {}, matmul(0, 512, 512)
    for weights, group in (("int8", None), ("int4", None), ("int4", 32)):
        place = tmp_path / f"{weights}-{group}.onnx"
        qcomp.compile(proto, out=place, activations="none", weights=weights, group=group)
        onnx.checker.check_model(onnx.load(place), full_check=True)
        sizes[weights, group] = place.stat().st_size - (4 * 512 * (1 if group is None else 16))
    assert sizes["int8", None] == pytest.approx(512 * 512, rel=0.01)
    assert sizes["int4", None] == pytest.approx(512 * 512 / 2, rel=0.02)
    assert sizes["int4", 32] == pytest.approx(512 * 512 / 2, rel=0.02)


def test_the_bias_is_corrected_behind_groups_too():
    proto = gemm()
    line = alone("weights=int3 group=32", ",round-weights,correct-bias")
    before = quantized.loaded(proto)
    feeds = {"x": small.feeds(before, 0, 64)["x"] + 2}
    shifts = []
    for steps in (line.removesuffix(",correct-bias"), line):
        _, after = quantized.apply(proto, steps, feeds)
        shifts.append(np.abs((small.run(after, feeds)["y"] - small.run(before, feeds)["y"]).mean(axis=0)).max())
    assert shifts[1] < 0.01 * shifts[0]


def test_integers_use_the_whole_type_where_no_kernel_needs_symmetry():
    _, after = quantized.apply(matmul(), alone("weights=int4 group=16"))
    integers = graph.constant(weight_of(after).source).astype(np.int8)
    assert integers.min() == -8
    assert integers.max() == 7


@pytest.mark.parametrize(("container", "kind"), [("auto", np.int8), ("int8", np.int8), ("int4", ml_dtypes.int4)])
def test_the_container_beside_activations(container, kind):
    line = quantized.WITHOUT_CHOICE.replace("ranges=minmax", f"ranges=minmax weights=int4 container={container}")
    found = [
        quantized.quantize(small.cnn(0), line=line.replace(f"container={c}", f"container={d}"))
        for c, d in ((container, container), (container, "auto"))
    ]
    weights = [qdq.read(n.inputs[1]).source for n in found[0].graph if n.op_type in ("Conv", "Gemm")]
    assert weights
    assert all(graph.constant(w).dtype == kind for w in weights)
    inputs = small.feeds(found[0], 1)
    for name, array in small.run(found[1], inputs).items():
        np.testing.assert_array_equal(small.run(found[0], inputs)[name], array)


def test_the_container_without_activations_can_be_int8():
    _, after = quantized.apply(matmul(), alone("weights=int4 container=int8"))
    assert weight_of(after).source.dtype == ir.DataType.INT8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("group=32", r"insert-qdq\{group\}: groups are for weights only \(add activations=none"),
        ("activations=none group=30", "no kernel knows groups of 30"),
        ("activations=none group=8", "no kernel knows groups of 8"),
        ("container=int4", r"insert-qdq\{container\}: int4 does not hold int8"),
    ],
)
def test_refuses_what_no_kernel_computes_before_calibrating(options, message):
    step = pipeline.parse(f"insert-qdq{{{options}}}")[0]
    model = quantized.loaded(matmul())
    with pytest.raises(OptionError, match=message):
        list(step.observe(model))
    with pytest.raises(OptionError, match=message):
        step.run(model, Statistics())


def test_an_opset_without_groups_is_named():
    model = quantized.loaded(matmul())
    model.graph.opset_imports[""] = 20
    with pytest.raises(ModelError, match="opset 20 has no groups of weights"):
        InsertQdq(activations=None, group=32).run(model, Statistics())
    assert InsertQdq(activations=None, weights="int4").run(model, Statistics())
    assert "Cast" not in small.kinds(model)


def test_on_the_command_line(tmp_path):
    common = ("compile", "missing.onnx", "--print-passes")
    text = command_line.ok(*common, "--activations", "none", "--weights", "int4", "--group", 32, "--scales", "pow2")
    assert "insert-qdq{weights=int4 activations=none scales=pow2 group=32}" in text
    onnx.save(matmul(), tmp_path / "m.onnx")
    said = command_line.refused("compile", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--group", 32)
    assert "groups are for weights only (add activations=none" in said
