"""Peak memory of compile -O1 with 512 against 64 calibration images, each in a process of its own.

The data has 256 calibration images: 512 are these and their mirror images. They are decoded batch by batch.
One process in ten or so peaks 100 MB higher whatever the number of images: each number is the median of several
processes, with the range.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import measure
import numpy as np
import zoo

import qcomp
from qcomp.compiler import DEFAULT_BATCH

FEW, MANY = 64, 512
COLUMNS = ("model", f"{FEW} images, MB", f"{MANY} images, MB", "ratio", "before compile, MB")
ON_IMAGES = ("mobilenetv2", "squeezenet1.1")


class Stream:
    """The images batch by batch, then their mirror images; can be read again."""

    def __init__(self, model: zoo.Model, data: Path) -> None:
        self._samples = model.samples(data)

    def __iter__(self) -> Iterator[zoo.Feeds]:
        for mirrored in (False, True):
            for feeds in self._samples.batches(DEFAULT_BATCH):
                yield {name: array[..., ::-1].copy() if mirrored else array for name, array in feeds.items()}


def main() -> None:
    """Print one table."""
    parser = zoo.arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    data = zoo.data_of(options)
    rows = []
    for model in zoo.selected(options.models, ON_IMAGES):
        _, idle = measure.in_child(_open, model.name, data)
        peaks = {count: _peaks(model.name, data, count, options.repeats) for count in (FEW, MANY)}
        cells = [f"{np.median(of):.0f} ({min(of):.0f}-{max(of):.0f})" for of in peaks.values()]
        ratio = np.median(peaks[MANY]) / np.median(peaks[FEW])
        rows.append([model.name, *cells, f"{ratio:.3f}", f"{idle / 1e6:.0f}"])
    print(measure.table(COLUMNS, rows))


def _peaks(name: str, data: Path, count: int, repeats: int) -> list[float]:
    """MB, of one process each."""
    found = [measure.in_child(_compile, name, data, count) for _ in range(repeats)]
    assert all(samples == count for samples, _ in found)
    return [peak / 1e6 for _, peak in found]


def _open(name: str, data: Path) -> int:
    """All that is there before compile: imports, one batch of images."""
    return len(next(iter(Stream(zoo.MODELS[name], data))))


def _compile(name: str, data: Path, samples: int) -> int:
    model = zoo.MODELS[name]
    return qcomp.compile(model.path(data), Stream(model, data), samples=samples).report.samples


if __name__ == "__main__":
    main()
