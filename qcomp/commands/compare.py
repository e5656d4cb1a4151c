"""``qcomp compare``: a quantized model against its float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcomp.commands.options import DataOptions, data_options, image_options, verbose_option

if TYPE_CHECKING:
    from qcomp.report.comparison import Comparison, LayerError
    from qcomp.report.outputs import OutputError


@click.command(name="compare")
@click.argument("reference", metavar="FLOAT")
@click.argument("quantized", metavar="QUANTIZED")
@data_options
@click.option("--labels", metavar="FILE", help="The class of each sample: .npy, or text of `[name] label` lines.")
@click.option("--top", type=int, default=10, show_default=True, metavar="N", help="Show the N worst layers.")
@image_options
@verbose_option
def command(reference: str, quantized: str, data: DataOptions, labels: str | None, top: int) -> None:
    """Compare QUANTIZED with its float model, layer by layer.

    \b
      qcomp compare model.onnx model.int8.onnx --data test.npz --labels labels.txt

    SQNR is the ratio of signal to quantization noise, in dB: 20 dB is noise of a tenth of the signal, 40 dB of a
    hundredth. A layer's noise includes that of the layers before it: look for where it drops.
    """
    from qcomp import exactness, files, runtime
    from qcomp.calibration.data import load_labels
    from qcomp.report import comparison, console

    before, after = files.load(reference), files.read(quantized)
    exactness.warn(after, Path(quantized).name)
    samples = data.open(runtime.input_specs(before))
    classes = None if labels is None else load_labels(labels, samples.names)
    with console.progress("Comparing") as progress:
        found = comparison.compare(
            before,
            after,
            samples,
            labels=classes,
            limit=data.samples,
            batch=data.batch or 4,
            threads=data.threads,
            progress=progress,
        )
    show(found, top)


def show(found: Comparison, top: int) -> None:
    """Print the comparison."""
    from qcomp.report import console

    outputs = console.table("Output", "SQNR", "Same top class", numbers=[1, 2])
    for output in found.outputs:
        console.row(outputs, *_output_cells(output))
    click.echo(f"{found.samples} samples\n")
    console.show(outputs)
    if found.accuracy is not None:
        _show_accuracy(found)
    if found.layers and top > 0:
        click.echo()
        _show_layers(found, found.layers[:top])


def _output_cells(output: OutputError) -> tuple[str, str, str]:
    from qcomp.report import console

    agreement = "" if output.agreement is None else console.percent(output.agreement)
    return output.name, console.decibels(output.ratio.decibels), agreement


def _show_accuracy(found: Comparison) -> None:
    from qcomp.report import console

    assert found.accuracy is not None
    correct = console.table("Accuracy", "Float", "Quantized", numbers=[1, 2])
    for name, counts in (("top 1", found.accuracy.top1), ("top 5", found.accuracy.top5)):
        console.row(correct, name, *(console.percent(count / found.accuracy.samples) for count in counts))
    click.echo()
    console.show(correct)


def _show_layers(found: Comparison, worst: list[LayerError]) -> None:
    from qcomp.report import console

    title = f"The worst {len(worst)} of {len(found.layers)} layers, on {found.layer_samples} samples"
    listed = console.table("Operator", "Name", "SQNR", numbers=[2], title=title)
    for layer in worst:
        console.row(listed, layer.kind, layer.name, console.decibels(layer.ratio.decibels))
    console.show(listed)
