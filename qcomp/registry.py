"""Find passes and backends by name: a file's name is its name, and it is imported only when asked for."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from qcomp.errors import unknown

SINGULAR = {"passes": "pass", "backends": "backend"}
KINDS = {"passes": "qcomp.pipeline.Pass", "backends": "qcomp.backend.Backend"}


@cache
def names(kind: str) -> tuple[str, ...]:
    """The names of every pass or backend, sorted: the files and folders of ``qcomp/<kind>``.

    Args:
        kind: ``"passes"`` or ``"backends"``.
    """
    folder = Path(__file__).parent / kind
    modules = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return tuple(sorted(name.replace("_", "-") for name in modules if not name.startswith("_")))


def find(kind: str, name: str) -> type[Any]:
    """The class that the file of that name defines.

    Raises:
        OptionError: no file of that name; the error lists the nearest and all names.
    """
    known = names(kind)
    canonical = name.replace("_", "-")
    if canonical not in known:
        raise unknown(SINGULAR[kind], name, known)
    module = importlib.import_module(f"qcomp.{kind}.{canonical.replace('-', '_')}")
    base_module, base_name = KINDS[kind].rsplit(".", 1)
    base = getattr(importlib.import_module(base_module), base_name)
    return next(
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, base) and member.__module__ == module.__name__
    )
