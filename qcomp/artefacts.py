"""Artefacts that are no ONNX files: which backend made them, and what runs them."""

from __future__ import annotations

from pathlib import Path

from qcomp import registry
from qcomp.backend import Runner


def opened(path: str | Path, *, integers: bool = False) -> Runner | None:
    """What runs an artefact of one of the backends; None for everything else, ONNX files among it.

    Args:
        integers: integers in and out, without the float ends.

    Raises:
        ModelError: the artefact is damaged.
    """
    place = Path(path)
    if place.suffix == ".onnx" or not place.exists():
        return None
    found = (registry.find("backends", name).opened(place, integers=integers) for name in registry.names("backends"))
    return next((runner for runner in found if runner is not None), None)
