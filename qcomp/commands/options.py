"""The options that several commands share: DATA and how it is read, and ``-v``."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from qcomp.errors import DataError, OptionError

if TYPE_CHECKING:
    from qcomp.calibration.data import InputSpec, Preprocess, Samples

Command = Callable[..., Any]


@dataclass
class Settings:
    """What the whole run shares: click's ``obj``.

    Args:
        verbose: whether ``-v`` is given.
    """

    verbose: bool = False


@dataclass(frozen=True)
class DataOptions:
    """DATA and how it is read, as given on the command line."""

    data: str | None = None
    samples: int | None = None
    batch: int | None = None
    threads: int = 1
    preprocess: str | None = None
    mean: str | None = None
    std: str | None = None
    scale: float | None = None
    size: str | None = None
    layout: str | None = None
    resize: str | None = None

    def __post_init__(self) -> None:
        """Raise an OptionError for counts that are too small."""
        for option, least in (("samples", 1), ("batch", 1), ("threads", 0)):
            value = getattr(self, option)
            if value is not None and value < least:
                raise OptionError(f"{value} is too few", where=f"--{option}", hint=f"give {least} or more")

    def arguments(self) -> list[str]:
        """DATA and the image options as they were given, for a command that reads the same samples."""
        images = ("preprocess", "mean", "std", "scale", "size", "layout", "resize")
        given = [(name, getattr(self, name)) for name in images if getattr(self, name) is not None]
        return ["--data", self.data or "DATA", *(part for name, value in given for part in (f"--{name}", str(value)))]

    def preprocessing(self) -> Preprocess | None:
        """How images become inputs; None where no option says so.

        Raises:
            OptionError: an unknown preset, or a value that cannot be read.
        """
        from dataclasses import replace

        from qcomp.calibration.data import Preprocess

        values: dict[str, Any] = {"mean": self.mean and _numbers(self.mean, "--mean"), "scale": self.scale}
        values |= {"std": self.std and _numbers(self.std, "--std")}
        shapes: dict[str, Any] = {"size": self.size and _size(self.size), "layout": self.layout, "resize": self.resize}
        given = {name: value for name, value in (values | shapes).items() if value is not None}
        if not given and self.preprocess is None:
            return None
        if self.preprocess is None and not given.keys() & values.keys():
            raise OptionError("says nothing of the values of pixels", where=f"--{', --'.join(given)}", hint=_PRESETS)
        base = Preprocess() if self.preprocess is None else Preprocess.preset(self.preprocess)
        return replace(base, **given)

    def open(self, inputs: list[InputSpec]) -> Samples:
        """The samples, for a model of these inputs.

        Raises:
            DataError: there is no DATA, or it does not fit.
        """
        from qcomp.calibration.data import open_data

        if self.data is None:
            raise DataError("no data", hint="give --data")
        return open_data(self.data, inputs, preprocess=self.preprocessing())


_PRESETS = "give --preprocess imagenet, tf, unit or raw"


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"cannot read {text!r}", where=option, hint="as in 0.485,0.456,0.406") from None


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() for part in parts):
        raise OptionError(f"cannot read {text!r}", where="--size", hint="height x width, as in 224x224")
    return int(parts[0]), int(parts[-1])


_DATA = "Samples of the inputs: .npz, .npy, or a folder of them or of images."
_DATA_OPTIONS = (
    click.option("--data", metavar="DATA", help=_DATA),
    click.option(
        "--samples", type=int, metavar="N", help="N at most; compile spreads them.  [default: 512 to compile, else all]"
    ),
    click.option("--batch", type=int, metavar="N", help="Samples a run.  [default: 4]"),
    click.option("--threads", type=int, metavar="N", default=1, show_default=True, help="Threads; 0: all cores."),
)
_IMAGE_OPTIONS = (
    click.option("--preprocess", metavar="NAME", help="Pixels to inputs: imagenet, tf (-1..1), unit (0..1), raw."),
    click.option("--mean", metavar="R,G,B", help="Images: (pixel * scale - mean) / std."),
    click.option("--std", metavar="R,G,B", help="As --mean."),
    click.option("--scale", type=float, metavar="S", help="As --mean, for pixels 0..255."),
    click.option("--size", metavar="HxW", help="Images: their size, where the model leaves it open."),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Images: the axes of the input."),
    click.option("--resize", type=click.Choice(["cover", "crop", "squash"]), help="Images: how they get their size."),
)
_NAMES = tuple(DataOptions.__dataclass_fields__)


def image_options(command: Command) -> Command:
    """Add the options of images, for `data_options` to gather."""
    return functools.reduce(lambda made, option: option(made), reversed(_IMAGE_OPTIONS), command)


def data_options(command: Command) -> Command:
    """Add the options of DATA; the command gets them and `image_options` as one argument, ``data``."""

    @functools.wraps(command)
    def gathered(*args: Any, **given: Any) -> Any:
        options = DataOptions(**{name: given.pop(name) for name in _NAMES})
        return command(*args, data=options, **given)

    return functools.reduce(lambda made, option: option(made), reversed(_DATA_OPTIONS), gathered)


class _Echo(logging.Handler):
    """Log records as lines on stderr; warnings say that they are."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(prefix + record.getMessage(), err=True)


def _set_up_logging(ctx: click.Context, _: click.Parameter, verbose: bool) -> None:
    ctx.ensure_object(Settings).verbose = verbose
    logger, handler = logging.getLogger("qcomp"), _Echo()
    before = logger.level

    def undo() -> None:
        logger.removeHandler(handler)
        logger.setLevel(before)

    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    ctx.call_on_close(undo)


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_set_up_logging,
    help="Say more, on stderr; tracebacks of bugs.",
)
