"""The command line: ``qcomp COMMAND``. Each command is a file of `qcomp.commands`, imported when it is asked for.

What a command raises becomes one line on stderr and an exit status: 2 for what the user can mend, 1 for a bug of
qcomp, 130 for an interruption.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any

import click

from qcomp.commands.options import Settings
from qcomp.errors import QcompError

COMMANDS = ("demo", "compile", "inspect", "compare", "bench", "run")
"""The files of `qcomp.commands` that are commands, in the order in which the help lists them."""


class Cli(click.Group):
    """The group of commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"qcomp.commands.{cmd_name}").command
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and exit."""
        settings = Settings()
        extra |= {"prog_name": "qcomp", "standalone_mode": False, "obj": settings}
        try:
            status = super().main(*args, **extra)
        except Exception as error:
            status = _report(error, settings.verbose)
        sys.exit(status if isinstance(status, int) else 0)


def _report(error: Exception, verbose: bool) -> int:
    """Print the error on stderr; give back the exit status."""
    if isinstance(error, click.Abort):
        _echo("interrupted")
        return 130
    if isinstance(error, click.ClickException):
        _echo(f"error: {_usage(error)}")
        return 2
    if isinstance(error, QcompError):
        _echo(f"error: {error}")
        return 2
    if isinstance(error, OSError) and error.filename:
        _echo(f"error: {error.filename}: {error.strerror}")
        return 2
    if verbose:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    hint = "please report it" if verbose else "run with -v for the traceback, and report it"
    _echo(f"internal error: {type(error).__name__}: {error} ({hint})")
    return 1


def _usage(error: click.ClickException) -> str:
    """The message of a wrong command line, with where to look it up."""
    ctx = getattr(error, "ctx", None)
    command = "qcomp" if ctx is None else ctx.command_path
    return f"{error.format_message().rstrip('.')} (see {command} --help)"


def _echo(line: str) -> None:
    click.echo(" ".join(line.split()), err=True)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from qcomp import installed

    click.echo(f"qcomp {installed.version()}")
    ctx.exit()


@click.command(cls=Cli, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Compile float ONNX models to quantized ones.

    Try it without a model or data of your own:

    \b
      qcomp demo

    Quantize a model with samples of its inputs, and see what that did:

    \b
      qcomp compile model.onnx -o model.int8.onnx --data samples.npz
      qcomp compare model.onnx model.int8.onnx --data samples.npz
      qcomp bench model.onnx model.int8.onnx
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """The console entry point."""
    cli()


if __name__ == "__main__":
    main()
