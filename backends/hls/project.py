"""The project as a folder: firmware, simulation, testbench with expected results, scripts and reports."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp import files, outer, runtime
from qcomp.backends.hls import emission
from qcomp.backends.hls.boards import Board
from qcomp.backends.hls.design import Design
from qcomp.backends.hls.flow import Flow
from qcomp.backends.hls.layers import Feature
from qcomp.backends.hls.report import report
from qcomp.backends.hls.text import render
from qcomp.errors import OutputError
from qcomp.graph import Array
from qcomp.installed import version
from qcomp.runtime import Feeds

MARK = "qcomp-hls.json"
"""What tells a folder of ours from others."""
SAMPLES = 4
"""In the testbench, at least."""
HERE = Path(__file__).parent


def write(
    design: Design,
    flow: Flow,
    board: Board,
    model: ir.Model,
    feeds: Sequence[Feeds],
    out: Path,
    ports: str = "stream",
) -> list[Path]:
    """Write a project; what was there before stays until the new one is whole.

    Args:
        model: the integer graph with its float ends.
        feeds: float samples for the testbench; without any, random integers.
        ports: AXI streams, or memory: then there is no block design, which needs the streams.
        out: the folder; it may exist if it is empty or a project of this kind.

    Raises:
        OutputError: the place holds something else, or cannot be written.
    """
    with _replacing(out) as scratch:
        for folder, kind in (("firmware", "library"), ("simulation", "simulation")):
            shutil.copytree(HERE / kind, scratch / folder)
        (scratch / "firmware" / "weights").mkdir()
        for path, text in emission.texts(design, ports):
            _text(scratch / "firmware" / path, text)
        _testbench(design, model, feeds, scratch, ports)
        found = report(design, flow, board)
        _text(scratch / "report.json", json.dumps(found, indent=2) + "\n")
        _text(scratch / "report.md", render("report.md", **found))
        _scripts(design, board, found, scratch, ports)
        files.save(model, scratch / "model.onnx")
        _text(scratch / MARK, json.dumps(_description(design, scratch), indent=2) + "\n")
    return [out]


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder beside this one, which takes its place in the end."""
    check(out)
    out = out.resolve()
    with ExitStack() as cleaning:
        try:
            place = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", dir=out.parent))
            cleaning.callback(shutil.rmtree, place, ignore_errors=True)
            place.chmod(0o755)
            scratch, old = place / "new", place / "old"
            scratch.mkdir()
            yield scratch
            if out.exists():
                os.replace(out, old)
            try:
                os.replace(scratch, out)
            except OSError:
                if old.exists():
                    os.replace(old, out)
                raise
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror or error}", where=str(out)) from error


def check(out: Path, others: Sequence[str | os.PathLike[str] | None] = ()) -> None:
    """Whether a project can be written there.

    Args:
        others: files that are read, which must not lie in a folder that is replaced.

    Raises:
        OutputError: it cannot.
    """
    if out.exists() and not out.is_dir():
        raise OutputError("is a file", where=str(out), hint="give the name of a folder")
    if out.resolve() == Path.cwd():
        raise OutputError("is the folder you are in", where=str(out), hint="give the name of a new folder")
    foreign = _foreign(out) if out.is_dir() else []
    if foreign:
        what = f"is a folder with other files in it, such as {foreign[0]}"
        raise OutputError(what, where=str(out), hint="give the name of a new folder")
    if any(other is not None and Path(other).resolve().is_relative_to(out.resolve()) for other in others):
        raise OutputError("holds what this command reads", where=str(out), hint="give the name of a new folder")
    files.check_writable(out.parent / f".{out.name[:40]}.partial")


def _foreign(out: Path) -> list[str]:
    """The files in a folder that are of no project; what its Makefile makes does not count."""
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    try:
        listed = json.loads((out / MARK).read_text(encoding="utf-8"))["files"]
        own = {MARK, *map(str, listed)}
    except (OSError, ValueError, KeyError, TypeError):
        return sorted(there)
    return sorted(name for name in there - own if not name.startswith("build/"))


