"""What is printed of a compilation, from reports made by hand."""

from __future__ import annotations

import math

import pytest

from qcomp import guard, pipeline
from qcomp.report import advice, compilation, console
from qcomp.report.summary import FloatOperator, Report


def report(ratio: float, *, passes: str = pipeline.PRESETS[1], quantized: int = 3, samples: int = 512) -> Report:
    worst = [("a/Conv", ratio)] if ratio < guard.WARN_DB else []
    error = guard.Error({"y": ratio}, samples=32, worst=worst)
    counts = {"Conv": quantized} if quantized else {}
    return Report(counts, [], 4_000_000, 1_000_000, 1.0, samples, passes, error, files=["m.onnx"])


def test_no_warning_where_the_outputs_are_near():
    assert advice.warnings(report(30.0)) == []
    assert advice.warnings(report(math.inf)) == []
    assert "19.0 dB, less than 20 dB" in advice.warnings(report(19.0))[0]
    assert "30.0 dB, less than 35 dB" in advice.warnings(report(30.0), bound=35)[0]


def test_nothing_quantized_is_a_warning():
    assert "nothing is quantized" in advice.warnings(report(90.0, quantized=0))[0]


@pytest.mark.parametrize(
    ("passes", "bound", "samples", "expected"),
    [
        (pipeline.PRESETS[1], None, 512, ["--keep", "--guard", "--activations"]),
        (pipeline.PRESETS[1], 20.0, 512, ["--keep", "--activations"]),
        (pipeline.PRESETS[0], 20.0, 8, ["--keep", "--activations", "-O1", "more"]),
        ("choose-precision,insert-qdq{weights=int4 activations=uint16}", 20.0, 512, ["--keep", "--weights"]),
        ("insert-qdq{activations=none}", 20.0, 512, ["--keep"]),
    ],
)
def test_remedies_are_those_that_are_not_in_use_yet(passes, bound, samples, expected):
    found = advice.remedies(report(5.0, passes=passes, samples=samples), bound)
    assert [remedy.split()[0] for remedy in found] == expected


@pytest.mark.parametrize("allowed", [True, False])
def test_integer_forms_are_not_told_to_take_what_they_refuse(allowed):
    line = f"{pipeline.PRESETS[1]},dyadic-rescale{{allow_float={str(allowed).lower()}}}"
    found = advice.remedies(report(5.0, passes=line))
    assert [remedy.split()[0] for remedy in found] == ["--keep", "--guard"]
    assert all(("--allow-float" in remedy) is not allowed for remedy in found)
    narrow = advice.remedies(report(5.0, passes=line.replace("insert-qdq{", "insert-qdq{activations=uint4 ")), 20.0)
    assert [remedy.partition("  (")[0] for remedy in narrow[1:]] == ["--activations uint8"]


def test_reasons_are_grouped_the_most_frequent_first():
    reasons = {"Erf has no integer form": ["Erf"], "kept by 'x'": ["Conv", "Conv", "Add"]}
    operators = [FloatOperator(kind, "n", reason) for reason, kinds in reasons.items() for kind in kinds]
    groups = [(reason, dict(kinds)) for reason, kinds in compilation.by_reason(operators)]
    assert groups == [("kept by 'x'", {"Conv": 2, "Add": 1}), ("Erf has no integer form", {"Erf": 1})]


def test_summary(capsys):
    compilation.show(report(5.0), name="net.onnx")
    text = capsys.readouterr().out
    for part in ("Compiled net.onnx", "3 Conv", "4.0 MB -> 1.0 MB (4.0 times smaller)", "y 5.0 dB", "a/Conv", "--keep"):
        assert part in text


def test_brackets_in_names_are_not_markup(capsys):
    table = console.table("Name")
    console.row(table, "block[bold]1[/]:smile:")
    console.show(table)
    assert "block[bold]1[/]:smile:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (console.size(0), "0 B"),
        (console.size(999), "999 B"),
        (console.size(1000), "1.0 kB"),
        (console.size(1_234_567), "1.2 MB"),
        (console.size(5 * 10**12), "5000.0 GB"),
        (console.percent(1.0), "100 %"),
        (console.percent(0.99999), "99.9 %"),
        (console.percent(0.5), "50 %"),
        (console.decibels(math.inf), "exact"),
        (console.milliseconds(0.0123456), "12.3 ms"),
        (console.milliseconds(0.00023), "0.230 ms"),
        (console.milliseconds(0.9996), "1000 ms"),
        (console.milliseconds(2.5), "2500 ms"),
        (console.counted({}), "nothing"),
    ],
)
def test_units(shown, expected):
    assert shown == expected
