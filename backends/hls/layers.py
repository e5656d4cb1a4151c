"""The layers of a dataflow design: what each computes on integers, for one sample, channels last.

Activations are unsigned integers. A linear layer's weights are a matrix whose columns follow the order in which its
inputs arrive; zero points are in the bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcomp.backends.hls.text import sanitized
from qcomp.quantization.qparams import IntArray


@dataclass(frozen=True)
class Feature:
    """What a stream carries of each sample, pixel by pixel, row-major, the channels of a pixel behind one another.

    Args:
        name: of the ONNX value; may hold anything.
        shape: of the ONNX value behind N.
        bits: of each integer.
    """

    name: str
    shape: tuple[int, ...]
    height: int
    width: int
    channels: int
    bits: int

    @property
    def order(self) -> tuple[int, int, int]:
        """What the order of the stream depends on."""
        return self.height, self.width, self.channels

    @property
    def pixels(self) -> int:
        """Positions."""
        return self.height * self.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of each integer in files and on ports."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)

    @property
    def size(self) -> int:
        """Integers a sample."""
        return self.pixels * self.channels


@dataclass(frozen=True)
class Target:
    """``clamp(round_half_even(acc * multiplier / 2^shift) + zero_point, low, high)``.

    Args:
        multiplier: int64, ``()`` or ``(channels,)``.
    """

    multiplier: IntArray
    shift: int
    zero_point: int
    low: int
    high: int


@dataclass(frozen=True)
class Window:
    """Two-dimensional; padding before the image, that behind follows from the size of the result."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    begin: tuple[int, int]

    @property
    def taps(self) -> int:
        """Positions of a window."""
        return math.prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output reads its own position alone."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and self.begin == (0, 0)


@dataclass(frozen=True)
class Layer:
    """One operator.

    Args:
        operator: type and name, as errors show them; may hold anything.
        name: what generated code calls it, an identifier.
        sources: the layers that it reads, by their number; -1 is the input.
        features: of the sources.
        result: its output.
    """

    operator: str
    name: str
    sources: tuple[int, ...]
    features: tuple[Feature, ...]
    result: Feature

    @property
    def title(self) -> str:
        """The operator, as it may stand in any text."""
        return sanitized(self.operator.replace("'", ""))

    @property
    def macs(self) -> int:
        """Products of weights a sample."""
        return 0


@dataclass(frozen=True)
class Linear(Layer):
    """A convolution, or a product with a matrix.

    Args:
        window: None where each output pixel reads one input pixel, or the whole sample.
        padding: what lies around the image: the input's zero point.
        weight: int64 ``(rows, columns)``; for ``depthwise`` ``(channels, taps)``.
        bias: int64 ``(rows,)``, less ``zero_point * sum(weight)``.
        pixels: outputs of each row.
        depthwise: every channel for itself.
    """

    window: Window | None
    padding: int
    weight: IntArray
    bias: IntArray
    target: Target
    pixels: int
    depthwise: bool = False

    @property
    def macs(self) -> int:
        return int(self.weight.size) * self.pixels

    @property
    def weight_bits(self) -> int:
        """Of two's complement."""
        return max(int(np.abs(self.weight).max(initial=1)).bit_length() + 1, 2)

    @property
    def accumulator_range(self) -> tuple[int, int]:
        """The least and the largest value that any sum, finished or not, may take, whatever the input."""
        most = (1 << self.features[0].bits) - 1
        above = self.bias + np.maximum(self.weight, 0).sum(axis=1) * most
        below = self.bias + np.minimum(self.weight, 0).sum(axis=1) * most
        return min(int(below.min()), 0), max(int(above.max()), 0)

    @property
    def accumulator_bits(self) -> int:
        """Of two's complement, that hold this range."""
        low, high = self.accumulator_range
        return max(high.bit_length(), (-low - 1).bit_length() if low else 0) + 1


@dataclass(frozen=True)
class Add(Layer):
    """``clamp(rhe(((a - za) * ma + (b - zb) * mb) / 2^shift) + zero_point)``."""

    zero_points: tuple[int, int]
    multipliers: tuple[int, int]
    target: Target


@dataclass(frozen=True)
class Multiply(Layer):
    """``clamp(rhe((a - za) * (b - zb) * multiplier / 2^shift) + zero_point)``."""

    zero_points: tuple[int, int]
    target: Target


@dataclass(frozen=True)
class Lookup(Layer):
    """A table of ``2^bits`` entries: any unary function, or another scale."""

    table: IntArray


@dataclass(frozen=True)
class Concat(Layer):
    """Two inputs of the same pixels, channels behind one another."""


@dataclass(frozen=True)
class Pool(Layer):
    """The maximum of each window."""

    window: Window


@dataclass(frozen=True)
class GlobalAverage(Layer):
    """``clamp(rhe((sum - pixels * zx) * multiplier / 2^shift) + zero_point)``, the factor holding ``1 / pixels``."""

    zero_point: int
    target: Target


@dataclass(frozen=True)
class Slice(Layer):
    """Rows and columns ``start, start + step, ...`` and channels from ``first``."""

    start: tuple[int, int]
    step: tuple[int, int]
    first: int


@dataclass(frozen=True)
class Pad(Layer):
    """Constant pixels and channels around the image."""

    begin: tuple[int, int]
    before: int
    value: int


@dataclass(frozen=True)
class ArgMax(Layer):
    """The first channel of the largest value of each pixel, 16 bits."""


@dataclass(frozen=True)
class Softmax(Layer):
    """Over the channels, as `qcomp.integer.softmax` defines it.

    Args:
        table: of exponentials, ``2^bits`` entries.
        numerator: what their sum divides.
        shift: of the result.
    """

    table: IntArray
    numerator: int
    shift: int
