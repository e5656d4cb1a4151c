"""``qcomp run``: the outputs of a model on samples."""

from __future__ import annotations

from pathlib import Path

import click

from qcomp.commands.options import DataOptions, data_options, image_options, verbose_option


@click.command(name="run")
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="OUT", required=True, help="An .npz file.")
@data_options
@image_options
@verbose_option
def command(model: str, out: Path, data: DataOptions) -> None:
    """Write the outputs of MODEL, float or quantized, on samples.

    \b
      qcomp run model.int8.onnx --data test.npz -o outputs.npz
      python -c "import numpy; print(dict(numpy.load('outputs.npz')))"
    """
    from qcomp import files, npz, runtime

    files.check_writable(out, others=(model, data.data))
    samples = data.open(runtime.input_specs(files.read(model)))
    runner = runtime.session(model, threads=data.threads)
    outputs = runtime.run_batches(runner, samples.batches(data.batch or 4, data.samples))
    npz.save(out, outputs)
    for name, array in outputs.items():
        click.echo(f"{name}: {array.dtype} {list(array.shape)}")
    click.echo(f"written to {out}")
