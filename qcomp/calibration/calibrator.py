"""Collects the statistics that passes ask for, batch by batch, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcomp import runtime
from qcomp.calibration.batching import Batch
from qcomp.calibration.data import Samples
from qcomp.calibration.observers import Observation, Replay, Statistics
from qcomp.errors import DataError

Progress = Callable[[int, int | None], None]
"""Called with the number of samples done so far, and how many there will be, where that is known."""


@dataclass(frozen=True)
class Calibrator:
    """Runs a throw-away clone of the model on the samples and keeps mergeable statistics.

    Args:
        samples: the calibration data.
        limit: how many samples at most; None for all.
        batch: samples a run.
        threads: threads of ONNX Runtime.
        progress: see `Progress`.
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
        stats, observations = Statistics(), list({o.key: o for o in observations}.values())
        inputs = {str(value.name) for value in model.graph.inputs}
        wanted = list(dict.fromkeys(n for o in observations if (n := str(o.value.name)) not in inputs))
        runner = runtime.session(runtime.with_outputs(model, wanted), threads=self.threads)
        for feeds in self.samples.batches(self.batch, self.limit):
            arrays = dict(feeds) | dict(zip(wanted, runtime.run(runner, wanted, feeds), strict=True))
            count = len(next(iter(feeds.values())))
            stats.update(((o, arrays[str(o.value.name)]) for o in observations), count)
            if self.progress:
                self.progress(stats.samples, total_samples(self.samples, self.limit))
        if not stats.samples:
            raise DataError("there are no samples to calibrate with", hint="give at least one, better a few hundred")
        stats.replay = Replay(model.clone(), self._again)
        return stats

    def _again(self, count: int) -> Iterator[Batch]:
        return self.samples.few(min(count, total_samples(self.samples, self.limit) or count), self.batch)


def total_samples(samples: Samples, limit: int | None) -> int | None:
    """How many samples a run will take, where that is known."""
    return min((n for n in (samples.count, limit) if n is not None), default=None)
