"""Collects the statistics that passes ask for, batch by batch, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcomp import runtime
from qcomp.calibration.data import Samples
from qcomp.calibration.observers import Array, Observation, Statistics
from qcomp.errors import DataError, ModelError

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Calibrator:
    """Runs a throw-away clone of the model on the samples and keeps mergeable statistics.

    Args:
        samples: the calibration data.
        limit: how many samples at most; None for all.
        batch: samples a run.
        threads: threads of ONNX Runtime.
        progress: called with the number of samples done so far.
    """

    samples: Samples
    limit: int | None = None
    batch: int = 4
    threads: int = 1
    progress: Progress | None = None

    def collect(self, model: ir.Model, observations: Sequence[Observation]) -> Statistics:
        """The statistics of every observation, over the samples.

        Raises:
            CalibrationError: a value is NaN or infinite; names the operator and the sample.
            DataError: there are no samples, or they do not run through the model.
        """
        stats = Statistics()
        inputs = {str(value.name) for value in model.graph.inputs}
        wanted = list(dict.fromkeys(n for o in observations if (n := str(o.value.name)) not in inputs))
        runner = runtime.session(_with_outputs(model, wanted), threads=self.threads)
        for feeds in self.samples.batches(self.batch, self.limit):
            arrays = dict(feeds) | dict(zip(wanted, _run(runner, wanted, feeds), strict=True))
            count = len(next(iter(feeds.values())))
            stats.update(((o, arrays[str(o.value.name)]) for o in observations), count)
            if self.progress:
                self.progress(stats.samples)
        if not stats.samples:
            raise DataError("there are no samples to calibrate with", hint="give at least one, better a few hundred")
        return stats


def _run(runner: object, wanted: list[str], feeds: dict[str, Array]) -> list[Array]:
    if not wanted:
        return []
    try:
        results: list[Array] = runner.run(wanted, feeds)  # type: ignore[attr-defined]
    except Exception as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise DataError(f"the samples do not run through the model: {reason}", hint="see qcomp inspect") from error
    return results


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A clone whose outputs are the wanted values alone."""
    clone = model.clone()
    values = dict(_node_outputs(clone))
    clone.graph.outputs.clear()
    for name in names:
        if name not in values:
            raise ModelError(f"no operator computes the value {name!r}")
        clone.graph.outputs.append(values[name])
    if not names:
        clone.graph.outputs.extend(clone.graph.inputs[:1])
    return clone


def _node_outputs(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    for node in model.graph:
        for value in node.outputs:
            yield str(value.name), value
