"""``qcomp inspect``: what a model holds, and what compiling it would do."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from qcomp.commands.options import Settings, verbose_option

if TYPE_CHECKING:
    from qcomp.report.inspection import Inspection


_MACHINES = {
    "everywhere": "exact on every machine",
    "dot-product": "exact on machines with 8-bit dot products (VNNI, AMX, Arm)",
}


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
    """The inputs and outputs, and where integers lie behind them, their scales and zero points."""
    from qcomp.report import console

    values = console.table("", "Name", "Type", "Shape", *(["Integers", "Scale", "Zero point"] if found.grids else []))
    for label, specs in (("input", found.inputs), ("output", found.outputs)):
        for spec in specs:
            kind, _, shape = str(spec).partition(" ")
            grid = found.grids.get(spec.name)
            cells = [] if grid is None else [grid.dtype, str(grid.scale), str(grid.zero_point)]
            console.row(values, label, spec.name, kind, shape, *cells)
    console.show(values)
    click.echo()


def _show_counts(found: Inspection) -> None:
    from qcomp.report import console

    facts = console.table("", "")
    facts.show_header = False
    console.row(facts, "Operators", console.counted(found.operators))
    console.row(facts, "Parameters", f"{found.parameters:,} in {console.size(found.weight_bytes)}")
    console.row(facts, "MACs a sample", _macs(found))
    counts = dict(Counter(kind for kind, _ in found.in_integers).most_common())
    label = "In integers" if found.quantized else "Would be quantized"
    console.row(facts, label, console.counted(counts))
    if found.quantized:
        console.row(facts, "Integer-only", f"no, {found.not_integer_only}" if found.not_integer_only else "yes")
        console.row(facts, "Products", _MACHINES[found.exact])
        if found.recorded not in (None, found.exact):
            console.row(facts, "", f"(not, as its metadata say, {_MACHINES[str(found.recorded)]})")
    console.show(facts)


def _macs(found: Inspection) -> str:
    if found.macs is None:
        return "not known, for want of shapes"
    return f"{found.macs:,}" + " (dynamic dimensions count as 1)" * _is_dynamic(found)


def _is_dynamic(found: Inspection) -> bool:
    return any(not isinstance(size, int) for spec in found.inputs for size in spec.shape[1:])
