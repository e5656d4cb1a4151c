"""``qcomp compile``: float ONNX in, quantized artefact out."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcomp import registry
from qcomp.commands.options import DataOptions, Settings, data_options, image_options, verbose_option
from qcomp.errors import OptionError, OutputError

if TYPE_CHECKING:
    from qcomp.compiler import Compiled

_BACKENDS = ", ".join(registry.names("backends"))


@click.command(name="compile")
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="OUT", help="Where to write the result.")
@data_options
@click.option(
    "-O",
    "level",
    type=int,
    default=1,
    show_default=True,
    metavar="0..3",
    help="The line of passes, as in -O1; see --print-passes.",
)
@click.option("--to", default="onnxruntime", show_default=True, metavar="BACKEND", help=f"One of {_BACKENDS}.")
@click.option("--weights", metavar="TYPE", help="int2 to int8.  [default: int8]")
@click.option("--activations", metavar="TYPE", help="uint8, int8, uint16, ..., or none.  [default: uint8]")
@click.option("--scales", metavar="KIND", help="dyadic ratios, pow2 or free.  [default: dyadic]")
@click.option("--group", type=int, metavar="N", help="Weights only: a scale for N inputs of a MatMul or Gemm.")
@click.option(
    "--per-tensor", "per_channel", flag_value=False, default=None, help="One scale for each weight, not one a channel."
)
@click.option("--keep", multiple=True, metavar="GLOB", help="Operators to keep in float, by name or type; repeatable.")
@click.option("--guard", type=float, metavar="DB", help="Keep layers in float until the outputs have this SQNR.")
@click.option(
    "--allow-float", is_flag=True, help="Where integers alone are asked for, leave in float what has no form."
)
@click.option("--verify", is_flag=True, help="Hold every pass to its tolerance on sample inputs.")
@click.option("--passes", metavar="LINE", help="A line of passes in place of that of -O.")
@click.option("--print-passes", is_flag=True, help="Print the line of passes and stop.")
@click.option("--dump", type=click.Path(path_type=Path), metavar="DIR", help="Write the model after every pass.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write the summary as JSON.")
@image_options
@verbose_option
@click.pass_obj
def command(
    settings: Settings,
    /,
    model: str,
    data: DataOptions,
    out: Path | None,
    guard: float | None,
    print_passes: bool,
    report: Path | None,
    **line: Any,
) -> None:
    """Quantize the float ONNX MODEL with samples of its inputs.

    \b
      qcomp compile model.onnx -o model.int8.onnx --data samples.npz
      qcomp compile model.onnx -o model.int8.onnx --data photos/ --preprocess imagenet
      qcomp compile model.onnx -o small.onnx --weights int8 --activations none

    DATA is an .npz with an array [samples, ...] by the name of each input; with one input, an .npy or a folder
    of images will do. A few hundred samples are enough (at most 512 are used). `qcomp inspect MODEL` shows the
    inputs.
    """
    if print_passes:
        _print_passes(line)
        return
    _check_places(model, data.data, out, report, line["to"])
    compiled = _compile(model, data, out, guard, line, shown=not settings.verbose)
    if report is not None:
        _write_report(compiled, report)
    _show(compiled, model, data, guard, every=settings.verbose)


def _write_report(compiled: Compiled, place: Path) -> None:
    from qcomp import files

    with files.replacing(place) as scratch:
        scratch.write_text(compiled.report.to_json() + "\n", encoding="utf-8")


def _check_places(model: str, data: str | None, out: Path | None, report: Path | None, to: str) -> None:
    """Fail before the work is done."""
    from qcomp import files, pipeline

    if out is None:
        raise OptionError("no place for the result", where="compile", hint="give -o OUT")
    if out.resolve() == Path(model).resolve():
        raise OutputError("is the model itself", where=str(out), hint="give another name")
    pipeline.parse_backend(to).check_place(out, others=(data, model))
    if report is not None:
        files.check_writable(report, others=(model, data, out))


def _compile(
    model: str, data: DataOptions, out: Path | None, guard: float | None, line: dict[str, Any], *, shown: bool
) -> Compiled:
    from qcomp import compiler
    from qcomp.report import console

    limit = data.samples or compiler.DEFAULT_SAMPLES
    with console.progress("Calibrating", shown=shown and data.data is not None) as progress:
        return compiler.compile(
            model,
            data.data,
            out,
            samples=limit,
            batch=data.batch,
            threads=data.threads,
            preprocess=data.preprocessing(),
            guard_db=guard,
            progress=progress,
            **line,
        )


def _show(compiled: Compiled, model: str, data: DataOptions, guard: float | None, *, every: bool) -> None:
    from qcomp import runtime
    from qcomp.report import compilation

    compilation.show(compiled.report, name=Path(model).name, bound=guard, every=every)
    main = compiled.files[0]
    if main.suffix == ".onnx":
        compilation.show_use(main, [spec.name for spec in runtime.input_specs(compiled.model)], data.arguments())


def _print_passes(line: dict[str, Any]) -> None:
    """Print the passes with their options, then the line to copy."""
    from qcomp import compiler, pipeline

    passes_of: Callable[..., list[pipeline.Pass]] = compiler.passes_of
    names = ("passes", "weights", "activations", "scales", "group", "per_channel", "keep", "allow_float")
    options = {name: line[name] for name in names}
    steps = passes_of(line["level"], pipeline.parse_backend(line["to"]), **options)
    for step in steps:
        _print_pass(step)
    others = sorted(set(registry.names("passes")) - {step.name() for step in steps})
    if others:
        click.echo(f"not in this line: {', '.join(others)}")
    click.echo(f"--passes {shlex.quote(','.join(map(str, steps)))}")


def _print_pass(step: Any) -> None:
    import dataclasses

    from qcomp import pipeline

    click.echo(step.name())
    click.echo(f"    {(step.__doc__ or '').strip().splitlines()[0]}")
    values = [f"{f.name}={pipeline.written(getattr(step, f.name))}" for f in dataclasses.fields(step)]
    if values:
        click.echo(f"    {{{' '.join(values)}}}")
