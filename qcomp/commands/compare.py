"""``qcomp compare``: a quantized model against its float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcomp.commands.options import DataOptions, data_options, image_options, verbose_option
from qcomp.errors import ModelError, OptionError

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcomp.backend import Runner
    from qcomp.report.comparison import Comparison, LayerError
    from qcomp.report.explanation import LayerLoss
    from qcomp.report.outputs import OutputError


@click.command(name="compare")
@click.argument("reference", metavar="FLOAT")
@click.argument("quantized", metavar="QUANTIZED")
@data_options
@click.option("--labels", metavar="FILE", help="The class of each sample: .npy, or text of `[name] label` lines.")
@click.option("--top", type=int, default=10, show_default=True, metavar="N", help="Show the N worst layers.")
@click.option(
    "--explain",
    is_flag=True,
    help="Quantize the N worst layers one at a time: what weights and activations cost, and which pass would help.",
)
@image_options
@verbose_option
def command(reference: str, quantized: str, data: DataOptions, labels: str | None, top: int, *, explain: bool) -> None:
    """Compare QUANTIZED with its float model, layer by layer.

    \b
      qcomp compare model.onnx model.int8.onnx --data test.npz --labels labels.txt

    SQNR is the ratio of signal to quantization noise, in dB: 20 dB is noise of a tenth of the signal, 40 dB of a
    hundredth. A layer's noise includes that of the layers before it: look for where it drops.

    Of two quantized models the outputs alone are compared, exactly: forms of one model give the same integers. So it is
    where QUANTIZED is no ONNX file but what another backend made.
    """
    from qcomp import artefacts, exactness, files, outer, runtime
    from qcomp.calibration.data import load_labels
    from qcomp.report import comparison, console, explanation

    if (artefact := artefacts.opened(quantized)) is not None:
        _refuse_options(labels=labels is not None, explain=explain)
        first = files.read(reference)
        exactness.warn(first, Path(reference).name)
        outer.check_scales(first)
        _compare_outputs(first, artefact.model, data, artefact)
        return
    after = files.read(quantized)
    exactness.warn(after, Path(quantized).name)
    outer.check_scales(after)
    if files.is_quantized_model(first := files.read(reference)):
        exactness.warn(first, Path(reference).name)
        _check_two_quantized(reference, after, labels=labels is not None, explain=explain)
        _compare_outputs(first, after, data)
        return
    before = files.load(reference)
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
    if explain:
        with console.progress("Explaining") as progress:
            losses = explanation.explain(before, after, samples, layers=top, batch=data.batch or 4, progress=progress)
        _show_losses(losses)


def _check_two_quantized(reference: str, other: ir.Model, *, labels: bool, explain: bool) -> None:
    from qcomp import files

    if not files.is_quantized_model(other):
        raise ModelError("is quantized, and the other model is not", where=reference, hint="give the float model first")
    _refuse_options(labels=labels, explain=explain)


def _refuse_options(*, labels: bool, explain: bool) -> None:
    if labels or explain:
        option = "--labels" if labels else "--explain"
        hint = "give that first and a quantized ONNX file behind it, or leave it out"
        raise OptionError("needs the float model", where=option, hint=hint)


def _compare_outputs(first: ir.Model, second: ir.Model, data: DataOptions, runner: Runner | None = None) -> None:
    """Compare outputs alone, and print how many numbers differ.

    Args:
        runner: what runs the second, where that is no ONNX file.
    """
    from qcomp import runtime
    from qcomp.report import console, equality

    samples = data.open(runtime.input_specs(first))
    with console.progress("Comparing") as progress:
        found = equality.compare(
            first,
            second,
            samples,
            limit=data.samples,
            batch=data.batch or 4,
            threads=data.threads,
            progress=progress,
            runner=runner,
        )
    listed = console.table("Output", "Differing", "SQNR", numbers=[1, 2])
    for one in found:
        console.row(listed, one.name, f"{one.differing:,} of {one.elements:,}", console.decibels(one.ratio.decibels))
    console.show(listed)
    click.echo("\nThe outputs are equal" if not any(one.differing for one in found) else "\nThe outputs differ")


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


def _show_losses(losses: list[LayerLoss]) -> None:
    from qcomp.report import console

    title = "SQNR of the worst output with one layer quantized, and what would help that layer"
    columns = ("Operator", "Name", "Alone", "Weights", "Activations", "Remedy", "With it")
    listed = console.table(*columns, numbers=[2, 3, 4, 6], title=title)
    for loss in losses:
        ratios = (console.decibels(ratio) for ratio in (loss.alone, loss.weights, loss.activations))
        label, ratio = loss.remedies[0] if loss.remedies else ("", None)
        console.row(listed, loss.kind, loss.name, *ratios, label, "" if ratio is None else console.decibels(ratio))
    click.echo()
    console.show(listed)
