"""Mergeable statistics of constant size, and what a pass asks for.

A pass yields `Observation`: a value and a kind of statistic. Each kind is a frozen dataclass that starts a
state; states take arrays batch by batch and merge, so that samples can be split over processes and machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from qcomp.errors import CalibrationError
from qcomp.quantization.histogram import Histogram

Array = np.ndarray[Any, np.dtype[Any]]

COUNTED_PER_SAMPLE = 8192
"""How many values of each sample the histogram counts at most; extremes are of all of them."""


class State(Protocol):
    """A statistic that grows by batches and merges."""

    def update(self, batch: Array) -> None:
        """Take a batch in: the first axis is the samples."""

    def merge(self, other: Any) -> None:
        """Add what another state of the same kind has seen."""


class Kind(Protocol):
    """A kind of statistic; equal kinds of one value are collected once."""

    def start(self) -> State:
        """An empty state."""


@dataclass(frozen=True)
class Observation:
    """A wish of a pass: this statistic of this value."""

    value: ir.Value
    kind: Kind

    @property
    def key(self) -> tuple[str, Kind]:
        """How `Statistics` finds it: the value's name and the kind."""
        return str(self.value.name), self.kind


@dataclass(frozen=True)
class Distribution:
    """The exact extremes and a histogram; the state is a `DistributionState`."""

    def start(self) -> DistributionState:
        return DistributionState()


class NotFiniteError(Exception):
    """A value is NaN or infinite; ``sample`` is its row in the batch."""

    def __init__(self, sample: int) -> None:
        super().__init__(sample)
        self.sample = sample


class DistributionState:
    """The histogram of a value; counts a fixed subset of each sample's positions."""

    def __init__(self) -> None:
        self.histogram = Histogram()

    def update(self, batch: Array) -> None:
        """Take in any float array whose first axis is the samples.

        Raises:
            NotFiniteError: a value is NaN or infinite.
        """
        if not batch.size:
            return
        rows = batch.reshape(batch.shape[0], -1) if batch.ndim else batch.reshape(1, 1)
        low, high = float(rows.min()), float(rows.max())
        if not np.isfinite([low, high]).all():
            raise NotFiniteError(int(np.argmin(np.isfinite(rows).all(axis=1))))
        self.histogram.update(rows[:, :: _stride(rows.shape[1])], low, high)

    def merge(self, other: DistributionState) -> None:
        self.histogram.merge(other.histogram)


def _stride(size: int) -> int:
    """The least at or above ``size / COUNTED_PER_SAMPLE`` that shares no divisor with the size, nor so with any axis.

    A stride that divides the width would count some columns only, and never the others.
    """
    stride = max(-(-size // COUNTED_PER_SAMPLE), 1)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


@dataclass(frozen=True)
class PatchMean:
    """The mean input of each weight of a convolution: over samples and positions, padding included as zero.

    Args:
        kernel, strides, dilations: one entry a spatial axis.
        pads: begins, then ends, as in ONNX.

    The state's ``mean`` is float64 ``(channels, *kernel)``. Since convolution is linear, the mean output is the weights
    times it, exactly.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    def start(self) -> PatchMeanState:
        return PatchMeanState(self)


class MeanState:
    """A sum and how many values went into it."""

    def __init__(self) -> None:
        self.total: Any = 0.0
        self.count = 0

    def merge(self, other: MeanState) -> None:
        self.total = self.total + other.total
        self.count += other.count

    @property
    def mean(self) -> Array:
        """The mean, float64."""
        return np.asarray(self.total / max(self.count, 1))


class PatchMeanState(MeanState):
    """The state of `PatchMean`."""

    def __init__(self, kind: PatchMean) -> None:
        super().__init__()
        self._kind = kind

    def update(self, batch: Array) -> None:
        """Take in float ``(samples, channels, *spatial)``."""
        kind, dims = self._kind, len(self._kind.kernel)
        summed = batch.sum(axis=0, dtype=np.float32)
        summed = np.pad(summed, [(0, 0), *zip(kind.pads[:dims], kind.pads[dims:], strict=True)])
        reach = [d * (k - 1) + 1 for d, k in zip(kind.dilations, kind.kernel, strict=True)]
        sizes = [(n - r) // s + 1 for n, r, s in zip(summed.shape[1:], reach, kind.strides, strict=True)]
        sums = np.empty((summed.shape[0], *kind.kernel))
        for tap in np.ndindex(*kind.kernel):
            window = [
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, kind.dilations, sizes, kind.strides, strict=True)
            ]
            sums[(slice(None), *tap)] = summed[(slice(None), *window)].sum(axis=tuple(range(1, dims + 1)))
        self.total = self.total + sums
        self.count += batch.shape[0] * int(np.prod(sizes))


@dataclass(frozen=True)
class ChannelMean:
    """The mean over every axis but one; the state's ``mean`` is float64 ``(channels,)``."""

    axis: int

    def start(self) -> ChannelMeanState:
        return ChannelMeanState(self.axis)


class ChannelMeanState(MeanState):
    """The state of `ChannelMean`."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self._axis = axis

    def update(self, batch: Array) -> None:
        """Take in a float array of any rank above the axis."""
        if not batch.size:
            return
        axis = self._axis % batch.ndim
        rows = batch.reshape(*batch.shape[: axis + 1], -1).sum(axis=-1, dtype=np.float32)
        self.total = self.total + rows.reshape(-1, batch.shape[axis]).sum(axis=0, dtype=np.float64)
        self.count += batch.size // batch.shape[axis]


@dataclass(frozen=True)
class Replay:
    """The model as it was observed, and its samples once more.

    Args:
        model: a clone; it shares the tensors.
        batches: gives so many samples at most, spread evenly, as arrays by input name.
    """

    model: ir.Model
    batches: Callable[[int], Iterator[dict[str, Array]]]


@dataclass
class Statistics:
    """What was collected, by value name and kind.

    ``replay`` is for passes that compare what the quantized model computes with what the observed one did.
    """

    states: dict[tuple[str, Kind], Any] = field(default_factory=dict)
    samples: int = 0
    replay: Replay | None = None

    @property
    def collected(self) -> bool:
        """Whether a calibration has run."""
        return self.samples > 0

    def find(self, value: ir.Value | str, kind: Kind) -> Any:
        """The state, or None where it was not collected."""
        return self.states.get((str(value if isinstance(value, str) else value.name), kind))

    def histogram(self, value: ir.Value | str) -> Histogram | None:
        """The distribution of a value, or None."""
        state = self.find(value, Distribution())
        return None if state is None else state.histogram

    def merge(self, other: Statistics) -> None:
        """Add the statistics of other samples of the same model."""
        for key, state in other.states.items():
            mine = self.states.setdefault(key, key[1].start())
            mine.merge(state)
        self.samples += other.samples

    def update(self, arrays: Iterator[tuple[Observation, Array]], samples: int) -> None:
        """Take in one batch of every observed value.

        Raises:
            CalibrationError: a value is not finite; names it, its operator and the sample.
        """
        for observation, array in arrays:
            state = self.states.setdefault(observation.key, observation.kind.start())
            try:
                state.update(array)
            except NotFiniteError as error:
                raise _not_finite(observation.value, self.samples + error.sample) from error
        self.samples += samples


def _not_finite(value: ir.Value, sample: int) -> CalibrationError:
    node = value.producer()
    return CalibrationError(
        f"its value {value.name!r} is NaN or infinite for sample {sample}",
        where=f"{node.op_type} {node.name!r}" if node is not None else f"input {value.name!r}",
        hint="check that sample: the float model itself computes it",
    )
