"""What a backend is: the passes it needs, and how the graph becomes files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from qcomp import files
from qcomp.runtime import Feeds, Session


class Runner(Session, Protocol):
    """An artefact that runs."""

    model: ir.Model
    """The integer graph that it was made of, with its float ends."""


@dataclass(frozen=True)
class Backend:
    """A target. Its fields are its options, as in ``--to 'name{key=value}'``."""

    @classmethod
    def name(cls) -> str:
        """The name on the command line: the file's or folder's."""
        return cls.__module__.removeprefix("qcomp.backends.").split(".")[0].replace("_", "-")

    @property
    def recipe(self) -> str:
        """The line of passes it needs after those of the ``-O`` level."""
        return ""

    @property
    def settings(self) -> dict[str, Any]:
        """Options it sets in the passes before its own, wherever a pass has them."""
        return {}

    @property
    def takes_integers_only(self) -> bool:
        """Whether it refuses operators in float; then every operator with an integer form runs in integers."""
        return False

    def check_place(self, out: Path, others: Sequence[str | os.PathLike[str] | None] = ()) -> None:
        """Fail early where the artefact cannot be written.

        Args:
            others: files that are read or written too.

        Raises:
            OutputError: says why.
        """
        files.check_writable(out, others=others)

    @classmethod
    def opened(cls, path: Path, *, integers: bool = False) -> Runner | None:
        """What runs an artefact that is no ONNX file; None where the path is no artefact of this backend.

        Args:
            integers: integers in and out, without the float ends.

        Raises:
            ModelError: the artefact is damaged.
        """
        return None

    def emit(self, model: ir.Model, out: Path, feeds: Sequence[Feeds] = ()) -> list[Path]:
        """Write the artefact; give back the files written, the main one first.

        Args:
            feeds: a few samples, for artefacts that bring their own test.

        Raises:
            OutputError: the place cannot be written.
            UnsupportedError: an operator that it cannot lower.
        """
        raise NotImplementedError
