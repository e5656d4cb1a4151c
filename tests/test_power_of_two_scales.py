"""insert-qdq{scales=pow2}: every scale of the graph is a power of two, and the integer forms stay exact."""

from __future__ import annotations

import integer_oracle as oracle
import numpy as np
import pytest
import quantized
import random_integer_graphs as graphs
import small_graphs as small

import qcomp
from qcomp import compiler, graph, pipeline, qdq, runtime
from qcomp.errors import OptionError
from qcomp.models import digits

MODELS = ("cnn", "mlp", "attention", "shared", "decoder")
IMAGES = digits.data()


def line(**options) -> str:
    text = " ".join(["ranges=mse scales=pow2", *(f"{k}={v}" for k, v in options.items())])
    return quantized.WITHOUT_CHOICE.replace("ranges=minmax", text)


def readers(model):
    return [found for node in model.graph for v in node.outputs if (found := qdq.read(v)) is not None]


def scales(model):
    return [found.scale for found in readers(model)]


@pytest.mark.parametrize(
    "options", [{}, {"per_channel": "false"}, {"weights": "int4", "activations": "uint4"}], ids=str
)
@pytest.mark.parametrize("kind", MODELS)
def test_every_scale_is_a_power_of_two(kind, options):
    model = quantized.quantize(small.SMALL[kind](1), line=line(**options))
    found = scales(model)
    assert len(found) > 3
    assert all((np.frexp(scale)[0] == 0.5).all() for scale in found)
    free = scales(quantized.quantize(small.SMALL[kind](1), line=line(**options).replace("pow2", "free")))
    assert not all((np.frexp(scale)[0] == 0.5).all() for scale in free)


def test_zero_points_are_free_integers():
    model = quantized.quantize(small.SMALL["cnn"](1), line=line())
    zeros = {int(found.zero_point) for found in readers(model) if not found.zero_point.ndim}
    assert len(zeros) > 2


def test_the_multipliers_of_the_integer_graph_are_one():
    b = small.Builder(3)
    x = b.op("Relu", b.conv(b.input("x", ["N", 4, 8, 8]), 4, 6))
    b.op("Add", b.conv(x, 6, 6, kernel=1), x, name="y")
    model = quantized.quantize(b.model("y"), line=line())
    pipeline.run(model, pipeline.parse("dyadic-rescale"))
    nodes = [n for n in model.graph if n.op_type in ("QLinearConv", "QLinearAdd")]
    found = [graph.constant(n.inputs[4]) for n in nodes]
    assert len(found) == 3
    assert all((np.frexp(factor)[0] == 0.5).all() for factor in found)


def lowered(model, line):
    result = model.clone()
    pipeline.run(result, pipeline.parse(line))
    return result


@pytest.mark.parametrize("seed", range(40))
def test_every_integer_form_computes_the_same(seed):
    case = graphs.case(seed)
    model = quantized.quantize(
        case.model, case.calibration, line=case.line.replace("insert-qdq{", "insert-qdq{scales=pow2 ")
    )
    integer = lowered(model, "dyadic-rescale")
    wanted = oracle.compute(integer, case.feeds)
    names = [str(v.name) for v in integer.graph.outputs]
    for form in (integer, lowered(integer, "expand-integer")):
        found = runtime.session(form).run(names, case.feeds)
        for name, got in zip(names, found, strict=True):
            np.testing.assert_array_equal(got, wanted[name])


@pytest.mark.parametrize("options", [{}, {"per_channel": "false"}, {"weights": "int4"}], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_the_qdq_graph_says_what_the_integers_are(seed, options):
    """Without a mean, whose count is no power of two, no result is even one step off."""
    b = small.Builder(seed)
    x = b.op("Relu", b.conv(b.input("x", ["N", 3, 9, 9]), 3, 8))
    y = b.op("Add", b.conv(x, 8, 8, pads=[1] * 4), x)
    z = b.op("Mul", y, b.conv(y, 8, 8, kernel=1))
    b.op("Gemm", b.op("Flatten", z), b.random(392, 5), b.random(5), name="y")
    model = quantized.quantize(b.model("y"), line=line(**options))
    inputs = small.feeds(model, 9, 20)
    wanted = small.run(lowered(model, "dyadic-rescale"), inputs)["y"]
    np.testing.assert_array_equal(small.run(model, inputs)["y"], wanted)
    np.testing.assert_array_equal(quantized.run_optimized(model, inputs)[0], wanted)


def test_a_scale_by_error_is_better_than_the_next_larger_one():
    """In 4 bits, the clipping of a few weights costs less than steps of twice the width."""
    b = small.Builder(0)
    x = b.input("x", ["N", 256])
    for _ in range(3):
        weight = b.rng.standard_t(5, (256, 256)) * 2.0 ** b.rng.uniform(-1, 1, 256) / 16
        x = b.op("Relu", b.op("Gemm", x, b.constant(weight)))
    proto = b.model(x)
    before = quantized.loaded(proto)
    inputs = small.feeds(before, 5, 64)

    def noise(weight_ranges):
        after = quantized.quantize(proto, line=line(weights="int4", weight_ranges=weight_ranges))
        return quantized.sqnr(before, after, inputs)[x]

    assert noise("auto") > noise("minmax") + 1.0


def test_compiles_as_a_user_does():
    made = qcomp.compile(digits.load("cnn"), {"image": IMAGES["train"][:64]}, scales="pow2")
    assert "scales=pow2" in made.report.passes
    assert all((np.frexp(scale)[0] == 0.5).all() for scale in scales(made.model))
    right = made.run({"image": IMAGES["test"][:200]})["logits"].argmax(axis=1) == IMAGES["test_labels"][:200]
    assert right.mean() > 0.97


def test_unknown_kinds_of_scales_are_refused():
    backend = pipeline.parse_backend("onnxruntime")
    with pytest.raises(OptionError, match=r"insert-qdq\{scales\}: unknown value 'pow3'"):
        compiler.passes_of(1, backend, scales="pow3")
