"""Samples of values: some positions of some samples, from the observed model run once more."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qcomp import runtime
from qcomp.calibration.observers import Statistics
from qcomp.graph import Array
from qcomp.reparameterization.sites import Site
from qcomp.reparameterization.trial import ROWS, thinned

Rows = dict[str, Array]
"""Some positions of values, by their names, float32 ``(positions, channels)``."""
SAMPLES = 32
"""How many samples are run again."""


def rows(stats: Statistics, found: Iterable[Site]) -> Rows:
    """Positions of every value of the sites; none without samples."""
    axes = {str(value.name): site.axis for site in found for value in site.observed}
    if stats.replay is None or not axes:
        return {}
    inputs = {str(value.name) for value in stats.replay.model.graph.inputs}
    made = [name for name in axes if name not in inputs]
    runner = runtime.session(runtime.with_outputs(stats.replay.model, made))
    kept: dict[str, list[Array]] = {name: [] for name in axes}
    for feeds in stats.replay.batches(SAMPLES):
        arrays = dict(feeds) | dict(zip(made, runtime.run(runner, made, feeds), strict=True))
        share = ROWS * len(next(iter(feeds.values()))) // SAMPLES
        for name, axis in axes.items():
            flat = np.moveaxis(arrays[name], axis, -1).reshape(-1, arrays[name].shape[axis])
            kept[name].append(thinned(flat, max(share, 1)).astype(np.float32))
    return {name: np.concatenate(parts) for name, parts in kept.items() if parts}
