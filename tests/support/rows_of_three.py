"""Samples of three numbers, and what describes such inputs."""

from __future__ import annotations

import numpy as np

from qcomp.calibration.data import InputSpec

F32 = np.dtype("float32")
X = InputSpec("x", F32, ("N", 3))
IDS = InputSpec("ids", np.dtype("int64"), ("N", None))


def spec(dtype="float32", shape=("N", 3), name="x"):
    return InputSpec(name, np.dtype(dtype), shape)


def rows(n, *, start=0):
    return np.arange(start * 3, (start + n) * 3, dtype=F32).reshape(n, 3)
