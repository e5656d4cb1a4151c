"""Quantizing clones of one float model with different operators kept in float, to see what each of them costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcomp import operators, pipeline, qdq, runtime, units
from qcomp.calibration.data import Samples
from qcomp.calibration.observers import Statistics
from qcomp.operators import Role
from qcomp.pipeline import Hooks, Pass
from qcomp.report.comparison import layer_errors
from qcomp.report.outputs import sqnr
from qcomp.runtime import Array, Feeds

PASSES = "qcomp.passes"
"""The key of the model's metadata that says by which passes it was quantized."""
BATCH = 4
ERROR_SAMPLES = 32
SENSITIVITY_SAMPLES = 8


def few(samples: Samples | None, model: ir.Model, count: int, batch: int = BATCH) -> list[Feeds]:
    """A few batches of samples, spread over all of them; random ones where there are none."""
    if samples is not None:
        return list(samples.few(count, min(count, batch, BATCH)))
    random = np.random.default_rng(0)
    feeds = {}
    for spec in runtime.input_specs(model):
        shape = tuple(d if isinstance(d, int) else 1 for d in spec.shape)
        values = random.standard_normal(shape) if spec.dtype.kind == "f" else np.ones(shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return [feeds]


def record_line(model: ir.Model, line: Sequence[Pass]) -> None:
    """Note in the model's metadata by which passes it was quantized."""
    model.metadata_props[PASSES] = ",".join(map(str, line))


def recorded_line(model: ir.Model) -> list[Pass] | None:
    """The passes that `record_line` noted; None where there is no such note.

    Raises:
        OptionError: it is no line of passes.
    """
    line = model.metadata_props.get(PASSES)
    return None if line is None else pipeline.parse(line)


def start_of_choice(line: Sequence[Pass], model: ir.Model) -> int:
    """Where the float rewrites of a line end: at the choice of precision, else at the first pass that observes."""
    names = [step.name() for step in line]
    if "choose-precision" in names:
        return names.index("choose-precision")
    return next((i for i, step in enumerate(line) if any(True for _ in step.observe(model))), len(line))


class Trial:
    """Quantizes clones of the rewritten float model with different operators kept in float.

    Args:
        original: the float model, whose outputs are those to reach.
        rewritten: what the float rewrites made of it.
        line: the passes behind them.
        samples: to calibrate and to measure with; None where there are none.
        hooks: of the first run.
        batch: samples a run, at most `BATCH`; 1 where their shapes differ.
    """

    def __init__(
        self,
        original: ir.Model,
        rewritten: ir.Model,
        line: Sequence[Pass],
        samples: Samples | None,
        hooks: Hooks,
        batch: int,
    ) -> None:
        self._original, self._rewritten, self._line, self._samples = original, rewritten, line, samples
        self._hooks, self._batch = hooks, batch
        self.stats: Statistics | None = None
        self._reasons: dict[str, str] = {}
        self._reference: dict[int, dict[str, Array]] = {}

    def first(self) -> ir.Model:
        """Quantize as the passes choose, collecting statistics; later runs keep what stays in float here."""
        clone = self._rewritten.clone()
        self.stats = pipeline.run(clone, self._line, self._hooks)
        self._reasons = {str(n.name): reason for n in clone.graph if (reason := qdq.why_float(n)) is not None}
        return clone

    def run(self, keep: Sequence[str], *, line: Sequence[Pass] | None = None, settle: bool = False) -> ir.Model:
        """Quantize as at first, but for the named operators, which stay in float.

        Args:
            keep: names of operators.
            line: other passes than at first, which observe nothing more.
            settle: keep also what no longer pays beside them: else it would be slower than float.
        """
        clone = self._rewritten.clone()
        reasons = self._reasons | dict.fromkeys(keep, "kept by the guard: it costs too much accuracy")
        for node in clone.graph:
            if str(node.name) in reasons:
                node.metadata_props[qdq.FLOAT_REASON] = reasons[str(node.name)]
        line = self._line if line is None else line
        everything = [pipeline.override([s], by="all")[0] if s.name() == "choose-precision" else s for s in line]
        pipeline.run(clone, line if settle else everything, Hooks(), self.stats)
        return clone

    def alone(self, name: str, *, line: Sequence[Pass] | None = None) -> ir.Model:
        """Quantize one operator, with the clamp behind it, and nothing else."""
        others = [str(n.name) for n in self._rewritten.graph if operators.role(n) is not Role.CLAMP]
        return self.run([other for other in others if other != name], line=line)

    def error(self, quantized: ir.Model, count: int = ERROR_SAMPLES) -> tuple[dict[str, float], int]:
        """The SQNR of each float output in dB, and how many samples it was measured on."""
        batches = few(self._samples, self._original, count, self._batch)
        if count not in self._reference:
            self._reference[count] = runtime.run_batches(runtime.session(self._original), batches)
        reference = self._reference[count]
        actual = runtime.run_batches(runtime.session(quantized), batches)
        ratios = {name: sqnr(array, actual[name]) for name, array in reference.items() if array.dtype.kind == "f"}
        return ratios, sum(len(next(iter(b.values()))) for b in batches)

    def least(self, quantized: ir.Model, count: int = ERROR_SAMPLES) -> float:
        """The SQNR of the worst output in dB; infinite where no output is float."""
        return min(self.error(quantized, count)[0].values(), default=math.inf)

    def integer_names(self, quantized: ir.Model) -> list[str]:
        """The computing operators that run in integers, in the order of the graph."""
        kept = {str(n.name) for n in quantized.graph if qdq.why_float(n) is not None}
        return [str(n.name) for n in self._rewritten.graph if _hurts(n) and str(n.name) not in kept]

    def noisiest(self, quantized: ir.Model, names: Sequence[str], most: int) -> list[str]:
        """The few operators that add the most noise to their output, relative to its power."""
        batches = iter(few(self._samples, self._original, SENSITIVITY_SAMPLES, self._batch))
        errors = layer_errors(self._rewritten, quantized, batches)
        ratios = {layer.reference: layer.ratio for layer in errors}
        noise = {name: min(r.noise / max(r.signal, 1e-300), 1e300) for name, r in ratios.items()}
        added = {}
        for node in self._rewritten.graph:
            before = max((noise.get(str(v.name), 0.0) for v in node.inputs if v is not None), default=0.0)
            added[str(node.name)] = noise.get(str(_result(node).name), 0.0) - before
        return sorted(names, key=lambda name: -added.get(name, 0.0))[:most]

    def sensitivities(self, names: Sequence[str]) -> list[tuple[str, float]]:
        """Each of the operators with the output's SQNR where it alone is quantized, to nearest, worst first."""
        ranked = [
            (name, self.least(self.alone(name, line=to_nearest(self._line)), SENSITIVITY_SAMPLES)) for name in names
        ]
        return sorted(ranked, key=lambda pair: pair[1])


def to_nearest(line: Sequence[Pass]) -> list[Pass]:
    """The line with weights rounded to nearest, which takes no time."""
    return [pipeline.override([s], method="nearest")[0] if s.name() == "round-weights" else s for s in line]


def _result(node: ir.Node) -> ir.Value:
    """The node's output, or that of the Relu or Clip that follows and is absorbed."""
    return (units.clamp_behind(node.outputs[0]) or node).outputs[0]


def _hurts(node: ir.Node) -> bool:
    return operators.computes(node) or operators.role(node) is Role.CONCAT
