"""One tree of errors: each says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QcompError(Exception):
    """Base of every error that qcomp raises for its user.

    Args:
        what: what is wrong, one sentence without a full stop.
        where: the file, option, or operator (type and name, as Netron shows them).
        hint: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{hint}"


class ModelError(QcompError):
    """The model cannot be read, or is not what qcomp compiles."""


class DataError(QcompError):
    """The samples or labels do not fit the model, or cannot be read."""


class OptionError(QcompError):
    """An unknown or impossible option, pass or backend."""


class OutputError(QcompError):
    """The result cannot be written."""


class CalibrationError(QcompError):
    """The statistics of a value are not finite, or cannot be collected."""


class UnsupportedError(QcompError):
    """An operator that a backend cannot lower."""


class PassError(QcompError):
    """A pass broke its contract: an invalid graph, or outputs that moved further than its tolerance."""


def unknown(what: str, name: str, known: Iterable[str], *, where: str = "") -> OptionError:
    """The error for a name that is not among the known ones, with the nearest one in its hint."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return OptionError(f"unknown {what} {name!r}", where=where, hint=f"{guess}known: {', '.join(names)}")


def first_line(error: BaseException) -> str:
    """What a library's error says, in the length that fits into one of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
