"""A pass to derive test passes from."""

from __future__ import annotations

from dataclasses import dataclass

from qcomp.pipeline import Pass


@dataclass(frozen=True)
class Plain(Pass):
    """No options, changes nothing."""

    @classmethod
    def name(cls) -> str:
        return cls.__name__.lower()

    def run(self, model, stats):
        return False
