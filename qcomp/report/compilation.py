"""What `qcomp compile` prints: the result, what stayed in float and why, warnings, and how to run it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from qcomp.report import advice, console
from qcomp.report.summary import FloatOperator, Report


def show(report: Report, *, name: str, bound: float | None = None, every: bool = False) -> None:
    """Print the summary.

    Args:
        report: of the compilation.
        name: of the model.
        bound: of the guard, None without one.
        every: list every operator that stayed in float.
    """
    total = sum(report.quantized.values())
    with_data = f" with {report.samples} samples" if report.samples else ""
    click.echo(f"Compiled {name} in {report.seconds:.1f} s{with_data}: {total} operators quantized\n")
    console.show(_facts(report))
    if report.in_float:
        click.echo()
        show_in_float(report.in_float, "Stayed in float", every=every)
    _show_warnings(report, bound)
    for note in report.notes:
        click.echo(f"\nnote: {note}")


def _facts(report: Report) -> Table:
    facts = console.table("", "")
    facts.show_header = False
    label = "Integer weights" if advice.weights_only(report) else "In integers"
    console.row(facts, label, console.counted(report.quantized))
    console.row(facts, "Share of MACs", console.percent(report.macs_quantized))
    console.row(facts, "Weights", sizes(report.bytes_before, report.bytes_after))
    console.row(facts, "Output SQNR", _error(report))
    if report.error.kept:
        console.row(facts, "Kept by --guard", _first(report.error.kept, 3))
    console.row(facts, "Written", ", ".join(report.files))
    return facts


def sizes(before: int, after: int) -> str:
    """Both sizes and their ratio."""
    ratio = f" ({before / after:.1f} times smaller)" if before > after > 0 else ""
    return f"{console.size(before)} -> {console.size(after)}{ratio}"


def _error(report: Report) -> str:
    if not report.error.sqnr:
        return "not measured: no --data"
    worst = sorted(report.error.sqnr.items(), key=lambda item: item[1])
    ratios = [f"{name} {console.decibels(ratio)}" for name, ratio in worst]
    return f"{_first(ratios, 4)}, on {report.error.samples} samples"


def _first(items: Sequence[str], count: int) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more


def show_in_float(operators: Sequence[FloatOperator], title: str, *, every: bool = False) -> None:
    """Print the operators that stay in float: their types by reason, or each of them."""
    if every:
        listed = console.table("Operator", "Name", "Why", title=title)
        for operator in operators:
            console.row(listed, operator.kind, operator.name, operator.reason)
    else:
        listed = console.table("Operators", "Why", title=title)
        for reason, kinds in by_reason(operators):
            console.row(listed, console.counted(dict(kinds.most_common())), reason)
    console.show(listed)


def by_reason(operators: Sequence[FloatOperator]) -> list[tuple[str, Counter[str]]]:
    """How many operators of each type stayed in float for each reason, the most frequent reason first."""
    reasons: dict[str, Counter[str]] = {}
    for operator in operators:
        reasons.setdefault(operator.reason, Counter())[operator.kind] += 1
    return sorted(reasons.items(), key=lambda item: -item[1].total())


def _show_warnings(report: Report, bound: float | None) -> None:
    found = advice.warnings(report, bound)
    for warning in found:
        click.secho(f"\nwarning: {warning}", fg="yellow")
    if not found or report.error.least is None:
        return
    if report.error.worst:
        worst = console.table("Layer", "Outputs if it alone were quantized", numbers=[1])
        for name, ratio in report.error.worst:
            console.row(worst, name, console.decibels(ratio))
        console.show(worst)
    if report.quantized:
        click.echo("\nWhat may help:")
        for remedy in advice.remedies(report, bound):
            click.echo(f"  {remedy}")


def show_use(out: Path, inputs: Sequence[str], data: Sequence[str]) -> None:
    """Print how to run the result, to be copied: lines are never broken."""
    feeds = ", ".join(f"{name!r}: ..." for name in inputs)
    command = ["qcomp", "run", str(out), *data, "-o", "outputs.npz"]
    click.echo(f"\nRun it:\n  {shlex.join(command)}\nor in Python:")
    click.echo("  import onnxruntime")
    click.echo(f"  session = onnxruntime.InferenceSession({str(out)!r})")
    click.echo(f"  outputs = session.run(None, {{{feeds}}})")
