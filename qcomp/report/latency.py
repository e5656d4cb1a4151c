"""The latency of models side by side: runs interleaved, so that what slows the machine slows all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcomp import files, runtime
from qcomp.calibration.data import InputSpec, Samples
from qcomp.errors import DataError, OptionError
from qcomp.runtime import Array, Feeds

WARM_UP = 5
DEFAULT_RUNS = 100
DEFAULT_LENGTH = 64
"""What a dynamic dimension other than the batch is, where no data says."""


@dataclass(frozen=True)
class Latency:
    """The time of one run, in seconds.

    Args:
        model: its path.
        size: of its file, in bytes; weights in another file not included.
        median, p10, p90: of the runs.
    """

    model: str
    size: int
    median: float
    p10: float
    p90: float


def bench(
    models: Sequence[str | os.PathLike[str]],
    feeds: Sequence[Feeds],
    *,
    runs: int = DEFAULT_RUNS,
    threads: int = 1,
) -> list[Latency]:
    """Time the models on one batch each, one run of each in turn; the one to begin with rotates.

    Args:
        models: paths; of sizes that fit in memory together.
        feeds: the inputs of each.
        runs: timed runs of each model, after `WARM_UP` others.
        threads: of ONNX Runtime.

    Raises:
        ModelError: a model that ONNX Runtime refuses.
        DataError: the inputs do not run through a model.
        OptionError: no runs.
    """
    if runs < 1:
        raise OptionError(f"{runs} is too few", where="--runs", hint="give 1 or more")
    runners = [runtime.session(model, threads=threads) for model in models]
    names = [[output.name for output in runner.get_outputs()] for runner in runners]
    for runner, wanted, inputs in zip(runners, names, feeds, strict=True):
        for _ in range(WARM_UP):
            runtime.run(runner, wanted, inputs)
    times = _times(runners, names, feeds, runs)
    return [_latency(os.fspath(model), row) for model, row in zip(models, times, strict=True)]


def _times(runners: Sequence[Any], names: Sequence[Sequence[str]], feeds: Sequence[Feeds], runs: int) -> Array:
    """The seconds of each run, [models, runs]."""
    times = np.empty((len(runners), runs))
    for round_ in range(runs):
        for turn in range(len(runners)):
            index = (round_ + turn) % len(runners)
            start = time.perf_counter()
            runners[index].run(names[index], feeds[index])
            times[index, round_] = time.perf_counter() - start
    return times


def _latency(model: str, seconds: Array) -> Latency:
    p10, median, p90 = (float(q) for q in np.percentile(seconds, (10, 50, 90)))
    return Latency(model, Path(model).stat().st_size, median, p10, p90)


def specs_of(model: str | os.PathLike[str]) -> list[InputSpec]:
    """The inputs of a model file, checked for what a hostile file could hold.

    Raises:
        ModelError: as `qcomp.files.read`.
    """
    return runtime.input_specs(files.read(model))


def random_feeds(specs: Sequence[InputSpec], *, batch: int = 1, length: int = DEFAULT_LENGTH) -> Feeds:
    """One batch of inputs: normal floats, and ones where an input takes integers, which are valid as ids and masks.

    Args:
        specs: the inputs.
        batch: the size of a dynamic first axis.
        length: the size of any other dynamic axis.
    """
    random = np.random.default_rng(0)
    feeds = {}
    for spec in specs:
        sizes = (batch, *[length] * len(spec.shape))
        shape = [d if isinstance(d, int) else size for d, size in zip(spec.shape, sizes, strict=False)]
        values = random.standard_normal(shape) if np.issubdtype(spec.dtype, np.floating) else np.ones(shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds


def first_batch(samples: Samples, batch: int) -> Feeds:
    """The first batch of samples.

    Raises:
        DataError: there are fewer samples than that.
    """
    batches: Iterator[Feeds] = samples.batches(batch, None if samples.fixed_batch else batch)
    feeds = next(batches)
    rows = len(next(iter(feeds.values())))
    if rows < batch and not samples.fixed_batch:
        raise DataError(f"{rows} samples for a batch of {batch}", where=samples.where, hint="give a smaller --batch")
    return feeds
