"""What fits an input of a model: its shape and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcomp.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class InputSpec:
    """An input of a model: the length of an axis is an int, or a name or None when it may vary.

    The first axis is the samples; an int there is the only batch size that the model takes.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.dtype.name} [{axes}]"


def check_fits(spec: InputSpec, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Refuse an array [samples, ...] whose shape or dtype the input cannot take, with a DataError."""
    fits = len(shape) == len(spec.shape) and all(map(_axis_fits, spec.shape[1:], shape[1:]))
    if not fits:
        what = f"input {spec.name!r} takes {spec}, not the shape {list(shape)}"
        raise DataError(what, where=where, hint=_shape_hint(spec.shape, shape))
    have, want = kind(dtype), kind(spec.dtype)
    lossy = have == "float" and want != "float"
    flags = have == "bool" and want == "int" and spec.dtype.itemsize == 1  # quantized; wider ones may be masks
    if not have or not want or lossy or flags:
        what = f"input {spec.name!r} takes {spec}, not {dtype.name}"
        raise DataError(what, where=where, hint=f"convert it yourself: x.astype({spec.dtype.name!r})")


def _axis_fits(want: int | str | None, have: int) -> bool:
    return have == want if isinstance(want, int) else have > 0


def _shape_hint(want: tuple[int | str | None, ...], have: tuple[int, ...]) -> str:
    want = (None, *want[1:])
    for axis in range(len(want)):
        rest = want[:axis] + want[axis + 1 :]
        if len(rest) == len(have) and _axis_fits(want[axis], 1) and all(map(_axis_fits, rest, have)):
            return f"axis {axis} is missing: numpy.expand_dims(x, {axis})"
    if len(want) != len(have):
        return f"it has {len(have)} axes, the model's input {len(want)}; the first one is the samples"
    axis = next(i for i in range(1, len(want)) if not _axis_fits(want[i], have[i]))
    return f"axis {axis} has the length {have[axis]}, the model's input {want[axis] or 'at least 1'}"


def kind(dtype: np.dtype[Any]) -> str:
    """'bool', 'int' or 'float', those of ml_dtypes too; '' for what no tensor of numbers holds."""
    kinds = {"bool": "bool", "int": "int", "uint": "int", "float": "float", "bfloat": "float"}
    return next((kind for prefix, kind in kinds.items() if dtype.name.startswith(prefix)), "")


def cast(spec: InputSpec, array: Array, start: int, where: str) -> Array:
    """A contiguous copy in the input's dtype; `start` is the index of the first sample."""
    with np.errstate(all="ignore"):
        result = np.array(array, dtype=spec.dtype, order="C")
        if not np.can_cast(array.dtype, spec.dtype) and kind(array.dtype) == "int":
            back = result.astype(array.dtype) if kind(spec.dtype) == "float" else result
            _refuse(back != array, spec, start, f"a value that {spec.dtype.name} cannot hold", where)
    if kind(spec.dtype) == "float":
        _refuse(~np.isfinite(result), spec, start, "NaN or infinity", where)
    return result


def _refuse(bad: NDArray[np.bool_], spec: InputSpec, start: int, what: str, where: str) -> None:
    if bad.any():
        sample = start + int(np.unravel_index(bad.argmax(), bad.shape)[0])
        what = f"input {spec.name!r}, sample {sample}: {what}"
        raise DataError(what, where=where, hint="correct the sample, or leave it out")


def listed(items: Sequence[object]) -> str:
    """A list on one line, of any length."""
    return ", ".join(map(str, items[:8])) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
