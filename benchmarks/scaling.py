"""Seconds of every pass of -O1 on chains of 500, 1,000 and 5,000 operators, calibration left out of the time.

The chain is blocks of Conv, BatchNormalization, Relu and Add on small tensors, so that mostly the graph costs.
A pass is linear where the time of an operator does not grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import onnx
import onnx_ir as ir
import zoo
from onnx import TensorProto, helper, numpy_helper

from qcomp import compiler, files, pipeline, upgrade
from qcomp.calibration.calibrator import Calibrator
from qcomp.calibration.data import open_data
from qcomp.calibration.observers import Statistics
from qcomp.runtime import input_specs

SIZES = (500, 1000, 5000)
CHANNELS, SIDE = 32, 16
"""Large enough that integers pay, else the passes that insert them would have nothing to do."""


def main() -> None:
    """Print a table with real calibration, and one of weights only."""
    parser = zoo.arguments(__doc__, models=False)
    parser.add_argument("--repeats", type=int, default=2, help="the least of so many runs")
    options = parser.parse_args()
    growth = f"s an operator, {SIZES[-1]} / {SIZES[0]}"
    columns = ("step", *(f"{size} operators, s" for size in SIZES), growth)
    for title, extra in (("-O1, statistics of two samples", {}), ("-O1 --activations none", {"activations": "none"})):
        runs = [[_run(size, extra) for _ in range(options.repeats)] for size in SIZES]
        least = [{step: min(run[step] for run in of_size) for step in of_size[0]} for of_size in runs]
        rows = [_row(step, [times[step] for times in least]) for step in least[0]]
        print(f"{title}\n\n{measure.table(columns, [*rows, _row('all', [sum(t.values()) for t in least])])}\n")


def chain(operators: int, seed: int = 0) -> onnx.ModelProto:
    """A chain of about so many operators, four a block."""
    random = np.random.default_rng(seed)
    nodes, constants, value, before = [], [], "x", "x"
    for block in range(operators // 4):
        weight = random.standard_normal((CHANNELS, CHANNELS, 1, 1)) * 0.07
        vectors = {key: random.uniform(0.5, 1.5, CHANNELS) for key in ("gamma", "beta", "mean", "variance")}
        for key, array in {"weight": weight, **vectors}.items():
            constants.append(numpy_helper.from_array(array.astype(np.float32), f"b{block}.{key}"))
        conv, normal, relu, out = (f"b{block}.{key}" for key in ("conv", "bn", "relu", "out"))
        nodes += [
            helper.make_node("Conv", [value, f"b{block}.weight"], [conv], name=conv),
            helper.make_node("BatchNormalization", [conv, *(f"b{block}.{k}" for k in vectors)], [normal], name=normal),
            helper.make_node("Relu", [normal], [relu], name=relu),
            helper.make_node("Add", [relu, before], [out], name=out),
        ]
        value, before = out, relu
    shape = ["N", CHANNELS, SIDE, SIDE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", value)]
    made = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", upgrade.OPSET)], ir_version=10)


def _run(operators: int, options: dict[str, Any]) -> dict[str, float]:
    """Seconds of every step."""
    proto, times = chain(operators), dict[str, float]()
    line = compiler.passes_of(1, pipeline.parse_backend("onnxruntime"), **options)
    with compiler._no_cyclic_gc():
        model = _timed(times, "load", lambda: files.load(proto))
        stats = Statistics()
        for index, step in enumerate(line):
            if not stats.collected:
                stats = _calibrated(model, line[index:])
            _timed(times, step.name(), lambda step=step, stats=stats: pipeline.run(model, [step], stats=stats))
        assert any(node.op_type == "DequantizeLinear" for node in model.graph), (
            "nothing was quantized: not a measurement"
        )
        _timed(times, "serialize", lambda: ir.to_proto(model).SerializeToString())
    return times


def _calibrated(model: Any, line: list[pipeline.Pass]) -> Statistics:
    """Statistics, where the first pass of the line observes something."""
    if not any(True for _ in line[0].observe(model)):
        return Statistics()
    wanted = list(dict.fromkeys(observation for step in line for observation in step.observe(model)))
    samples = np.random.default_rng(0).standard_normal((2, CHANNELS, SIDE, SIDE)).astype(np.float32)
    return Calibrator(open_data([samples], input_specs(model))).collect(model, wanted)


def _timed(times: dict[str, float], step: str, call: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = call()
    times[step] = time.perf_counter() - start
    return result


def _row(step: str, seconds: list[float]) -> list[str]:
    growth = (seconds[-1] / SIZES[-1]) / (seconds[0] / SIZES[0])
    return [step, *(f"{s:.3f}" for s in seconds), f"{growth:.2f}"]


if __name__ == "__main__":
    main()
