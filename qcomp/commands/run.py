"""``qcomp run``: the outputs of a model on samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcomp.commands.options import DataOptions, data_options, image_options, verbose_option
from qcomp.errors import DataError, OutputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcomp.calibration.data import Samples


@click.command(name="run")
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="OUT", required=True, help="An .npz file.")
@click.option("--integer-input", is_flag=True, help="Integers in, integers out: no float ends.")
@data_options
@image_options
@verbose_option
def command(model: str, out: Path, integer_input: bool, data: DataOptions) -> None:
    """Write the outputs of MODEL, float, quantized, or the artefact of a backend, on samples.

    \b
      qcomp run model.int8.onnx --data test.npz -o outputs.npz
      python -c "import numpy; print(dict(numpy.load('outputs.npz')))"

    A folder that --to hls made is compiled and run: that is its code, so take it from those you trust.

    DATA has an array for each input, by its name; others are ignored, and for one input any name will do.

    With --integer-input the samples are the integers of a quantized model already, and so are its outputs: its first
    QuantizeLinear and last DequantizeLinear are left out. qcomp inspect shows the scale and zero point of each. For
    uint8, with real samples x and the integers y of an output:

    \b
      numpy.clip(numpy.rint(x / scale) + zero_point, 0, 255).astype("uint8")
      scale * (y.astype("int32") - zero_point)
    """
    from qcomp import artefacts, exactness, files, npz, outer, runtime

    files.check_writable(out, others=(model, data.data))
    artefact = artefacts.opened(model, integers=integer_input)
    if artefact is not None and out.resolve().is_relative_to(Path(model).resolve()):
        raise OutputError("lies in what this command runs", where=str(out), hint="give another place")
    whole = files.read(model) if artefact is None else artefact.model
    if artefact is None:
        exactness.warn(whole, Path(model).name)
    outer.check_scales(whole)
    used = outer.strip(whole) if integer_input else whole
    samples = _integers(data, used, whole) if integer_input else data.open(runtime.input_specs(whole))
    runner = artefact or runtime.session(used if integer_input else model, threads=data.threads)
    outputs = runtime.run_batches(runner, samples.batches(data.batch or 4, data.samples))
    npz.save(out, outputs)
    for name, array in outputs.items():
        click.echo(f"{name}: {array.dtype} {list(array.shape)}")
    click.echo(f"written to {out}")


def _integers(data: DataOptions, stripped: ir.Model, whole: ir.Model) -> Samples:
    """The samples of a model that takes integers; where they are floats for the whole model, say so."""
    from qcomp import runtime

    specs = runtime.input_specs(stripped)
    try:
        return data.open(specs)
    except DataError as error:
        if not _fits(data, whole):
            raise
        wanted = ", ".join(f"{spec.name}: {spec}" for spec in specs)
        hint = "qcomp run --help shows how to make them, or leave out --integer-input"
        what = f"no integers, where --integer-input takes them ({wanted})"
        raise DataError(what, where=str(data.data), hint=hint) from error


def _fits(data: DataOptions, model: ir.Model) -> bool:
    from qcomp import runtime

    try:
        data.open(runtime.input_specs(model))
    except DataError:
        return False
    return True
