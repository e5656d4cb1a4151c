"""Wall time of compile -O1 over bare float32 inference of the same 256 images, one thread, the same batches.

Two ratios: with the images decoded on both sides, and with arrays in memory on both sides. Everything else that
compile does is counted: loading, passes, statistics, measuring the outputs' error.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import measure
import numpy as np
import peer
import zoo

import qcomp
from qcomp import runtime
from qcomp.compiler import DEFAULT_BATCH

COLUMNS = ("model", "images", "", "compile s", "float32 s", "ratio")
PEER_COLUMNS = ("model", "peer's method", "images", "seconds", "seconds / float32")
ON_IMAGES = ("mobilenetv2", "squeezenet1.1")


def main() -> None:
    """Print one table, and one of the peer."""
    parser = zoo.arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="also quantize_static: min-max, percentile, entropy")
    parser.add_argument("--peer-images", type=int, default=32, help="for percentile and entropy, which keep everything")
    options = parser.parse_args()
    data = zoo.data_of(options)
    rows, peers = [], []
    for model in zoo.selected(options.models, ON_IMAGES):
        rows += _rows(model, data, options.repeats)
        if options.peer:
            peers += [_peer(model, data, "minmax", zoo.CALIBRATION_SAMPLES)]
            peers += [_peer(model, data, method, options.peer_images) for method in ("percentile", "entropy")]
    print(measure.table(COLUMNS, rows))
    if peers:
        print("\n" + measure.table(PEER_COLUMNS, peers))


def _rows(model: zoo.Model, data: Path, repeats: int) -> list[list[str]]:
    batches = list(model.samples(data).batches(DEFAULT_BATCH, zoo.CALIBRATION_SAMPLES))
    count = sum(len(next(iter(feeds.values()))) for feeds in batches)
    chosen = model.compile_options()
    contenders: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "images decoded in both": (
            lambda: qcomp.compile(model.path(data), model.calibration(data), **chosen),
            lambda: _infer(model, data, model.samples(data).batches(DEFAULT_BATCH, zoo.CALIBRATION_SAMPLES)),
        ),
        "arrays in memory": (
            lambda: qcomp.compile(model.path(data), batches, **(chosen | {"preprocess": None})),
            lambda: _infer(model, data, batches),
        ),
    }
    rows = []
    for label, (compiling, inferring) in contenders.items():
        pairs = [(_seconds(compiling), _seconds(inferring)) for _ in range(repeats)]
        middle = [float(np.median(side)) for side in zip(*pairs, strict=True)]
        ratio = float(np.median([a / b for a, b in pairs]))
        rows.append([model.name, str(count), label, f"{middle[0]:.2f}", f"{middle[1]:.2f}", f"{ratio:.2f}"])
    return rows


def _infer(model: zoo.Model, data: Path, batches: Iterable[zoo.Feeds]) -> None:
    runner = runtime.session(model.path(data))
    for feeds in batches:
        runner.run(None, feeds)


def _peer(model: zoo.Model, data: Path, method: str, images: int) -> list[str]:
    batches = list(model.samples(data).batches(DEFAULT_BATCH, images))
    with tempfile.TemporaryDirectory() as folder:
        compiling = _seconds(lambda: peer.quantize(model, data, Path(folder), ranges=method, samples=images))
    inferring = _seconds(lambda: _infer(model, data, batches))
    return [model.name, method, str(images), f"{compiling:.2f}", f"{compiling / inferring:.2f}"]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
