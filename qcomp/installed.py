"""What is installed."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Of qcomp; ``(not installed)`` where it runs from a checkout that is not installed."""
    try:
        return metadata.version("qcomp")
    except metadata.PackageNotFoundError:
        return "(not installed)"
