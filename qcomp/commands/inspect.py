"""``qcomp inspect``: what a model holds, and what compiling it would do."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from qcomp.commands.options import Settings, verbose_option

if TYPE_CHECKING:
    from qcomp.report.inspection import Inspection


@click.command(name="inspect")
@click.argument("model")
@verbose_option
@click.pass_obj
def command(settings: Settings, /, model: str) -> None:
    """Show what MODEL holds and what would be quantized.

    \b
      qcomp inspect model.onnx
      qcomp inspect model.onnx -v      every operator by its name
    """
    from qcomp.report import compilation, console, inspection

    found = inspection.inspect(model)
    click.echo(f"{model}: {'a quantized' if found.quantized else 'a float'} model, opset {found.opset}\n")
    _show_values(found)
    _show_counts(found)
    if settings.verbose and found.in_integers:
        listed = console.table("Operator", "Name", title="In integers")
        for kind, name in found.in_integers:
            console.row(listed, kind, name)
        click.echo()
        console.show(listed)
    if found.in_float:
        click.echo()
        compilation.show_in_float(found.in_float, "Would stay in float", every=settings.verbose)


def _show_values(found: Inspection) -> None:
    from qcomp.report import console

    values = console.table("", "Name", "Type", "Shape")
    for label, specs in (("input", found.inputs), ("output", found.outputs)):
        for spec in specs:
            kind, _, shape = str(spec).partition(" ")
            console.row(values, label, spec.name, kind, shape)
    console.show(values)
    click.echo()


def _show_counts(found: Inspection) -> None:
    from qcomp.report import console

    facts = console.table("", "")
    facts.show_header = False
    console.row(facts, "Operators", console.counted(found.operators))
    console.row(facts, "Parameters", f"{found.parameters:,} in {console.size(found.weight_bytes)}")
    console.row(facts, "MACs a sample", f"{found.macs:,}" + " (dynamic dimensions count as 1)" * _is_dynamic(found))
    counts = dict(Counter(kind for kind, _ in found.in_integers).most_common())
    label = "In integers" if found.quantized else "Would be quantized"
    console.row(facts, label, console.counted(counts))
    console.show(facts)


def _is_dynamic(found: Inspection) -> bool:
    return any(not isinstance(size, int) for spec in found.inputs for size in spec.shape[1:])
