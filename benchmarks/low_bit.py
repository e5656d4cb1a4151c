"""Low-bit accuracy: few bits, one scale for a weight, powers of two, transformers; each pass and all together."""

from __future__ import annotations

import argparse
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import measure
import zoo

import qcomp
from qcomp import pipeline, runtime

COLUMNS = ("model", "bits", "passes", "score %", "points", "SQNR dB", "compile s")
MATMULS = {"by": "all", "keep": ("Softmax", "LayerNormalization", "Gelu", "Add", "Mul")}
"""Every matrix product in integers, what lies between them in float."""


@dataclass(frozen=True)
class Case:
    """One row of what is to be reached.

    Args:
        model, bits: what and how; the name of the setting.
        options: of the passes that have them.
        alone: passes whose own effect is measured too, each beside ``-O1``.
    """

    model: str
    bits: str
    options: dict[str, Any] = field(default_factory=dict)
    alone: tuple[str, ...] = ("round-weights{method=gptq}", "round-weights{method=learned}")


EQUAL = ("equalize", "split-outlier-channels", "round-weights{method=learned}")
SMOOTH = ("reparameterize-scales", "rotate", "round-weights{method=learned}")
POW2 = {"per_channel": False, "scales": "pow2"}
W4, W3 = {"weights": "int4"}, {"weights": "int3"}
W4A4 = {"weights": "int4", "activations": "uint4"}
CASES = (
    Case("mobilenetv2", "W8A8 per tensor", {"per_channel": False}, EQUAL),
    Case("mobilenetv2", "W8A8 per tensor, pow2", POW2, EQUAL),
    Case("mobilenetv2", "W4A8", W4, ("equalize", "round-weights{method=gptq}", "round-weights{method=learned}")),
    Case("mobilenetv2", "W3A8", W3),
    Case("squeezenet1.1", "W4A8", W4),
    Case("cifar10_resnet20_bn", "W4A8", W4),
    Case("cifar10_resnet20_bn", "W4A4", W4A4),
    Case("mlperf_ic_resnet8", "W4A8", W4),
    Case("mlperf_kws_dscnn", "W4A8", W4),
    Case("kwt1", "W8A8 every MatMul", MATMULS, SMOOTH),
    Case("kwt1", "W4A8 every MatMul", MATMULS | W4, SMOOTH),
    Case("kwt1", "W4A4 every MatMul", MATMULS | W4A4, SMOOTH),
    Case("minilm", "W8A8 every MatMul", MATMULS, SMOOTH),
    Case("minilm", "W4A8 every MatMul", MATMULS | W4, SMOOTH),
)


def main() -> None:
    """Print one table."""
    parser = zoo.arguments(__doc__)
    parser.add_argument("--bits", default="", help="only settings whose name holds this text")
    parser.add_argument("--alone", action="store_true", help="also each pass on its own beside -O1")
    parser.add_argument("--levels", default="1,2", help="which of -O0 to -O3")
    options = parser.parse_args()
    data, names = zoo.data_of(options), {model.name for model in zoo.selected(options.models)}
    rows: list[list[str]] = []
    for case in CASES:
        if case.model in names and options.bits in case.bits:
            rows += _rows(case, data, options)
    print(measure.table(COLUMNS, rows))
    print(f"\nPeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


def _rows(case: Case, data: Any, options: argparse.Namespace) -> Iterator[list[str]]:
    model = zoo.MODELS[case.model]
    batches, truth = model.evaluation(data, model), model.truth(data) if model.truth else None
    real = zoo.evaluate(model, runtime.session(model.path(data)), batches, truth)
    yield [case.model, "float32", "", f"{real.score:.2f}", "", "", ""]
    for label, line in _lines(case, options):
        given = model.compile_options()
        compiled = qcomp.compile(model.path(data), model.calibration(data), passes=line, **given)
        found = zoo.evaluate(model, runtime.session(compiled.model), batches, truth)
        numbers = [f"{n:.2f}" for n in (found.score, found.score - real.score, real.sqnr(found))]
        yield [case.model, case.bits, label, *numbers, f"{compiled.report.seconds:.1f}"]


def _lines(case: Case, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What is compared, and its line of passes."""
    plain = pipeline.preset(1)
    if options.alone:
        for step in case.alone:
            name = step.partition("{")[0]
            changed = plain.replace(name, step) if name in plain else plain.replace("choose-", f"{step},choose-", 1)
            yield f"-O1 and {step}", _with(changed, case)
    for level in options.levels.split(","):
        yield f"-O{level}", _with(pipeline.preset(int(level)), case)


def _with(line: str, case: Case) -> str:
    return ",".join(map(str, pipeline.override(pipeline.parse(line), **case.options)))


if __name__ == "__main__":
    main()
