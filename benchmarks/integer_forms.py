"""The integer forms: equal integers, accuracy and latency, against Q/DQ, free scales and float32.

Three tables:

- ``equality``: how many output integers differ between ``form=qlinear`` and ``form=integer`` in ONNX Runtime, and from
  ``form=integer`` in ``onnx.reference`` on small models (slow: few inputs), on the evaluation samples;
- ``accuracy``: score and SQNR of each form, of portable weights, and of free float scales;
- ``latency``: of one sample on one thread, in interleaved blocks.

Models that have operators without an integer form are compiled with ``allow_float``; every other operator with an
integer form runs in integers, in Q/DQ too, so that the forms compare. kwt1 and the other transformers are so slow in
integers alone that their latency with float parts, chosen by cost, is shown too.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import onnx_ir as ir
import zoo
from onnx.reference import ReferenceEvaluator

import qcomp
from qcomp import pipeline, runtime

EVERYTHING = pipeline.preset(1).replace("choose-precision", "choose-precision{by=all}")
FREE = EVERYTHING.replace("ranges=mse", "ranges=mse scales=free")
WITH_FLOAT = ("ultraface", "minilm")
"""Boxes are decoded by operators without an integer form, masks are infinite."""
BY_REFERENCE = (
    "cifar10_resnet20_bn",
    "mlperf_ic_resnet8",
    "mlperf_kws_dscnn",
    "mnist_cntk_opt",
    "digits_cnn",
    "digits_vit",
    "kwt1",
)
"""Small enough for onnx's reference implementation."""
DEFAULT = ("mobilenetv2", "squeezenet1.1", *BY_REFERENCE, "ultraface")


def main() -> None:
    """Print the tables asked for."""
    parser = zoo.arguments(__doc__)
    parser.add_argument("--tables", default="equality,accuracy,latency", help="which, by name")
    parser.add_argument("--inputs", type=int, default=200, help="samples of the equality table")
    parser.add_argument("--by-reference", type=int, default=200, help="of them, by onnx.reference")
    parser.add_argument("--blocks", type=int, default=40, help="blocks of each contender")
    options = parser.parse_args()
    data = zoo.data_of(options)
    models = zoo.selected(options.models or ",".join(DEFAULT))
    tables: dict[str, Callable[[Any, Path, argparse.Namespace], list[list[str]]]] = {
        "equality": _equality,
        "accuracy": _accuracy,
        "latency": _latency,
    }
    for name in options.tables.split(","):
        rows = [row for model in models for row in tables[name](model, data, options)]
        print(f"\n{measure.table(COLUMNS[name], rows)}")


COLUMNS = {
    "equality": ("model", "inputs", "integers", "qlinear / integer", "by reference", "reference / integer"),
    "accuracy": ("model", "samples", "variant", "score %", "to float32", "to Q/DQ", "SQNR dB"),
    "latency": ("model", "compared", "median", "p10-p90"),
}


def _compiled(model: zoo.Model, data: Path, **options: Any) -> ir.Model:
    allow = model.name in WITH_FLOAT and "to" in options
    chosen = model.compile_options() | ({"allow_float": True} if allow else {}) | options
    return qcomp.compile(model.path(data), model.calibration(data), **chosen).model


def _everything(model: zoo.Model) -> dict[str, str]:
    """All that has an integer form in integers; where some has none, by cost, as the forms with float parts are."""
    return {} if model.name in WITH_FLOAT else {"passes": EVERYTHING}


def _form(name: str) -> str:
    return f"onnxruntime{{form={name}}}"


def _integers(model: ir.Model) -> ir.Model:
    """The model with the integers for outputs, where they are dequantized last."""
    clone = model.clone()
    for index, value in enumerate(clone.graph.outputs):
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            clone.graph.outputs[index] = producer.inputs[0]
    return clone


def _equality(model: zoo.Model, data: Path, options: argparse.Namespace) -> list[list[str]]:
    batches, count = [], 0
    for feeds in model.evaluation(data, model):
        if count < options.inputs:
            batches.append(feeds)
            count += len(next(iter(feeds.values())))
    forms = {name: _integers(_compiled(model, data, to=_form(name))) for name in ("qlinear", "integer")}
    results = {name: _outputs(runtime.session(form), batches) for name, form in forms.items()}
    differing, total = _differing(results["qlinear"], results["integer"])
    row = [model.name, str(count), str(total), str(differing)]
    if model.name not in BY_REFERENCE:
        return [[*row, "-", "-"]]
    few = batches[: max(1, options.by_reference // len(next(iter(batches[0].values()))))]
    evaluator = ReferenceEvaluator(ir.to_proto(forms["integer"]))
    found, _ = _differing(_outputs(evaluator, few), results["integer"])
    return [[*row, str(sum(len(next(iter(f.values()))) for f in few)), str(found)]]


def _outputs(runner: Any, batches: list[zoo.Feeds]) -> list[list[np.ndarray[Any, Any]]]:
    return [runner.run(None, feeds) for feeds in batches]


def _differing(one: list[list[Any]], other: list[list[Any]]) -> tuple[int, int]:
    pairs = [(a, b) for left, right in zip(one, other, strict=False) for a, b in zip(left, right, strict=True)]
    return sum(int((a != b).sum()) for a, b in pairs), sum(a.size for a, _ in pairs)


def _accuracy(model: zoo.Model, data: Path, options: argparse.Namespace) -> list[list[str]]:
    batches = model.evaluation(data, model)
    truth = model.truth(data) if model.truth else None
    real = zoo.evaluate(model, runtime.session(model.path(data)), batches, truth)
    variants = {
        "qdq": _everything(model),
        "free scales": {"passes": FREE},
        "qlinear": {"to": _form("qlinear")},
        "integer": {"to": _form("integer")},
        "qlinear portable": {"to": "onnxruntime{form=qlinear portable=true}"},
    }
    count = str(sum(len(next(iter(b.values()))) for b in batches))
    rows, base = [[model.name, count, "float32", _number(real.score), "", "", ""]], None
    for name, chosen in variants.items():
        found = zoo.evaluate(model, runtime.session(_compiled(model, data, **chosen)), batches, truth)
        base = base or found
        points = [found.score, found.score - real.score, found.score - base.score, real.sqnr(found)]
        rows.append([model.name, count, name, *map(_number, points)])
    return rows


def _latency(model: zoo.Model, data: Path, options: argparse.Namespace) -> list[list[str]]:
    few = {"samples": 32}
    forms = {
        "qdq": _everything(model),
        "qlinear": {"to": _form("qlinear")},
        "integer": {"to": _form("integer")},
        "qdq by cost": {},
        "qlinear by cost": {"to": _form("qlinear"), "allow_float": True},
    }
    sessions = {name: runtime.session(_compiled(model, data, **chosen, **few)) for name, chosen in forms.items()}
    sessions["float32"] = runtime.session(model.path(data))
    sample = zoo.one_sample(model, data)
    calls = {name: functools.partial(runner.run, None, sample) for name, runner in sessions.items()}
    timing = measure.interleaved(calls, blocks=options.blocks)
    pairs = [("qlinear", "qdq"), ("qlinear by cost", "qdq by cost"), ("qlinear", "float32"), ("integer", "float32")]
    rows = []
    for one, other in pairs:
        middle, low, high = timing.ratio(one, other)
        rows.append([model.name, f"{one} / {other}", f"{middle:.2f}", f"{low:.2f}-{high:.2f}"])
    return rows


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


if __name__ == "__main__":
    main()
