from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import quantized
import small_graphs as small
from onnx import TensorProto, helper

from qcomp import guard, trial
from qcomp.compiler import compile as compile_model
from qcomp.errors import OptionError
from qcomp.report.outputs import sqnr

PASSES = f"{quantized.FLOAT_REWRITES},choose-precision{{by=all}},insert-qdq,round-weights"
RNG = np.random.default_rng(0)
DATA = [{"x": RNG.normal(size=(8, 4, 8, 8)).astype("f4")} for _ in range(4)]
LAYERS = ("node_k0", "node_k1", "node_k2", "node_y")


def poisoned(at: int | None, factor: float = 300.0):
    """Four convolutions; the one ``at`` has one output channel so large that the others share few levels."""
    b = small.Builder(1)
    x = b.input("x", ["N", 4, 8, 8])
    for i, name in enumerate(("k0", "k1", "k2", "y")):
        weight = b.rng.normal(size=(4, 4, 3, 3)) / 6
        if at is not None:
            weight[0] *= factor if i == at else 1
            weight[:, 0] /= factor if i == at + 1 else 1
        x = b.op("Conv", x, b.constant(weight), b.random(4), pads=[1] * 4, name=name)
        x = b.op("Relu", x) if name != "y" else x
    return b.model("y")


def compiled(proto, **options):
    return compile_model(proto, DATA, **({"passes": PASSES} | options))


def test_sqnr():
    signal = np.array([3.0, 4.0], np.float32)
    assert sqnr(signal, signal) == math.inf
    assert sqnr(signal, signal + np.float32([0.0, 0.5])) == pytest.approx(20)
    assert sqnr(np.zeros(2, "f4"), signal) < -1000


def test_sqnr_of_infinities():
    masked = np.array([1.0, -np.inf, 3.0], np.float32)
    assert sqnr(masked, masked) == math.inf
    assert sqnr(masked, np.float32([1.0, -1e30, 3.0])) == math.inf
    assert sqnr(masked, np.float32([1.1, -np.inf, 3.0])) == pytest.approx(30, abs=0.1)
    assert sqnr(masked, np.float32([np.nan, -np.inf, 3.0])) == -math.inf
    assert sqnr(masked, np.float32([np.inf, -np.inf, 3.0])) == -math.inf


def test_a_good_model_is_measured_and_left_alone():
    report = compiled(poisoned(None)).report
    assert report.error.least > 30
    assert report.error.samples == 32
    assert (report.error.worst, report.error.kept, report.error.reached) == ([], [], None)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_below_twenty_decibels_the_worst_layers_are_named(at):
    error = compiled(poisoned(at)).report.error
    assert error.least < guard.WARN_DB
    assert error.kept == []
    names = [name for name, _ in error.worst]
    ratios = [ratio for _, ratio in error.worst]
    assert ratios == sorted(ratios)
    assert set(names[:2]) == {LAYERS[at], LAYERS[at + 1]}


@pytest.mark.parametrize("bound", [10.0, 20.0, 30.0, 60.0])
@pytest.mark.parametrize("at", [0, 2])
def test_the_guard_reaches_the_bound_with_the_fewest_layers(at, bound):
    proto = poisoned(at)
    result = compiled(proto, guard_db=bound)
    error = result.report.error
    assert error.reached
    assert error.least >= bound
    fewest = next(
        count
        for count in range(len(LAYERS) + 1)
        if any(compiled(proto, keep=kept).report.error.least >= bound for kept in itertools.combinations(LAYERS, count))
    )
    assert len(error.kept) == fewest
    in_float = {o.name: o.reason for o in result.report.in_float}
    assert all("guard" in in_float[name] for name in error.kept)


def test_what_the_guard_measured_is_what_it_gives():
    proto = poisoned(1)
    result = compiled(proto, guard_db=25.0)
    samples = {"x": np.concatenate([d["x"] for d in DATA])}
    expected = quantized.loaded(proto)
    ratio = sqnr(small.run(expected, samples)["y"], result.run(samples)["y"])
    assert ratio == pytest.approx(result.report.error.least, abs=0.5)


def test_a_bound_out_of_reach_is_reported():
    error = compiled(poisoned(1), guard_db=1e6).report.error
    assert error.reached is (error.least == math.inf)
    b = small.Builder(0)
    b.op("Sigmoid", b.op("Conv", b.input("x", ["N", 4, 8, 8]), b.random(4, 4, 3, 3)), name="y")
    error = compiled(b.model("y"), guard_db=1e6).report.error
    assert error.reached is (error.least >= 1e6)


@pytest.mark.parametrize(
    "options",
    [{"passes": f"{quantized.FLOAT_REWRITES},insert-qdq,round-weights"}, {"data": None, "activations": "none"}],
)
def test_the_guard_needs_data_and_a_choice(options):
    arguments = {"data": DATA, "guard_db": 30.0} | options
    with pytest.raises(OptionError, match="--guard needs calibration data and the pass choose-precision"):
        compile_model(poisoned(None), **arguments)


def test_warns_without_a_pass_that_chooses_too():
    error = compiled(poisoned(1), passes=f"{quantized.FLOAT_REWRITES},insert-qdq,round-weights").report.error
    assert error.least < guard.WARN_DB
    assert {name for name, _ in error.worst[:2]} == {"node_k1", "node_k2"}


def test_samples_are_random_where_there_are_none():
    model = quantized.loaded(poisoned(None))
    first, second = trial.few(None, model, 4), trial.few(None, model, 4)
    assert first[0]["x"].shape == (1, 4, 8, 8)
    np.testing.assert_array_equal(first[0]["x"], second[0]["x"])


def test_a_model_without_float_outputs_is_not_searched(monkeypatch):
    proto = poisoned(0)
    largest = helper.make_node("ArgMax", ["y"], ["class"], axis=1)
    proto.graph.node.append(largest)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("class", TensorProto.INT64, None))
    monkeypatch.setattr(trial.Trial, "run", lambda *_: pytest.fail("it searches"))
    error = compiled(proto, guard_db=20.0).report.error
    assert (error.sqnr, error.kept, error.reached) == ({}, [], False)


def test_what_no_longer_pays_beside_kept_layers_stays_in_float_too():
    b = small.Builder(0)
    x = b.op("Relu", b.conv(b.input("x", [1, 8, 32, 32]), 8, 16, pads=[1, 1, 1, 1]))
    x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    b.op("Identity", b.conv(x, 16, 16, pads=[1, 1, 1, 1]), name="y")
    samples = np.random.default_rng(0).standard_normal((8, 1, 8, 32, 32)).astype(np.float32)
    plain = compile_model(b.model("y"), [{"x": s} for s in samples], weights="int2")
    guarded = compile_model(b.model("y"), [{"x": s} for s in samples], weights="int2", guard_db=60.0)
    assert plain.report.quantized["MaxPool"] == 1
    assert len(guarded.report.error.kept) == 2
    assert guarded.report.quantized == {}
