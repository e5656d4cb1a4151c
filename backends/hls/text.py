"""The texts of a project: Jinja2 templates as whole files, and names that can be written into any of them."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LONGEST = 80
"""Characters of a name in a comment."""


def sanitized(text: str) -> str:
    """A name out of a model, as it may stand in a comment of C++, tcl, make, Python or Markdown.

    Letters, digits and ``_ . / : -`` and blanks stay, everything else becomes ``_``: no line ends, no comment ends, no
    backslash or trigraph continues the line, and nothing is expanded.

    Args:
        text: of any length; 80 characters of it are kept.
    """
    return re.sub(r"[^A-Za-z0-9_./: -]", "_", text[:LONGEST])


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["comment"] = sanitized
    return environment


ENVIRONMENT = _environment()


def render(name: str, **values: object) -> str:
    """The text of a template.

    Args:
        name: of the file in ``templates/`` without its ``.j2``, for example ``Makefile``.
        values: everything the template names.

    Raises:
        jinja2.UndefinedError: if the template names a value that is not there.
    """
    return ENVIRONMENT.get_template(f"{name}.j2").render(**values)
