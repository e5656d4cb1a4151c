"""Latency of one sample on one thread: float32, -O1 and the peer, in interleaved blocks.

Only the ratios mean something on a shared machine: each is the median over pairs of neighbouring blocks, with its 10th
and 90th percentile.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import measure
import peer
import zoo

import qcomp
from qcomp import runtime

COLUMNS = ("model", "float32 us", "-O1 us", "peer us", "-O1 / float32", "p10-p90", "-O1 / peer", "p10-p90")
CALIBRATION_SAMPLES = 32
"""Latency does not depend on the ranges."""


def main() -> None:
    """Print one table."""
    parser = zoo.arguments(__doc__)
    parser.add_argument("--blocks", type=int, default=60, help="blocks of each contender")
    parser.add_argument("--no-peer", action="store_true", help="leave the peer out")
    options = parser.parse_args()
    data = zoo.data_of(options)
    rows = []
    for model in zoo.selected(options.models):
        calls = _contenders(model, data, with_peer=not options.no_peer)
        rows.append(_row(model.name, measure.interleaved(calls, blocks=options.blocks)))
    print(measure.table(COLUMNS, rows))


def _contenders(model: zoo.Model, data: Path, *, with_peer: bool) -> dict[str, Any]:
    chosen = model.compile_options() | {"samples": CALIBRATION_SAMPLES}
    compiled = qcomp.compile(model.path(data), model.calibration(data), **chosen)
    sessions = {"float32": runtime.session(model.path(data)), "qcomp": runtime.session(compiled.model)}
    with tempfile.TemporaryDirectory() as folder:
        path = peer.quantize(model, data, Path(folder), samples=CALIBRATION_SAMPLES) if with_peer else None
        if path is not None:
            sessions["peer"] = runtime.session(path)
    sample = zoo.one_sample(model, data)
    return {name: functools.partial(runner.run, None, sample) for name, runner in sessions.items()}


def _row(name: str, timing: measure.Timing) -> list[str]:
    micros = [f"{1e6 * timing.median(n):.0f}" if n in timing.blocks else "-" for n in ("float32", "qcomp", "peer")]
    ratios = []
    for other in ("float32", "peer"):
        if other in timing.blocks:
            middle, low, high = timing.ratio("qcomp", other)
            ratios += [f"{middle:.2f}", f"{low:.2f}-{high:.2f}"]
        else:
            ratios += ["-", "-"]
    return [name, *micros, *ratios]


if __name__ == "__main__":
    main()
