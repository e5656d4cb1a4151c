"""The accuracy guard: how far the quantized outputs are from the float ones, which layers cause it, and a way back.

The error is the signal-to-quantization-noise ratio of the outputs on calibration samples. Where a bound is asked for,
the layers that hurt most on their own stay in float, as few as reach it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from qcomp import operators, pipeline, qdq, runtime, units
from qcomp.calibration.data import Samples
from qcomp.calibration.observers import Statistics
from qcomp.errors import OptionError
from qcomp.operators import Role
from qcomp.pipeline import Hooks, Pass
from qcomp.report.comparison import layer_errors
from qcomp.report.outputs import Ratio
from qcomp.runtime import Array, Feeds

WARN_DB = 20.0
"""Below this SQNR of the outputs the summary warns."""
GUARD_SAMPLES = 32
VERIFY_SAMPLES = 4
SENSITIVITY_SAMPLES = 8
BATCH = 4
TRIED = 10
"""How many of the noisiest layers are tried alone, to name the worst."""
NAMED = 5
"""How many of the worst layers a warning names."""


@dataclass(frozen=True)
class Error:
    """What quantization did to the outputs.

    Args:
        sqnr: dB of each output, by name; infinite where nothing changed; empty where it was not measured.
        samples: how many samples it was measured on.
        worst: the layers that hurt most on their own, with the output's SQNR if they alone were quantized.
        kept: the operators that the guard kept in float.
        reached: whether the bound that was asked for is reached; None where none was.
    """

    sqnr: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    worst: list[tuple[str, float]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    reached: bool | None = None

    @property
    def least(self) -> float | None:
        """The SQNR of the worst output, or None."""
        return min(self.sqnr.values(), default=None)


def sqnr(reference: Array, actual: Array) -> float:
    """Signal-to-quantization-noise ratio in dB of two arrays of one shape; see `Ratio`."""
    ratio = Ratio()
    ratio.update(reference, actual)
    return ratio.decibels


def quantize(
    model: ir.Model,
    line: Sequence[Pass],
    hooks: Hooks,
    samples: Samples | None,
    bound: float | None,
    batch: int = BATCH,
) -> tuple[ir.Model, Statistics, Error]:
    """Run the passes on a clone, measure the outputs' error, and keep layers in float where a bound asks for it.

    Args:
        batch: samples a run, at most `BATCH`; 1 where their shapes differ.

    Raises:
        OptionError: a bound without samples, or without a pass that chooses precision.
    """
    if bound is not None and not math.isfinite(bound):
        raise OptionError("the bound is a number of dB", where=f"--guard {bound}", hint="as in --guard 30")
    if bound is not None and (samples is None or not any(step.name() == "choose-precision" for step in line)):
        raise OptionError("--guard needs calibration data and the pass choose-precision", hint="see --print-passes")
    work = model.clone()
    start = _first_choice(line, work)
    stats = pipeline.run(work, line[:start], hooks)
    trial = _Trial(model, work, line[start:], samples, replace(hooks, start=start), batch)
    quantized = trial.first()
    if samples is None:
        return quantized, trial.stats or stats, Error()
    found = trial.error(quantized)
    limit = WARN_DB if bound is None else bound
    if found.least is not None and found.least < limit:
        names = trial.integer_names(quantized)
        ranked = trial.sensitivities(names if bound is not None else trial.noisiest(quantized, names))
        found = replace(found, worst=ranked[:NAMED])
        if bound is not None:
            quantized, found = _keep_fewest(trial, quantized, found, [name for name, _ in ranked], bound)
    if bound is not None:
        found = replace(found, reached=(found.least or 0.0) >= bound)
    return quantized, trial.stats or stats, found


def _first_choice(line: Sequence[Pass], model: ir.Model) -> int:
    """Where the float rewrites end: at the choice of precision, else at the first pass that observes."""
    names = [step.name() for step in line]
    if "choose-precision" in names:
        return names.index("choose-precision")
    return next((i for i, step in enumerate(line) if any(True for _ in step.observe(model))), len(line))


def measure_again(
    found: Error, original: ir.Model, compiled: ir.Model, samples: Samples | None, batch: int = BATCH
) -> Error:
    """The error with the outputs' SQNR of what passes behind the guard made of the quantized model."""
    if samples is None:
        return found
    return replace(found, sqnr=_Trial(original, original, (), samples, Hooks(), batch).error(compiled).sqnr)


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


