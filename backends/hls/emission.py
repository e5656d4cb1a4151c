"""The C++ of a design: layers, constants and top, as texts by file name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcomp.backends.hls.design import Design
from qcomp.backends.hls.layers import Feature, Layer
from qcomp.backends.hls.processes import Process, Rom, Stream
from qcomp.backends.hls.text import render, sanitized
from qcomp.installed import version

TOP = "qcomp_top"
PER_LINE = 8
"""Numbers in a line of constants."""
ENDS = {"source": "read_input", "sink": "write_output"}
"""The kernels of the ports."""
NOT_MEMBERS = ("fork", "convert")
"""Kernels whose constants are template arguments."""


def texts(design: Design, ports: str) -> Iterator[tuple[str, str]]:
    """The generated files of ``firmware/``, by their path there.

    Args:
        ports: ``stream`` or ``memory``.
    """
    weights = []
    for process in design.processes:
        if process.roms:
            file = f"{process.name}.h"
            weights.append(file)
            yield f"weights/{file}", _weights(design, process)
    processes = [_process(p, ports) for p in design.processes]
    common = {"version": version(), "top": TOP, "processes": processes, "ports": ports}
    yield "layers.h", render("layers.h", **common)
    yield "layers.cpp", render("layers.cpp", **common, weights=weights, layers=_by_layer(design, processes))
    streams = [_stream(s, design.depths[s.name]) for s in design.streams]
    ends = {"source": end(design, first=True), "result": end(design, first=False)}
    yield "top.h", render("top.h", **common, **ends)
    yield "top.cpp", render("top.cpp", **common, **ends, streams=streams)


def end(design: Design, *, first: bool) -> dict[str, Any]:
    """What the top and its users know of a port."""
    process = design.processes[0 if first else -1]
    stream = (process.outputs if first else process.inputs)[0]
    feature = design.network.source if first else design.network.result
    width = feature.dtype.itemsize
    return {
        "title": _shape(feature),
        "name": feature.name,
        "shape": [feature.height, feature.width, feature.channels],
        "bits": stream.bits,
        "size": feature.size,
        "lanes": stream.lanes,
        "words": stream.words,
        "bytes": width,
        "port": 8 * width * stream.lanes,
    }


def _shape(feature: Feature) -> str:
    sizes = " x ".join(str(s) for s in (feature.height, feature.width, feature.channels))
    return f"{sanitized(feature.name)}, {sizes} of {feature.bits} bits, channels last"


def _by_layer(design: Design, texts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The processes of each layer under its name and shapes, in order."""
    for number in range(-1, len(design.network.layers)):
        own = [text for process, text in zip(design.processes, texts, strict=True) if process.layer == number]
        if number < 0:
            title, shapes = "The ports, and copies of the input", _shape(design.network.source)
        else:
            layer = design.network.layers[number]
            title, shapes = layer.title, _shapes(layer)
        yield {"title": title, "shapes": shapes, "processes": own}


def _shapes(layer: Layer) -> str:
    return " and ".join(map(_shape, layer.features)) + " -> " + _shape(layer.result)


def word(stream: Stream) -> str:
    """The C++ type of a word."""
    return f"qcomp::{'Sums' if stream.signed else 'Word'}<{stream.bits}, {stream.lanes}>"


def _stream(stream: Stream, depth: int) -> dict[str, Any]:
    return {"name": stream.name, "type": word(stream), "depth": depth}


def _process(process: Process, ports: str) -> dict[str, Any]:
    """How a process appears: its function, the call of its kernel, its arguments in the top."""
    first, last = ("input", "output") if ports == "stream" else ("from_memory", "to_memory")
    names = _parameters(process)
    parameters = ", ".join(f"hls::stream<{kind}>& {name}" for kind, name in names)
    streams = [s.name for s in (*process.inputs, *process.outputs)]
    if process.kernel == "source":
        streams = [first, *streams]
    if process.kernel == "sink":
        streams = [*streams, last]
    roms = [f"{process.name}_{rom.name}" for rom in process.roms]
    arguments = ", ".join([*(name for _, name in names), *roms])
    return {
        "name": process.name,
        "signature": f"void {process.name}({parameters})",
        "call": f"qcomp::{ENDS.get(process.kernel, process.kernel)}<{_template(process)}>({arguments})",
        "arguments": ", ".join(streams),
        "constants": [] if process.kernel in NOT_MEMBERS else list(_members(process).items()),
    }


