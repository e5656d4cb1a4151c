"""What is known of the small integer vectors that graphs compute from shapes: ``Shape -> Gather -> Concat``.

Each element is an int, the name of a dynamic dimension such as ``"N"``, or None where it is unknown. By ONNX's rule
equal names are equal sizes, so that ``Reshape(x, [N, -1])`` of an ``x`` with shape ``[N, 64, 1, 1]`` is
``Reshape(x, [0, -1])``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from qcomp import graph

Element = int | str | None
Elements = tuple[Element, ...]

_LONGEST = 64
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


class ShapeValues:
    """The known elements of scalars and vectors; `visit` the nodes of a graph in order."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Elements] = {}

    def visit(self, node: ir.Node) -> None:
        """Derive what the node yields from what its inputs hold."""
        rule = _RULES.get(node.op_type)
        if rule is None or not graph.is_op(node, node.op_type):
            return
        elements = rule(self, node)
        if elements is not None and len(elements) <= _LONGEST:
            self._known[node.outputs[0]] = elements

    def read(self, value: ir.Value | None) -> Elements | None:
        """The elements of a value, constants included; None where nothing is known."""
        if value is None or value in self._known:
            return None if value is None else self._known[value]
        tensor = graph.constant_tensor(value)
        if tensor is None or tensor.size > _LONGEST or len(tensor.shape) > 1 or tensor.dtype not in _INTEGERS:
            return None
        return tuple(int(e) for e in tensor.numpy().reshape(-1))

    def read_ints(self, value: ir.Value | None) -> list[int] | None:
        """The elements, where each is a number."""
        elements = self.read(value)
        ints = [e for e in elements or () if isinstance(e, int)]
        return ints if elements is not None and len(ints) == len(elements) else None


def dims(value: ir.Value | None) -> Elements | None:
    """The shape of a value as elements."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _shape(values: ShapeValues, node: ir.Node) -> Elements | None:
    found = dims(node.inputs[0])
    start, end = graph.attribute(node, "start", 0), graph.attribute(node, "end", None)
    return None if found is None else found[start:end]


def _gather(values: ShapeValues, node: ir.Node) -> Elements | None:
    data, indices = values.read(node.inputs[0]), values.read_ints(node.inputs[1])
    if data is None or indices is None or graph.rank(node.inputs[0]) != 1:
        return None
    return tuple(data[i] for i in indices) if all(-len(data) <= i < len(data) for i in indices) else None


def _slice(values: ShapeValues, node: ir.Node) -> Elements | None:
    data, bounds = values.read(node.inputs[0]), [values.read_ints(v) for v in node.inputs[1:3]]
    steps = values.read_ints(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
    numbers = [b[0] for b in (*bounds, steps) if b is not None and len(b) == 1]
    if data is None or graph.rank(node.inputs[0]) != 1 or len(numbers) != 3 or numbers[2] <= 0:
        return None
    return data[slice(*numbers)]


def _concat(values: ShapeValues, node: ir.Node) -> Elements | None:
    parts = [values.read(v) for v in node.inputs]
    known = [p for p in parts if p is not None]
    return sum(known, ()) if len(known) == len(parts) else None


def _same(values: ShapeValues, node: ir.Node) -> Elements | None:
    rank = graph.rank(node.outputs[0])
    return values.read(node.inputs[0]) if rank is not None and rank <= 1 else None


_RULES: dict[str, Callable[[ShapeValues, ir.Node], Elements | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    **dict.fromkeys(("Unsqueeze", "Squeeze", "Identity"), _same),
}


def static_target(data: Elements, target: Sequence[Element]) -> list[int] | None:
    """The constant shape that reshapes ``data`` as the computed ``target`` does; None where there is none.

    A dynamic dimension that stays in its place becomes 0, one other becomes -1.
    """
    if 0 in target:
        return None
    constant = [_kept(e, data[i] if i < len(data) else None) for i, e in enumerate(target)]
    unknown = [i for i, e in enumerate(constant) if e is None]
    if len(unknown) > (0 if -1 in constant else 1):
        return None
    return [-1 if e is None else e for e in constant]


def _kept(element: Element, dim: Element) -> int | None:
    if isinstance(element, int):
        return element
    return 0 if element is not None and element == dim else None
