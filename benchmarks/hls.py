"""Designs for FPGA boards: what they are estimated to take, and whether their C simulation gives the same integers."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import numpy as np
import onnx_ir as ir
import zoo

import qcomp
from qcomp import files, outer, runtime
from qcomp.backends.hls import csim

COLUMNS = (
    "model",
    "bits",
    "board",
    "differing",
    "interval us",
    "latency us",
    "DSP",
    "BRAM18",
    "LUT",
    "emission s",
    "g++ s",
    "simulation s",
)
INPUTS = 20


@dataclass(frozen=True)
class Case:
    """One design.

    Args:
        model, board: what for which.
        bits: the name of the options.
        options: of `qcomp.compile`.
        size: height and width that the model's input gets, where it is not the model's own.
    """

    model: str
    board: str = "pynq-z2"
    bits: str = "W8A8"
    options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None


CASES = (
    Case("mlperf_ic_resnet8"),
    Case("mlperf_kws_dscnn"),
    Case("mnist_cntk_opt"),
    Case("digits_cnn"),
    Case("cifar10_resnet20_bn", "zcu104"),
    Case("cifar10_resnet20_bn", bits="W4A4", options={"weights": "int4", "activations": "uint4"}),
    Case("mobilenetv2", "alveo-u250", size=96),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Args:
        differing: output integers of the C simulation that differ from those of ``form=integer`` in ONNX Runtime.
        integers: of all inputs.
        fifos: after the run.
        report: ``report.json``.
        seconds: of emission, of g++, and of the simulation.
    """

    differing: int
    integers: int
    fifos: list[csim.Fifo]
    report: dict[str, Any]
    seconds: tuple[float, float, float]


def measured(case: Case, data: Path, folder: Path) -> Outcome:
    """Compile a case for ONNX Runtime and as a design, and run both on the same inputs."""
    model = zoo.MODELS[case.model]
    calibration, evaluation = _samples(case, data)
    options = model.compile_options() | case.options
    if case.size is not None:
        options.pop("preprocess", None)
    source = _source(case, data)
    expected = qcomp.compile(source, calibration, to="onnxruntime{form=integer}", **options).model
    design = qcomp.compile(source, calibration, to="hls", **options).model
    from qcomp.backends.hls import Hls

    start = time.perf_counter()
    Hls(board=case.board).emit(design, folder, evaluation[:1])
    emitted = time.perf_counter()
    csim.build(folder)
    built = time.perf_counter()
    simulation = csim.Simulation(folder, integers=True)
    differing, count, name = 0, 0, str(design.graph.inputs[0].name)
    runner = runtime.session(outer.strip(expected))
    for feeds in evaluation:
        numbers = {name: outer.grids(design)[name].integers(feeds[name])}
        wanted, found = runner.run(None, numbers)[0], simulation.run(None, numbers)[0]
        differing, count = differing + int((wanted != found).sum()), count + wanted.size
    ended = time.perf_counter()
    report = json.loads((folder / "report.json").read_text())
    return Outcome(differing, count, simulation.fifos, report, (emitted - start, built - emitted, ended - built))


def _source(case: Case, data: Path) -> ir.Model:
    source = files.load(zoo.MODELS[case.model].path(data))
    if case.size is not None:
        source.graph.inputs[0].shape = ir.Shape(["N", 3, case.size, case.size])
        for value in (v for node in source.graph for v in node.outputs):
            value.shape = None
    return source


def _samples(case: Case, data: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Calibration data, and inputs to compare, one after the other; cut to the middle where the size is another."""
    model = zoo.MODELS[case.model]
    evaluation, found = model.evaluation(data, model), []
    for feeds in evaluation:
        name, array = next(iter(feeds.items()))
        found += [{name: _cut(array[i : i + 1], case.size)} for i in range(len(array))]
        if len(found) >= INPUTS + 64:
            break
    if case.size is None:
        return model.calibration(data), found[:INPUTS]
    name = next(iter(found[0]))
    return [{name: np.concatenate([f[name] for f in found[INPUTS:]])}], found[:INPUTS]


def _cut(array: Any, size: int | None) -> Any:
    if size is None:
        return array
    top, left = ((n - size) // 2 for n in array.shape[2:])
    return np.ascontiguousarray(array[:, :, top : top + size, left : left + size])


def main() -> None:
    """Print one table."""
    options = zoo.arguments(__doc__).parse_args()
    data, names = zoo.data_of(options), {model.name for model in zoo.selected(options.models)}
    print(measure.table(COLUMNS, list(_rows(data, names))))


def _rows(data: Path, names: set[str]) -> Iterator[list[str]]:
    for case in (c for c in CASES if c.model in names):
        with tempfile.TemporaryDirectory() as folder:
            found = measured(case, data, Path(folder) / "design")
        used, report = found.report["estimates"], found.report
        times = [f"{report[name]:.0f}" for name in ("interval_us", "latency_us")]
        parts = [str(used[name]) for name in ("dsp", "bram18", "lut")]
        seconds = [f"{s:.1f}" for s in found.seconds]
        differing = f"{found.differing} of {found.integers}"
        yield [case.model, case.bits, case.board, differing, *times, *parts, *seconds]


if __name__ == "__main__":
    main()