def _testbench(design: Design, model: ir.Model, feeds: Sequence[Feeds], scratch: Path, ports: str) -> None:
    """Samples as integers, and what ONNX Runtime gives for them, channels last."""
    folder = scratch / "testbench"
    folder.mkdir()
    values = {"version": version(), "top": emission.TOP, "ports": ports}
    _text(folder / "testbench.cpp", render("testbench.cpp", **values))
    stripped = outer.strip(model)
    network, spec = design.network, runtime.input_specs(stripped)[0]
    batch = spec.shape[0] if isinstance(spec.shape[0], int) else 1
    inputs = _integers(model, network.source, feeds, -(-SAMPLES // batch) * batch)
    batches = [{spec.name: inputs[i : i + batch]} for i in range(0, len(inputs), batch)]
    expected = next(iter(runtime.run_batches(runtime.session(stripped), batches).values()))
    (folder / "inputs.bin").write_bytes(channels_last(inputs, network.source).tobytes())
    (folder / "expected.bin").write_bytes(channels_last(expected, network.result).tobytes())


def _integers(model: ir.Model, source: Feature, feeds: Sequence[Feeds], count: int) -> Array:
    """So many samples as the integers of the input; repeated where there are fewer."""
    if not feeds:
        return np.random.default_rng(0).integers(0, 256, (count, *source.shape), np.uint8)
    name = runtime.input_specs(model)[0].name
    found: Array = np.resize(np.concatenate([f[name] for f in feeds]), (count, *source.shape))
    return outer.grids(model)[name].integers(found)


def channels_last(array: Array, feature: Feature) -> Array:
    """Integers of the ONNX value in the order in which they are streamed, ``(N, pixels, C)``, uint8 or uint16."""
    found: Array = array.reshape(len(array), feature.channels, feature.pixels).transpose(0, 2, 1).astype(feature.dtype)
    return np.ascontiguousarray(found)


def channels_first(array: Array, feature: Feature) -> Array:
    """The inverse: ``(N, *shape)``."""
    found: Array = array.reshape(-1, feature.pixels, feature.channels).transpose(0, 2, 1)
    return found.reshape(-1, *feature.shape)


def _description(design: Design, scratch: Path) -> dict[str, Any]:
    """What is needed to run the design, and the files of the project."""
    ends = {"input": design.network.source, "output": design.network.result}
    listed = sorted(p.relative_to(scratch).as_posix() for p in scratch.rglob("*") if p.is_file())
    return {name: dataclasses.asdict(feature) for name, feature in ends.items()} | {"files": listed}


def _scripts(design: Design, board: Board, found: dict[str, Any], scratch: Path, ports: str) -> None:
    sources = sorted(p.relative_to(scratch).as_posix() for p in (scratch / "firmware").rglob("*.cpp"))
    project = {
        "top": emission.TOP,
        "version": version(),
        "ports": ports,
        "board": {
            "name": board.name,
            "part": board.part,
            "board_part": board.board_part,
            "clock_ns": board.clock_ns,
            "processing_system": board.processing_system if ports == "stream" else None,
        },
        "input": _port(design, first=True),
        "output": _port(design, first=False),
        "sources": [*sources, "testbench/testbench.cpp"],
        "cycles": found["interval_cycles"],
        "estimates": found["estimates"],
    }
    names = ["build_hls.tcl", "Makefile", "README.md"]
    if board.processing_system is not None and ports == "stream":
        names += ["block_design.tcl", "pynq_driver.py"]
    for name in names:
        _text(scratch / name, render(name, project=project))


def _port(design: Design, *, first: bool) -> dict[str, Any]:
    node = design.network.quantize if first else design.network.dequantize
    grid = None if node is None else outer.grid_of(node)
    scale, zero = (None, 0) if grid is None else (float(grid.scale), grid.zero_point)
    return emission.end(design, first=first) | {"scale": scale, "zero_point": zero}
