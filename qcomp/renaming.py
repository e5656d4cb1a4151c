"""New names for values that hold something else than before, so that nobody compares them with what had the name."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from qcomp import graph


def rename_between(
    first: Iterable[ir.Node], behind: Iterable[ir.Node], names: graph.Names, suffix: str
) -> list[ir.Value]:
    """Rename what the first nodes compute, and all that is made of it in front of the nodes behind.

    Args:
        first: nodes of the main graph.
        behind: nodes that read what is renamed, whose own results hold what they held.
        names: the pass's.
        suffix: ``_equalized`` makes ``x_equalized`` of ``x``.

    Returns:
        The renamed values; outputs of the graph keep their names, and what has the suffix already.
    """
    stops, seen = set(behind), dict[ir.Value, None]()
    stack = [v for node in first for v in node.outputs]
    while stack:
        value = stack.pop()
        if value in seen or value.is_graph_output():
            continue
        seen[value] = None
        stack += [v for user, _ in value.uses() if user not in stops for v in user.outputs]
    found = [value for value in seen if not str(value.name).endswith(suffix)]
    for value in found:
        value.name = names.fresh(f"{value.name}{suffix}")
    return found