def _parameters(process: Process) -> list[tuple[str, str]]:
    """Type and name of each stream of a function."""
    inputs, outputs = [word(s) for s in process.inputs], [word(s) for s in process.outputs]
    port = f"qcomp::Beat<{_port_bits(process)}>" if process.kernel in ENDS else ""
    inputs = [port] if process.kernel == "source" else inputs
    outputs = [port] if process.kernel == "sink" else outputs
    names = ["in"] if len(inputs) == 1 else ["a", "b"]
    names += ["out"] if len(outputs) == 1 else ["one", "two"]
    return list(zip([*inputs, *outputs], names, strict=True))


def _port_bits(process: Process) -> int:
    return process.constants["LANES"] * (8 if process.constants["BITS"] <= 8 else 16)


def _members(process: Process) -> Mapping[str, int]:
    return {**process.constants, "PORT": _port_bits(process)} if process.kernel in ENDS else process.constants


def _template(process: Process) -> str:
    if process.kernel in NOT_MEMBERS:
        return ", ".join(str(v) for v in process.constants.values())
    return f"{process.name}_constants"


def _weights(design: Design, process: Process) -> str:
    layer = design.network.layers[process.layer]
    roms = [_rom(process, rom) for rom in process.roms]
    guard = f"WEIGHTS_{process.name.upper()}"
    return render("weights.h", version=version(), title=layer.title, guard=guard, roms=roms)


def _rom(process: Process, rom: Rom) -> dict[str, Any]:
    entries = rom.entries
    return {
        "kind": rom.kind,
        "bits": rom.bits,
        "name": f"{process.name}_{rom.name}",
        "dimensions": "".join(f"[{n}]" for n in entries.shape),
        "text": numbers(rom, entries),
    }


def numbers(rom: Rom, entries: NDArray[Any]) -> str:
    """The initializer of a ROM's entries: hexadecimal where it is packed, decimal elsewhere."""
    if rom.packed:
        digits = -(-rom.bits // 4)
        flat = [f"0x{value:0{digits}x}ULL" for value in entries.reshape(-1).tolist()]
    else:
        suffix = "LL" if rom.kind == "rom_int" else "ULL"
        flat = [f"{value}{suffix if abs(value) >= 1 << 31 else ''}" for value in entries.reshape(-1).tolist()]
    return _nested(flat, entries, 0)


def _nested(flat: list[str], entries: NDArray[Any], depth: int) -> str:
    """Numbers in braces, rows of the innermost axes on lines of their own."""
    shape = entries.shape[depth:]
    indent = "    " * (depth + 1)
    if len(shape) == 1 or int(np.prod(shape)) <= PER_LINE:
        return _row(flat, shape, indent)
    step = len(flat) // shape[0]
    parts = (_nested(flat[i * step : (i + 1) * step], entries, depth + 1) for i in range(shape[0]))
    return "{\n" + ",\n".join(indent + part for part in parts) + "\n" + indent[4:] + "}"


def _row(flat: list[str], shape: tuple[int, ...], indent: str) -> str:
    """A few numbers on one line, many on several."""
    if len(shape) > 1:
        step = len(flat) // shape[0]
        return "{" + ", ".join(_row(flat[i * step : (i + 1) * step], shape[1:], indent) for i in range(shape[0])) + "}"
    if len(flat) <= PER_LINE:
        return "{" + ", ".join(flat) + "}"
    lines = (", ".join(flat[i : i + PER_LINE]) for i in range(0, len(flat), PER_LINE))
    return "{\n" + ",\n".join(indent + line for line in lines) + "\n" + indent[4:] + "}"
