"""What a backend is: the passes it needs, and how the graph becomes files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir


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

    def emit(self, model: ir.Model, out: Path) -> list[Path]:
        """Write the artefact; give back the files written, the main one first.

        Raises:
            OutputError: the place cannot be written.
            UnsupportedError: an operator that it cannot lower.
        """
        raise NotImplementedError
