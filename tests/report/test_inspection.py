"""What inspect finds in models, and that its forecast is what the compiler does."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
import small_graphs as small

from qcomp import compiler
from qcomp.models import digits
from qcomp.report import inspection


def test_facts_of_a_float_model():
    found = inspection.inspect(digits.load("cnn"))
    assert (found.opset, found.quantized) == (21, False)
    assert [(s.name, str(s)) for s in (*found.inputs, *found.outputs)] == [
        ("image", "float32 [N, 1, 8, 8]"),
        ("logits", "float32 [N, 10]"),
    ]
    assert found.operators["BatchNormalization"] == 8
    assert found.parameters * 4 == found.weight_bytes
    assert found.macs == 2_139_520


@pytest.mark.parametrize("name", digits.NAMES)
def test_the_forecast_is_what_the_compiler_does(name):
    found = inspection.inspect(digits.load(name))
    report = compiler.compile(digits.load(name), [{"image": digits.data()["train"][:8]}]).report
    counts = Counter(kind for kind, _ in found.in_integers)
    assert {kind: counts[kind] for kind in report.quantized} == report.quantized
    assert [(o.name, o.reason) for o in found.in_float] == [(o.name, o.reason) for o in report.in_float]


def test_facts_of_a_quantized_model(tmp_path):
    result = compiler.compile(digits.load("cnn"), [{"image": digits.data()["train"][:8]}], tmp_path / "q.onnx")
    found = inspection.inspect(tmp_path / "q.onnx")
    assert found.quantized
    assert found.operators["QuantizeLinear"] > 0
    assert Counter(kind for kind, _ in found.in_integers) == result.report.quantized
    assert found.macs == 2_139_520
    assert not found.in_float


def test_the_opset_is_that_of_the_file(tmp_path):
    b = small.Builder()
    b.op("Relu", b.input("x", ["N", 4]), name="y")
    onnx.save(b.model("y", opset=13), tmp_path / "old.onnx")
    assert inspection.inspect(tmp_path / "old.onnx").opset == 13
