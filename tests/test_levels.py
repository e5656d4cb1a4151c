"""The levels: what -O2 does beside -O1 where few bits, or one scale a weight, hold too little."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import small_graphs as small

import qcomp
from qcomp import compiler, pipeline, runtime
from qcomp.models import digits
from qcomp.report.outputs import sqnr

FORMS = ("qlinear", "integer")


@functools.cache
def compiled(level: int, to: str = "onnxruntime", **options) -> tuple[qcomp.compiler.Compiled, float]:
    """The digits network with 48 samples, and the SQNR of its output on others."""
    data, model = digits.data(), digits.load("cnn")
    found = compiler.compile(model, [data["train"][:48]], level=level, to=to, **options)
    feeds = {"image": data["test"][:200]}
    reference = runtime.run_batches(runtime.session(model), [feeds])
    return found, sqnr(reference["logits"], found.run(feeds)["logits"])


@pytest.mark.parametrize("weights", ["int3", "int4"])
def test_learned_rounding_saves_weights_of_few_bits(weights):
    assert compiled(2, weights=weights)[1] > compiled(1, weights=weights)[1] + 3


def test_nothing_is_lost_at_8_bits():
    assert compiled(2)[1] > compiled(1)[1] - 0.5


@pytest.mark.parametrize("scales", ["dyadic", "pow2"])
def test_one_scale_for_channels_that_differ(scales):
    """Channels of weights 1000 times apart: -O2 makes them equal where one scale has to serve all."""
    b = small.Builder(0)
    spread = np.geomspace(1, 1e3, 8).reshape(8, 1, 1, 1)
    first, last = b.rng.normal(size=(8, 3, 3, 3)) * spread, b.rng.normal(size=(4, 8, 1, 1)) / spread.reshape(1, 8, 1, 1)
    hidden = b.op("Relu", b.op("Conv", b.input("x", ["N", 3, 8, 8]), b.constant(first)))
    model, samples = b.model(b.op("Conv", hidden, b.constant(last), name="y")), b.rng.normal(size=(64, 3, 8, 8))
    data = [{"x": samples.astype("f4")}]
    lines = [pipeline.preset(level).replace("choose-precision", "choose-precision{by=all}") for level in (1, 2)]
    options = {"per_channel": False, "scales": scales}
    one, two = (compiler.compile(model, data, passes=line, **options).report.error.least for line in lines)
    assert two > one + 15


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_hold_the_same_integers(form):
    feeds = {"image": digits.data()["test"][:100]}
    expected = compiled(2, "onnxruntime{form=qlinear}", weights="int4")[0].run(feeds)["logits"]
    found = compiled(2, f"onnxruntime{{form={form}}}", weights="int4")[0].run(feeds)["logits"]
    np.testing.assert_array_equal(found, expected)


def test_weights_alone_need_no_samples():
    found = compiler.compile(digits.load("cnn"), level=2, activations="none", weights="int4")
    assert "round-weights{method" not in found.report.passes


def test_options_reach_every_pass_that_has_them():
    backend = pipeline.parse_backend("onnxruntime{form=integer}")
    steps = {
        s.name(): s for s in compiler.passes_of(2, backend, weights="int4", activations="uint4", per_channel=False)
    }
    assert not steps["equalize"].per_channel
    assert not steps["reparameterize-scales"].inputs
    for name in ("reparameterize-scales", "insert-qdq"):
        assert (steps[name].weights, steps[name].activations) == ("int4", "uint4")


def test_the_highest_level_looks_at_more():
    lines = [{s.name(): s for s in pipeline.parse(pipeline.preset(level))} for level in (2, 3)]
    assert lines[1]["round-weights"].samples > lines[0]["round-weights"].samples
    assert lines[1]["round-weights"].positions > lines[0]["round-weights"].positions
    assert compiled(3, weights="int3")[1] > compiled(1, weights="int3")[1] + 3