class _Trial:
    """Quantizes clones of the rewritten float model with different operators kept in float."""

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

    def run(self, keep: Sequence[str], *, settle: bool = False) -> ir.Model:
        """Quantize as at first, but for the named operators, which stay in float.

        With ``settle`` also what no longer pays beside them does: else it would be slower than float.
        """
        clone = self._rewritten.clone()
        reasons = self._reasons | dict.fromkeys(keep, "kept by the guard: it costs too much accuracy")
        for node in clone.graph:
            if str(node.name) in reasons:
                node.metadata_props[qdq.FLOAT_REASON] = reasons[str(node.name)]
        everything = [pipeline.override([s], by="all")[0] if s.name() == "choose-precision" else s for s in self._line]
        pipeline.run(clone, self._line if settle else everything, Hooks(), self.stats)
        return clone

    def error(self, quantized: ir.Model, count: int = GUARD_SAMPLES) -> Error:
        """The outputs' SQNR on a few samples."""
        batches = few(self._samples, self._original, count, self._batch)
        if count not in self._reference:
            self._reference[count] = runtime.run_batches(runtime.session(self._original), batches)
        reference = self._reference[count]
        actual = runtime.run_batches(runtime.session(quantized), batches)
        ratios = {name: sqnr(array, actual[name]) for name, array in reference.items() if array.dtype.kind == "f"}
        return Error(ratios, sum(len(next(iter(b.values()))) for b in batches))

    def integer_names(self, quantized: ir.Model) -> list[str]:
        """The computing operators that run in integers, in the order of the graph."""
        kept = {str(n.name) for n in quantized.graph if qdq.why_float(n) is not None}
        return [str(n.name) for n in self._rewritten.graph if _hurts(n) and str(n.name) not in kept]

    def noisiest(self, quantized: ir.Model, names: Sequence[str]) -> list[str]:
        """The few operators that add the most noise to their output, relative to its power."""
        batches = iter(few(self._samples, self._original, SENSITIVITY_SAMPLES, self._batch))
        errors = layer_errors(self._rewritten, quantized, batches)
        ratios = {layer.reference: layer.ratio for layer in errors}
        noise = {name: min(r.noise / max(r.signal, 1e-300), 1e300) for name, r in ratios.items()}
        added = {}
        for node in self._rewritten.graph:
            before = max((noise.get(str(v.name), 0.0) for v in node.inputs if v is not None), default=0.0)
            added[str(node.name)] = noise.get(str(_result(node).name), 0.0) - before
        return sorted(names, key=lambda name: -added.get(name, 0.0))[:TRIED]

    def sensitivities(self, names: Sequence[str]) -> list[tuple[str, float]]:
        """Each of the operators with the output's SQNR where it alone is quantized, worst first."""
        everything = [str(n.name) for n in self._rewritten.graph if operators.role(n) is not Role.CLAMP]
        ranked = []
        for name in names:
            alone = self.run([other for other in everything if other != name])
            least = self.error(alone, SENSITIVITY_SAMPLES).least
            ranked.append((name, math.inf if least is None else least))
        return sorted(ranked, key=lambda pair: pair[1])


def _result(node: ir.Node) -> ir.Value:
    """The node's output, or that of the Relu or Clip that follows and is absorbed."""
    return (units.clamp_behind(node.outputs[0]) or node).outputs[0]


def _hurts(node: ir.Node) -> bool:
    return operators.computes(node) or operators.role(node) is Role.CONCAT


def _keep_fewest(
    trial: _Trial, quantized: ir.Model, found: Error, ranked: Sequence[str], bound: float
) -> tuple[ir.Model, Error]:
    """The shortest head of the ranking that reaches the bound, by bisection, then without what it does not need."""

    def reaches(keep: Sequence[str]) -> bool:
        return (trial.error(trial.run(keep)).least or 0.0) >= bound

    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(ranked[:middle]) else (middle + 1, high)
    keep = list(ranked[:high])
    for name in reversed(keep[:-1]):
        fewer = [other for other in keep if other != name]
        if reaches(fewer):
            keep = fewer
    quantized = trial.run(keep, settle=True)
    error = trial.error(quantized)
    return quantized, replace(error, worst=found.worst, kept=keep)
