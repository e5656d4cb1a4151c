"""Scale and zero point of a quantized tensor: ``real = scale * (q - zero_point)``.

Constraints, quoted by the errors:

- C1: every scale is finite and greater than zero;
- C2: every zero point lies in the type's range;
- C3: per axis, scale and zero point are vectors of one length; in blocks, they have the tensor's rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qcomp.quantization.qtype import QType

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]

TINY = float(np.finfo(np.float32).tiny)
"""The least normal float32: a smaller scale would be flushed to zero by some processors."""


@dataclass(frozen=True)
class QParams:
    """How a tensor is quantized.

    Args:
        qtype: the type of the integers.
        scale: float32, a scalar ``()``, per axis ``(channels,)``, or in blocks the tensor's shape with
            ``ceil(n / block)`` for the ``n`` of the axis.
        zero_point: integers of the type's container, the same shape.
        axis: the channel axis, or that along which blocks lie; None per tensor.
        block: how many elements along the axis share a scale; None where it is not one of blocks.

    Raises:
        ValueError: a constraint C1 to C3 of this module does not hold.
    """

    qtype: QType
    scale: FloatArray
    zero_point: IntArray
    axis: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError(f"C1: every scale is finite and greater than zero, not {self.scale!r}")
        if (self.zero_point < self.qtype.qmin).any() or (self.zero_point > self.qtype.qmax).any():
            raise ValueError(f"C2: every zero point lies in the range of {self.qtype}, not {self.zero_point!r}")
        fits = self.scale.ndim == int(self.axis is not None) if self.block is None else self.scale.ndim > 0
        if self.scale.shape != self.zero_point.shape or not fits or (self.block is not None and self.axis is None):
            shapes = f"scale {self.scale.shape} and zero point {self.zero_point.shape}"
            raise ValueError(f"C3: {shapes}, axis {self.axis}, block {self.block}")

    @classmethod
    def asymmetric(cls, low: float, high: float, qtype: QType) -> QParams:
        """Per tensor, for values in ``[low, high]``; zero is widened into the range and exactly representable.

        The zero point is even, so that an addition that rounds after adding it agrees with one that rounds before:
        of the two even ones around the ideal, that with the finer scale. The range is covered to within one step.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        ideal = qtype.qmin - low / _usable((high - low) / qtype.levels)
        below = 2 * int(np.floor(ideal / 2))
        scale, zero_point = min(
            (max(high / max(qtype.qmax - even, 1), -low / max(even - qtype.qmin, 1)), even)
            for even in (below, below + 2)
            if qtype.qmin <= even <= qtype.qmax
        )
        return cls(qtype, np.asarray(_usable(scale), np.float32), np.asarray(zero_point, qtype.container))

    @classmethod
    def symmetric(cls, largest: FloatArray, qtype: QType, axis: int | None = None) -> QParams:
        """Zero point 0, for values of magnitude up to ``largest`` (scalar, or a vector along the axis)."""
        scale = np.asarray([_usable(float(x) / qtype.qmax) for x in np.ravel(largest)], np.float32)
        shape = () if axis is None else scale.shape
        return cls(qtype, scale.reshape(shape), np.zeros(shape, qtype.container), axis)

    def broadcast(self, array: FloatArray | IntArray, shape: tuple[int, ...]) -> Any:
        """Scale or zero point in a shape that broadcasts against a tensor of that shape."""
        return spread(array, self.axis, self.block, shape)

    def quantize(self, real: FloatArray) -> IntArray:
        """The nearest integers, half to even, saturated: ONNX's QuantizeLinear, bit for bit.

        Args:
            real: float32 of any shape.

        Returns:
            Integers of the type's container, the same shape.
        """
        with np.errstate(over="ignore"):
            scaled = np.rint(real.astype(np.float32, copy=False) / self.broadcast(self.scale, real.shape))
        shifted = scaled + self.broadcast(self.zero_point, real.shape).astype(np.float32)
        integers: IntArray = np.clip(shifted, self.qtype.qmin, self.qtype.qmax).astype(self.qtype.container)
        return integers

    def quantize_rows(self, rows: FloatArray) -> IntArray:
        """As `quantize`, of a matrix with a row for each channel, whatever the axis."""
        by_row = QParams(self.qtype, np.ravel(self.scale), np.ravel(self.zero_point), 0)
        return by_row.quantize(rows)

    def dequantize(self, integers: IntArray) -> FloatArray:
        """``scale * (q - zero_point)`` in float32: ONNX's DequantizeLinear."""
        wide = integers.astype(np.int32) - self.broadcast(self.zero_point, integers.shape).astype(np.int32)
        with np.errstate(over="ignore"):
            real: FloatArray = wide.astype(np.float32) * self.broadcast(self.scale, integers.shape)
        return real


def along(vector: Any, axis: int | None, rank: int) -> Any:
    """A vector, an entry a channel, in a shape that broadcasts against a tensor of that rank; a scalar as it is."""
    if axis is None:
        return vector
    return vector.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def spread(array: Any, axis: int | None, block: int | None, shape: tuple[int, ...]) -> Any:
    """Scale or zero point of a tensor, its channels or blocks, so that it broadcasts against the tensor."""
    if block is None or axis is None:
        return along(array, axis, len(shape))
    return np.repeat(array, block, axis).take(range(shape[axis]), axis)


def _usable(scale: float) -> float:
    """A scale that float32 holds; 1 where all values are zero, so that nothing is divided by it."""
    value = float(np.float32(scale))
    if not np.isfinite(value):
        raise ValueError(f"C1: every scale is finite and greater than zero, not {value}")
    if value == 0:
        return 1.0
    return max(value, TINY)
