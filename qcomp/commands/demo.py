"""``qcomp demo``: the compiler at work on a small model that it brings along."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcomp.commands.options import verbose_option
from qcomp.errors import OutputError

if TYPE_CHECKING:
    from rich.table import Table

    from qcomp.report.comparison import Comparison
    from qcomp.report.latency import Latency

BATCH = 32


@dataclass(frozen=True)
class Files:
    """What the demo writes."""

    model: Path
    quantized: Path
    train: Path
    test: Path
    labels: Path

    @classmethod
    def of(cls, folder: Path) -> Files:
        """The files of a folder."""
        return cls(*(folder / name for name in _NAMES))

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.model.parent


_NAMES = {
    "digits.onnx": "the float model",
    "digits.int8.onnx": "the quantized model",
    "train.npz": "images to calibrate with",
    "test.npz": "images to compare on",
    "labels.npy": "their digits",
}


@click.command(name="demo")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("qcomp-demo"), show_default=True, metavar="FOLDER"
)
@verbose_option
def command(out: Path) -> None:
    """Compile a small model that comes along, to try qcomp.

    The model names handwritten digits. The demo compares it with its quantized form, takes seconds, needs no network,
    and writes both models and the data into FOLDER, to play with.

    \b
      qcomp demo
    """
    from qcomp import compiler, files, runtime
    from qcomp.calibration.data import load_labels, open_data
    from qcomp.report import comparison, console, latency

    paths = Files.of(out)
    _write(paths)
    compiled = compiler.compile(paths.model, paths.train, paths.quantized)
    model = files.load(paths.model)
    samples, labels = open_data(paths.test, runtime.input_specs(model)), load_labels(paths.labels)
    found = comparison.compare(model, compiled.model, samples, labels=labels, batch=BATCH)
    feeds = latency.first_batch(samples, BATCH)
    times = latency.bench([paths.model, paths.quantized], [feeds, feeds])
    click.echo(f"Compiled a CNN for handwritten digits in {compiled.report.seconds:.1f} s\n")
    console.show(_table(found, times))
    _show_files(paths)


def _table(found: Comparison, times: Sequence[Latency]) -> Table:
    """Both models side by side."""
    from qcomp.report import console

    assert found.accuracy is not None
    accuracy = [console.percent(count / found.accuracy.samples) for count in found.accuracy.top1]
    sides = console.table("", "float32", "int8", numbers=[1, 2])
    console.row(sides, f"Accuracy, {found.samples} test images", *accuracy)
    console.row(sides, "Same digit as float32", "", console.percent(found.outputs[0].agreement or 0))
    console.row(sides, "SQNR of the outputs", "", console.decibels(found.outputs[0].ratio.decibels))
    console.row(sides, "File", *(console.size(one.size) for one in times))
    console.row(sides, f"Latency, {BATCH} images, 1 thread", *(console.milliseconds(one.median) for one in times))
    return sides


def _show_files(paths: Files) -> None:
    click.echo(f"\nIn {paths.folder}:")
    for name, what in _NAMES.items():
        click.echo(f"  {name:<18}{what}")
    model, result, train, test, labels = _NAMES
    click.echo("\nTry it yourself:")
    click.echo(f"  cd {shlex.quote(str(paths.folder))}")
    click.echo(f"  qcomp inspect {model}")
    click.echo(f"  qcomp compile {model} -o {result} --data {train}")
    click.echo(f"  qcomp compare {model} {result} --data {test} --labels {labels}")
    click.echo(f"  qcomp bench {model} {result} --batch {BATCH}")
    click.echo(f"  qcomp run {result} --data {test} -o outputs.npz")


def _write(paths: Files) -> None:
    """Write the float model and the data."""
    import numpy as np

    from qcomp import npz
    from qcomp.models import digits

    try:
        paths.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(digits.load("cnn"), paths.model)
        data = digits.data()
        np.save(paths.labels, data["test_labels"])
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(paths.folder)) from error
    npz.save(paths.train, {"image": data["train"]})
    npz.save(paths.test, {"image": data["test"]})
