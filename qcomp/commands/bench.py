"""``qcomp bench``: the latency of models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcomp.commands.options import DataOptions, verbose_option
from qcomp.errors import OptionError

if TYPE_CHECKING:
    from qcomp.calibration.data import InputSpec
    from qcomp.report.latency import Latency
    from qcomp.runtime import Feeds


@click.command(name="bench")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--runs", type=int, default=100, show_default=True, metavar="N", help="Timed runs of each model.")
@click.option("--batch", type=int, default=1, show_default=True, metavar="N", help="Samples a run.")
@click.option("--threads", type=int, default=1, show_default=True, metavar="N", help="Threads; 0: all cores.")
@click.option("--length", type=int, default=64, show_default=True, metavar="N", help="Other dynamic dimensions.")
@click.option("--data", metavar="DATA", help="Take inputs from here, not random ones.")
@verbose_option
def command(models: tuple[str, ...], runs: int, batch: int, threads: int, length: int, data: str | None) -> None:
    """Time MODELs in ONNX Runtime, one run of each in turn.

    \b
      qcomp bench model.onnx model.int8.onnx
      qcomp bench model.onnx model.int8.onnx --batch 8 --threads 4

    Inputs are random floats, and ones where a model takes integers; data that resembles the real one tells more
    where the time depends on it. The machine should have nothing else to do.
    """
    from qcomp import exactness, files, runtime
    from qcomp.report import latency

    options = DataOptions(data, batch=batch, threads=threads)
    if length < 1:
        raise OptionError(f"{length} is too few", where="--length", hint="give 1 or more")
    read = [files.read(model) for model in models]
    for name, model in zip(models, read, strict=True):
        exactness.warn(model, Path(name).name)
    feeds = [_feeds(runtime.input_specs(model), options, length) for model in read]
    show(latency.bench(models, feeds, runs=runs, threads=threads))


def _feeds(specs: list[InputSpec], options: DataOptions, length: int) -> Feeds:
    from qcomp.report import latency

    batch = options.batch or 1
    if options.data is None:
        return latency.random_feeds(specs, batch=batch, length=length)
    return latency.first_batch(options.open(specs), batch)


def show(found: list[Latency]) -> None:
    """Print the latencies."""
    from qcomp.report import console

    names = [Path(one.model).name for one in found]
    unique = len(set(names)) == len(names)
    times = console.table("Model", "File", "Median", "10 %", "90 %", "Speed", numbers=[1, 2, 3, 4, 5])
    for one, name in zip(found, names, strict=True):
        quantiles = [console.milliseconds(q) for q in (one.median, one.p10, one.p90)]
        speed = f"{found[0].median / one.median:.2f} x"
        console.row(times, name if unique else one.model, console.size(one.size), *quantiles, speed)
    console.show(times)
