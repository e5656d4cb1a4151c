"""C simulation of a project from Python: compiled with g++, run on samples.

This runs the code of the folder, as `make` there would: take projects from those you trust.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp import files, graph, outer
from qcomp.backends.hls.layers import Feature
from qcomp.backends.hls.project import MARK, channels_first, channels_last
from qcomp.errors import ModelError, QcompError
from qcomp.graph import Array

_FIFO = re.compile(r"(\S+) (\d{1,9}) (\d{1,9}) \d{1,18}")
"""A line of the simulation's report: name, depth, high-water mark, words."""
LONGEST = 2000
"""Characters of a compiler's message."""


@dataclass(frozen=True)
class Fifo:
    """A FIFO after a run.

    Args:
        depth: words it holds.
        high_water: the most it held.
    """

    name: str
    depth: int
    high_water: int


@dataclass(frozen=True)
class _Output:
    name: str
    type: str = "tensor(float)"


class Simulation:
    """A project that runs: a session like those of ONNX Runtime, on floats or on integers.

    Args:
        folder: of the project.
        integers: integers in and out, without the float ends.

    Raises:
        ModelError: the folder is no project, or is damaged.
    """

    def __init__(self, folder: Path, *, integers: bool = False) -> None:
        self._folder, self._integers = folder, integers
        self.model = files.read(folder / "model.onnx")
        try:
            described = json.loads((folder / MARK).read_text(encoding="utf-8"))
            self._source = _feature(described["input"], self.model.graph.inputs[0])
            self._result = _feature(described["output"], self.model.graph.outputs[0])
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ModelError(f"is damaged: {error}", where=str(folder / MARK), hint="compile it again") from error
        self.fifos: list[Fifo] = []

    def get_outputs(self) -> list[_Output]:
        """The one output."""
        return [_Output(str(self.model.graph.outputs[0].name))]

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """The output of a batch.

        Raises:
            QcompError: it cannot be built, or ends with an error, such as a deadlock.
        """
        grids, name = outer.grids(self.model), str(self.model.graph.inputs[0].name)
        array = np.asarray(feeds[name])
        numbers = array if self._integers else grids[name].integers(array)
        out = self.integers(numbers)
        grid = grids.get(str(self.model.graph.outputs[0].name))
        if grid is None:
            return [out.astype(np.int64)]
        return [out if self._integers else grid.real(out)]

    def integers(self, numbers: Array) -> Array:
        """Integers in, integers out, both in the order of the ONNX values."""
        program = build(self._folder)
        with tempfile.TemporaryDirectory(prefix="qcomp-") as scratch:
            given, taken = Path(scratch) / "in.bin", Path(scratch) / "out.bin"
            given.write_bytes(channels_last(numbers, self._source).tobytes())
            done = _call([str(program), str(given), "-", str(taken)], self._folder, "the C simulation")
            raw = np.frombuffer(taken.read_bytes(), self._result.dtype)
        lines = filter(None, map(_FIFO.fullmatch, done.splitlines()))
        self.fifos = [Fifo(line[1], int(line[2]), int(line[3])) for line in lines]
        return channels_first(raw, self._result)


def _feature(values: dict[str, Any], value: ir.Value) -> Feature:
    """A stream as the project's file has it, which must be that of the model's input or output.

    Raises:
        ValueError: it is not.
    """
    numbers = [*values["shape"], *(values[name] for name in ("height", "width", "channels", "bits"))]
    if not all(isinstance(n, int) and 0 < n < 1 << 24 for n in numbers) or values["bits"] > 16:
        raise ValueError(f"{numbers} are no sizes")
    found = Feature(**{**values, "shape": tuple(values["shape"])})
    known = graph.static_shape(value)
    if math.prod(found.shape) != found.size or (known is not None and tuple(known[1:]) != found.shape):
        raise ValueError(f"the shape {list(found.shape)} is not that of {value.name!r}")
    return found


def build(folder: Path) -> Path:
    """Compile a project with its Makefile, where that is not done; the program.

    Raises:
        QcompError: there is no compiler, or it fails.
    """
    for tool in ("make", os.environ.get("CXX", "g++")):
        if shutil.which(tool) is None:
            what = f"{tool} is missing, which C simulation needs"
            raise QcompError(what, where=str(folder), hint="install it (Debian: apt install g++ make)")
    with (folder / MARK).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _call(["make", "--silent", "-j2"], folder, "the compiler")
    return (folder / "build" / "simulate").resolve()


def _call(command: list[str], folder: Path, who: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise QcompError(f"{who} cannot be run: {error.strerror or error}", where=str(folder)) from error
    if done.returncode:
        message = (done.stderr or done.stdout)[:LONGEST].strip()
        raise QcompError(f"{who} fails with exit code {done.returncode}: {message}", where=str(folder))
    return done.stdout


def opened(path: Path, *, integers: bool = False) -> Simulation | None:
    """The simulation of a project; None where the path is none."""
    return Simulation(path, integers=integers) if path.is_dir() and (path / MARK).is_file() else None
