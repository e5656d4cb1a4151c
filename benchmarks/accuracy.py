"""Accuracy of float32, the levels (and the peer) on data that did not calibrate, 256 calibration samples."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import peer
import zoo

import qcomp
from qcomp import pipeline, runtime

COLUMNS = ("model", "samples", "variant", "score %", "points", "SQNR dB", "agreement %", "compile s")


def main() -> None:
    """Print one table."""
    parser = zoo.arguments(__doc__)
    parser.add_argument("--peer", action="store_true", help="also onnxruntime.quantization.quantize_static")
    parser.add_argument("--ranges", default="", help="also -O1 with these range methods: minmax,percentile,mse,entropy")
    parser.add_argument("--levels", default="0,1,2", help="which of -O0 to -O3")
    options = parser.parse_args()
    data = zoo.data_of(options)
    rows: list[list[str]] = []
    for model in zoo.selected(options.models):
        rows += _rows(model, data, options)
    print(measure.table(COLUMNS, rows))


def _rows(model: zoo.Model, data: Path, options: argparse.Namespace) -> list[list[str]]:
    batches = model.evaluation(data, model)
    truth = model.truth(data) if model.truth else None
    real = zoo.evaluate(model, runtime.session(model.path(data)), batches, truth)
    count = str(sum(len(next(iter(b.values()))) for b in batches))
    rows = [[model.name, count, "float32", _number(real.score), "", "", "", ""]]
    with tempfile.TemporaryDirectory() as folder:
        for name, runner, seconds in _variants(model, data, options, Path(folder)):
            found = zoo.evaluate(model, runner, batches, truth)
            agreement = model.agreement(real.answers, found.answers)
            numbers = [found.score, found.score - real.score, real.sqnr(found), agreement]
            rows.append([model.name, count, name, *map(_number, numbers), seconds])
    return rows


def _variants(
    model: zoo.Model, data: Path, options: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, Any, str]]:
    """Name, session and seconds to compile of what is compared with float32."""
    lines = {f"-O{level}": pipeline.preset(level) for level in map(int, options.levels.split(","))}
    for ranges in filter(None, options.ranges.split(",")):
        lines[f"-O1 {ranges}"] = pipeline.preset(1).replace("ranges=mse", f"ranges={ranges}")
    for name, line in lines.items():
        compiled = qcomp.compile(model.path(data), model.calibration(data), passes=line, **model.compile_options())
        yield name, runtime.session(compiled.model), f"{compiled.report.seconds:.1f}"
    if options.peer:
        start = time.perf_counter()
        path = peer.quantize(model, data, folder)
        if path is not None:
            yield "peer", runtime.session(path), f"{time.perf_counter() - start:.1f}"


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


if __name__ == "__main__":
    main()
