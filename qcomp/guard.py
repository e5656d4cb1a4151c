"""The accuracy guard: how far the quantized outputs are from the float ones, which layers cause it, and a way back.

The error is the signal-to-quantization-noise ratio of the outputs on calibration samples. Where a bound is asked for,
the layers that hurt most on their own stay in float, as few as reach it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from qcomp import pipeline
from qcomp.calibration.data import Samples
from qcomp.calibration.observers import Statistics
from qcomp.errors import OptionError
from qcomp.pipeline import Hooks, Pass
from qcomp.trial import BATCH, Trial, start_of_choice

WARN_DB = 20.0
"""Below this SQNR of the outputs the summary warns."""
VERIFY_SAMPLES = 4
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
    start = start_of_choice(line, work)
    stats = pipeline.run(work, line[:start], hooks)
    trial = Trial(model, work, line[start:], samples, replace(hooks, start=start), batch)
    quantized = trial.first()
    if samples is None:
        return quantized, trial.stats or stats, Error()
    found = Error(*trial.error(quantized))
    limit = WARN_DB if bound is None else bound
    if found.least is not None and found.least < limit:
        names = trial.integer_names(quantized)
        ranked = trial.sensitivities(names if bound is not None else trial.noisiest(quantized, names, TRIED))
        found = replace(found, worst=ranked[:NAMED])
        if bound is not None:
            quantized, found = _keep_fewest(trial, quantized, found, [name for name, _ in ranked], bound)
    if bound is not None:
        found = replace(found, reached=(found.least or 0.0) >= bound)
    return quantized, trial.stats or stats, found


def measure_again(
    found: Error, original: ir.Model, compiled: ir.Model, samples: Samples | None, batch: int = BATCH
) -> Error:
    """The error with the outputs' SQNR of what passes behind the guard made of the quantized model."""
    if samples is None:
        return found
    return replace(found, sqnr=Trial(original, original, (), samples, Hooks(), batch).error(compiled)[0])


def _keep_fewest(
    trial: Trial, quantized: ir.Model, found: Error, ranked: Sequence[str], bound: float
) -> tuple[ir.Model, Error]:
    """The shortest head of the ranking that reaches the bound, by bisection, then without what it does not need."""

    def reaches(keep: Sequence[str]) -> bool:
        return trial.least(trial.run(keep)) >= bound

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
    error = Error(*trial.error(quantized))
    return quantized, replace(error, worst=found.worst, kept=keep)
