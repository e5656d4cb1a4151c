"""The terminal: one rich console, plain tables, and a progress bar where somebody watches."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WIDE = 160
"""The width of output that goes to a file or a pipe."""


def console() -> Console:
    """The console of stdout, with the markup of its input switched off: names of operators may hold brackets."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(markup=False, highlight=False, emoji=False, width=width)


def table(*headings: str, numbers: Sequence[int] = (), title: str = "") -> Table:
    """An empty table without lines.

    Args:
        headings: one for each column.
        numbers: the columns that hold numbers, to the right.
        title: above it.
    """
    above = Text(title, "bold") if title else None
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title=above, title_justify="left")
    for index, heading in enumerate(headings):
        justify = "right" if index in numbers else "left"
        made.add_column(Text(heading, "dim"), justify=justify, overflow="fold", no_wrap=index in numbers)  # type: ignore[arg-type]
    return made


def row(target: Table, *cells: str) -> None:
    """Add a row of plain text; what would steer a terminal, in the names of a stranger's model, becomes ``?``."""
    target.add_row(*(Text("".join(c if c.isprintable() else "?" for c in cell)) for cell in cells))


def show(target: Table) -> None:
    """Print a table, without the spaces that fill its last column."""
    screen = console()
    with screen.capture() as captured:
        screen.print(target)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


@contextlib.contextmanager
def progress(label: str, *, shown: bool = True) -> Iterator[Callable[[int, int | None], None] | None]:
    """A progress bar on stderr that takes the samples done and their number; None where stderr is no terminal."""
    screen = Console(stderr=True)
    if not shown or not screen.is_terminal:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def counted(counts: dict[str, int]) -> str:
    """How many of each, in words: ``8 Conv, 2 Add``."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing"


def size(count: float) -> str:
    """Bytes, in units of 1000."""
    if count < 1000:
        return f"{count:.0f} B"
    units = ("kB", "MB", "GB")
    power = min(int(math.log10(count) / 3), len(units))
    return f"{count / 1000**power:.1f} {units[power - 1]}"


def decibels(ratio: float) -> str:
    """An SQNR; what did not change at all says so."""
    return "exact" if ratio == math.inf else f"{ratio:.1f} dB"


def percent(share: float) -> str:
    """A share of 1 as a percentage; only what is exactly all or nothing looks like it."""
    shown = f"{100 * share:.1f}"
    if shown == "100.0" and share < 1:
        shown = "99.9"
    return f"{shown.removesuffix('.0')} %"


def milliseconds(seconds: float) -> str:
    """A time with three digits."""
    return f"{1e3 * seconds:#.3g}".rstrip(".") + " ms" if seconds < 0.9995 else f"{1e3 * seconds:.0f} ms"
