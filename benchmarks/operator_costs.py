"""What one operator costs in ONNX Runtime in float and in integers, on one thread.

These are the numbers behind ``qcomp/precision/costs.py``.

An operator's time is the slope between models with few and with many copies of it, so that the fixed cost of a run
(the call, inputs and outputs, conversions at the ends) drops out: copies in a row where input and output have one
shape, side by side otherwise. The integer side is what ONNX Runtime fuses from Q/DQ pairs, or for pools, which it
would run in the slow NCHW order without a Conv beside them, its channels-last operator itself. Least of many blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import measure
import numpy as np
import onnx
import onnxruntime as ort
import zoo
from operator_cases import Case, cases

from qcomp import files
from qcomp.precision import costs

FEW, MANY = 2, 8
BLOCK_SECONDS = 0.004
_COLUMNS = ("operator", "size", "float ns", "costs.py", "integer ns", "costs.py", "integer / float", "costs.py")


def main() -> None:
    """Print what was measured beside costs.py, then a linear model of each operator."""
    parser = zoo.arguments(__doc__, models=False)
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--blocks", type=int, default=15)
    options = parser.parse_args()
    rows, found = [], {}
    for case in cases():
        if options.only in case.operator:
            times = _measured(case, options.blocks)
            found.setdefault(case.operator, []).append((case.counts, times))
            rows.append(_row(case, times))
    print(measure.table(_COLUMNS, rows))
    print(
        "\nLinear models, ns: a fixed cost, then slopes: of Conv multiply-accumulates, taps, outputs;\n"
        "of MatMul multiply-accumulates, outputs; of the others elements\n"
    )
    fits = [[name, *(_model(points, column) for column in (0, 1))] for name, points in found.items() if len(points) > 2]
    print(measure.table(("operator", "float", "integer"), fits))


def _measured(case: Case, blocks: int) -> tuple[float, float]:
    """ns of one copy, in float and in integers."""
    calls = {
        f"{kind}{copies}": _call(build(copies))
        for kind, build in (("float", case.real), ("integer", case.integer))
        for copies in (FEW, MANY)
    }
    timing = measure.interleaved(calls, blocks=blocks, block_seconds=BLOCK_SECONDS)
    least = {name: min(seconds) for name, seconds in timing.blocks.items()}
    slopes = [(least[f"{kind}{MANY}"] - least[f"{kind}{FEW}"]) / (MANY - FEW) for kind in ("float", "integer")]
    return 1e9 * slopes[0], 1e9 * slopes[1]


def _call(model: onnx.ModelProto) -> Callable[[], object]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    runner = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = runner.io_binding()
    for value in runner.get_inputs():
        array = np.random.default_rng(0).integers(0, 255, value.shape).astype(np.uint8)
        binding.bind_cpu_input(value.name, array if "uint8" in value.type else (array * 0.01 - 1).astype(np.float32))
    for value in runner.get_outputs():
        dtype = np.uint8 if "uint8" in value.type else np.float32
        binding.bind_ortvalue_output(value.name, ort.OrtValue.ortvalue_from_numpy(np.zeros(value.shape, dtype)))
    return functools.partial(runner.run_with_iobinding, binding)


def _row(case: Case, times: tuple[float, float]) -> list[str]:
    stated = _stated(case)
    cells = [f"{number:.0f}" for pair in zip(times, stated, strict=True) for number in pair]
    return [case.operator, case.size, *cells, f"{times[1] / times[0]:.2f}", f"{stated[1] / stated[0]:.2f}"]


def _stated(case: Case) -> tuple[float, float]:
    """What costs.py says of one copy."""
    nodes = list(files.prepare(files.read(case.real(1))).graph) if not case.operator.startswith("Quantize") else []
    if not nodes:
        price = costs.NODE + costs.CONVERT * case.counts[0]
        return price, price
    cost = costs.of(nodes[0])
    converting = costs.convert(nodes[0].inputs[0]) if case.operator.startswith("Q +") else 0.0
    return cost.real, cost.integer + converting


def _model(points: Sequence[tuple[tuple[int, ...], tuple[float, float]]], column: int) -> str:
    """The non-negative linear model with the least relative errors, and its largest relative error."""
    counts = np.array([(1, *sizes) for sizes, _ in points], float)
    times = np.array([max(pair[column], 1.0) for _, pair in points])
    kept = list(range(counts.shape[1]))
    while True:
        found = np.linalg.lstsq(counts[:, kept] / times[:, None], np.ones(len(times)), rcond=None)[0]
        if (found >= 0).all():
            break
        kept.pop(int(np.argmin(found * counts[:, kept].mean(axis=0))))
    full = np.zeros(counts.shape[1])
    full[kept] = found
    worst = np.abs(counts @ full / times - 1).max()
    return " + ".join([f"{full[0]:.0f}", *(f"{slope:.3g}" for slope in full[1:])]) + f" (within {100 * worst:.0f} %)"


if __name__ == "__main__":
    main()
