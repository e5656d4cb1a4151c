"""Whether two quantized models give the same outputs, as the forms of one model do."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qcomp import runtime
from qcomp.backend import Runner
from qcomp.calibration.calibrator import Progress, total_samples
from qcomp.calibration.data import Samples
from qcomp.errors import ModelError
from qcomp.report.comparison import check_inputs, check_shape
from qcomp.report.outputs import Ratio


@dataclass
class Difference:
    """How far two models are from one another in one output.

    Args:
        name: of the output.
        elements: how many numbers were compared.
        differing: how many of them differ.
        ratio: of the first model's output to the difference.
    """

    name: str
    elements: int = 0
    differing: int = 0
    ratio: Ratio = field(default_factory=Ratio)


def compare(
    first: ir.Model,
    second: ir.Model,
    samples: Samples,
    *,
    limit: int | None = None,
    batch: int = 4,
    threads: int = 1,
    progress: Progress | None = None,
    runner: Runner | None = None,
) -> list[Difference]:
    """Run both models on the samples and compare the outputs that both have, exactly.

    Args:
        first, second: any models of the same inputs.
        samples: that fit both.
        limit: use the first samples only.
        batch: samples a run.
        threads: of ONNX Runtime.
        progress: called with the number of samples done so far and, where known, of all.
        runner: what runs the second model; ONNX Runtime by default.

    Raises:
        ModelError: the models differ in their inputs, or have no output in common.
        DataError: the samples do not run.
    """
    check_inputs(runtime.input_specs(first), runtime.input_specs(second))
    there = {value.name for value in second.graph.outputs}
    found = [Difference(str(value.name)) for value in first.graph.outputs if value.name in there]
    if not found:
        raise ModelError("the models have no output in common", hint="compare two forms of one model")
    sessions = [runtime.session(first, threads=threads), runner or runtime.session(second, threads=threads)]
    names, done = [difference.name for difference in found], 0
    for feeds in samples.batches(batch, limit):
        for difference, one, other in zip(found, *(runtime.run(s, names, feeds) for s in sessions), strict=True):
            check_shape(difference.name, one, other)
            _update(difference, one, other)
        done += len(next(iter(feeds.values())))
        if progress:
            progress(done, total_samples(samples, limit))
    return found


def _update(difference: Difference, one: runtime.Array, other: runtime.Array) -> None:
    same = one == other
    if np.issubdtype(one.dtype, np.floating):
        same = same | (np.isnan(one) & np.isnan(other))
        difference.ratio.update(one, other)
    difference.elements += one.size
    difference.differing += one.size - int(same.sum())
