"""ONNX Runtime's kernels in place of tables: the same entries, or none."""

from __future__ import annotations

import numpy as np
import pytest
import quantized
import small_graphs as small

from qcomp import graph
from qcomp.integer import functions
from qcomp.integer.tables import Origin
from qcomp.passes.use_table_kernels import MARGINS, UseTableKernels

LINE = f"{quantized.WITHOUT_CHOICE},dyadic-rescale"


def build(kind, seed, **attributes):
    b = small.Builder(seed)
    b.op(kind, b.op("Mul", b.input("x", ["N", 300]), b.constant(b.rng.uniform(0.1, 5))), name="y", **attributes)
    return b.model("y")


def every_integer(model):
    """Inputs that take every one of the 256 integers."""
    node = next(n for n in model.graph if n.op_type == "QuantizeLinear")
    scale, zero = (graph.scalar(v) for v in node.inputs[1:])
    return {"x": (scale * (np.arange(300).clip(0, 255) - zero))[None].astype("f4")}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("case", [("Sigmoid", {}), ("LeakyRelu", {}), ("LeakyRelu", {"alpha": 0.2})], ids=str)
def test_entries_are_the_same_bit_for_bit(case, seed):
    kind, attributes = case
    model = quantized.quantize(build(kind, seed, **attributes), line=LINE)
    inputs = every_integer(model)
    before = small.run(model, inputs)["y"]
    UseTableKernels().run(model, None)
    quantized.check(model)
    np.testing.assert_array_equal(small.run(model, inputs)["y"], before)
    np.testing.assert_array_equal(quantized.run_optimized(model, inputs)[0], before)


@pytest.mark.parametrize("kind", MARGINS)
def test_most_tables_give_way_and_take_their_body_with_them(kind):
    models = [quantized.quantize(build(kind, seed), line=LINE) for seed in range(10)]
    changed = [UseTableKernels().run(model, None) for model in models]
    assert sum(changed) >= 6
    for model, gave_way in zip(models, changed, strict=True):
        kinds = [n.op_type for n in model.graph]
        assert (f"QLinear{kind}" in kinds) is gave_way
        assert ("Table" in kinds) is not gave_way
        assert bool(model.functions) is not gave_way
        assert (functions.DOMAIN in model.graph.opset_imports) is not gave_way


def test_an_entry_in_the_middle_of_two_integers_keeps_the_table():
    model = quantized.quantize(build("LeakyRelu", 0), line=LINE)
    node = next(n for n in model.graph if n.op_type == "Table")
    origin = Origin.read(node)
    Origin("LeakyRelu", 0.5, 1.0, origin.x_zero_point, 1.0, origin.y_zero_point).write(node)
    assert not UseTableKernels().run(model, None)


@pytest.mark.parametrize("kind", ["HardSwish", "Tanh", "Elu"])
def test_other_tables_stay(kind):
    assert not UseTableKernels().run(quantized.quantize(build(kind, 0), line=LINE), None)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '["LeakyRelu", 1, 0, 3, 1, 3]', '["LeakyRelu", 1, 1, 300, 1, 3]', "["]
)
def test_a_note_that_makes_no_sense_is_none(text):
    model = quantized.quantize(build("LeakyRelu", 0), line=LINE)
    node = next(n for n in model.graph if n.op_type == "Table")
    node.metadata_props["qcomp.table"] = text
    assert Origin.read(node) is None
    assert not UseTableKernels().run(model, None)
