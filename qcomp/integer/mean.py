"""The mean of uint8 activations over some axes, in integers: the NumPy definition and its constants.

    y = clamp(round_half_even((sum(x) - count * x_zero_point) * multiplier / 2**shift) + y_zero_point, 0, 255)

with ``multiplier / 2**shift = x_scale / (y_scale * count)``. It is GlobalAveragePool too, over the spatial axes. The
sum stays below 2**31 for up to 2**23 elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcomp.errors import UnsupportedError
from qcomp.graph import Array
from qcomp.integer.requantize import Requantize

MOST_COUNT = 1 << 23


@dataclass(frozen=True)
class ReduceMean:
    """The constants of ``qcomp.ReduceMean``; calling it computes the definition.

    Args:
        count: how many elements a mean is taken of, up to 2**23.
        x_zero_point: of the input.
        requantize: of the sum; its factor holds one over the count.

    Raises:
        UnsupportedError: too many elements.
    """

    count: int
    x_zero_point: int
    requantize: Requantize

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_COUNT:
            what = f"a sum of {self.count} elements does not fit in 32 bits"
            raise UnsupportedError(what, where="ReduceMean", hint="keep it in float")

    @classmethod
    def of(cls, x_scale: float, x_zero_point: int, y_scale: float, y_zero_point: int, count: int) -> ReduceMean:
        """The constants for these scales and zero points.

        Raises:
            UnsupportedError: the scales are too far apart, or there are too many elements.
        """
        return cls(count, x_zero_point, Requantize.of(x_scale / (y_scale * count), y_zero_point))

    @property
    def constants(self) -> dict[str, Array]:
        """What the ONNX function reads behind x, in order."""
        return {"offset": np.asarray(self.count * self.x_zero_point, np.int32), **self.requantize.constants}

    def __call__(self, x: Array, axes: Sequence[int] = (-1,), *, keepdims: bool = True) -> Array:
        """The mean of uint8 ``x`` over the axes, which hold ``count`` elements; uint8."""
        total = x.astype(np.int64).sum(axis=tuple(axes), keepdims=keepdims)
        return self.requantize(total - self.count * self.x_zero_point)
