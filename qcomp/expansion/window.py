"""The windows of a convolution or pool: its attributes, and the positions each output reads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.expansion import reading
from qcomp.expansion.emitter import TO_THE_END, Emitter
from qcomp.quantization.qparams import IntArray


@dataclass(frozen=True)
class Window:
    """Per spatial axis: kernel size, stride, dilation, padding before and behind."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, node: ir.Node, kernel: Sequence[int]) -> Window:
        """The window of a node's attributes.

        Raises:
            UnsupportedError: the pads follow from the size (``auto_pad``), or are negative.
        """
        dims = len(kernel)
        ones, pads = (1,) * dims, tuple(graph.attribute(node, "pads", ())) or (0,) * (2 * dims)
        if graph.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or min(pads) < 0:
            raise reading.refuse(node, "its pads follow from its size, or are negative", "give it explicit pads")
        strides, dilations = (tuple(graph.attribute(node, name, ())) or ones for name in ("strides", "dilations"))
        return cls(tuple(kernel), strides, dilations, pads[:dims], pads[dims:])

    @property
    def taps(self) -> int:
        """How many positions a window holds."""
        return math.prod(self.kernel)

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any((*self.begin, *self.end))

    @property
    def is_pointwise(self) -> bool:
        """Whether every output reads its own position alone."""
        return self.taps == 1 and not self.padded and set(self.strides) == {1}

    def padded_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes with padding."""
        return tuple(s + b + e for s, b, e in zip(sizes, self.begin, self.end, strict=True))

    def out_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes of the output."""
        spans = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        padded = self.padded_sizes(sizes)
        return tuple((p - span) // s + 1 for p, span, s in zip(padded, spans, self.strides, strict=True))

    def positions(self, sizes: Sequence[int]) -> IntArray:
        """Flat indices into the padded input, ``(outputs, taps)``."""
        padded = self.padded_sizes(sizes)
        outs = [np.arange(n) * s for n, s in zip(self.out_sizes(sizes), self.strides, strict=True)]
        taps = [np.arange(k) * d for k, d in zip(self.kernel, self.dilations, strict=True)]
        return flat_positions(outs, padded)[:, None] + flat_positions(taps, padded)

    def in_source(self, positions: IntArray, sizes: Sequence[int]) -> IntArray:
        """The positions in the input without padding; one behind its end for those in the padding."""
        places = np.full(self.padded_sizes(sizes), math.prod(sizes), np.int64)
        inside = tuple(slice(b, b + s) for b, s in zip(self.begin, sizes, strict=True))
        places[inside] = np.arange(math.prod(sizes)).reshape(tuple(sizes))
        found: IntArray = places.reshape(-1)[positions]
        return found

    def pad_pixels(self, emitter: Emitter, pixels: ir.Value, number: int, name: str) -> ir.Value:
        """``[N, pixels, C]`` with one more pixel of one uint8 number, for all of the padding to read."""
        if not self.padded:
            return pixels
        inputs = [pixels, emitter.ints(0, 0, 0, 0, 1, 0), emitter.constant(np.uint8(number), "padding")]
        return emitter.op("Pad", inputs, f"{name}_padded")

    def pad(self, emitter: Emitter, value: ir.Value, number: int, name: str) -> ir.Value:
        """``[N, *spatial, C]`` with the padding around it, of one uint8 number."""
        if not self.padded:
            return value
        pads = emitter.ints(0, *self.begin, 0, 0, *self.end, 0)
        return emitter.op("Pad", [value, pads, emitter.constant(np.uint8(number), "padding")], f"{name}_padded")

    def slices(self, emitter: Emitter, padded: ir.Value, name: str) -> list[ir.Value]:
        """For each tap, what it reads, ``[N, *outputs, C]``; sizes may be dynamic.

        Ends count from behind, so that every slice has as many positions as there are outputs.
        """
        axes = emitter.ints(*range(1, len(self.kernel) + 1))
        steps = emitter.ints(*self.strides)
        found = []
        for tap in itertools.product(*(range(k) for k in self.kernel)):
            starts = [t * d for t, d in zip(tap, self.dilations, strict=True)]
            behind = [(k - 1 - t) * d for t, k, d in zip(tap, self.kernel, self.dilations, strict=True)]
            ends = [-b if b else TO_THE_END for b in behind]
            inputs = [padded, emitter.ints(*starts), emitter.ints(*ends), axes, steps]
            found.append(emitter.op("Slice", inputs, f"{name}_tap"))
        return found


def flat_positions(axes: Sequence[IntArray], sizes: Sequence[int]) -> IntArray:
    """Flat indices of all combinations of positions along each axis, row-major."""
    result = np.zeros(1, np.int64)
    for positions, size in zip(axes, sizes, strict=True):
        result = (result[:, None] * size + positions).reshape(-1)
    return result
