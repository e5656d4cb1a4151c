"""The way of channels through attention, where every channel of the values stays one of the result.

    V -> [Reshape to heads -> Transpose] -> MatMul(Softmax, .) -> [Transpose -> Reshape from heads] -> result

``P (V s) = (P V) s``. A shift would pass too, as each row of a Softmax sums to one, but those of a quantized one do
not: what they miss times the shift was measured to be a larger error than what the shift takes away.
"""

from __future__ import annotations

import onnx_ir as ir

from qcomp import graph

_HEADS = (0, 2, 1, 3)
"""The permutation between ``(samples, positions, heads, width)`` and ``(samples, heads, positions, width)``."""


def values_of(result: ir.Value) -> ir.Value | None:
    """The V whose channels, on the last axis, are those of the attention's result; None where it is none."""
    inner: ir.Value | None = result
    shape = None
    if graph.is_op(result.producer(), "Reshape"):
        shape, inner = _from_heads(result)
    product = inner.producer() if inner is not None else None
    if product is None or not graph.is_op(product, "MatMul") or not _weighs_by_softmax(product):
        return None
    values = product.inputs[1]
    if values is None or graph.only_user(values) is not product:
        return None
    if shape is not None:
        values = _to_heads(values, shape)
    last = _channels(result)
    alone = values is not None and _channels(values) == last is not None and graph.rank(values) == 3
    return values if alone else None


def _channels(value: ir.Value) -> int | None:
    return (graph.static_shape(value) or (None,))[-1]


def _weighs_by_softmax(product: ir.Node) -> bool:
    first, second = product.inputs
    softmax = first.producer() if first is not None else None
    rank = graph.rank(first)
    if softmax is None or rank is None or graph.rank(second) != rank or not graph.is_op(softmax, "Softmax"):
        return False
    return int(graph.attribute(softmax, "axis", -1)) % rank == rank - 1


def _from_heads(result: ir.Value) -> tuple[tuple[int, int] | None, ir.Value | None]:
    """Heads and width, and the product in heads, where the value joins them; None each where it does not."""
    source = _moved_from(result, "Reshape")
    product = _moved_from(source, "Transpose") if source is not None else None
    shape = graph.static_shape(source)
    if product is None or shape is None or len(shape) != 4 or graph.rank(result) != 3:
        return None, None
    heads, width = shape[2:]
    if heads is None or width is None or heads * width != _channels(result):
        return None, None
    return (heads, width), product


def _to_heads(value: ir.Value, heads: tuple[int, int]) -> ir.Value | None:
    """What a value in heads was before it was split into them."""
    split = _moved_from(value, "Transpose")
    source = _moved_from(split, "Reshape") if split is not None else None
    shape = graph.static_shape(split)
    return source if shape is not None and shape[2:] == heads and len(shape) == 4 else None


def _moved_from(value: ir.Value, kind: str) -> ir.Value | None:
    """What the Reshape, or the Transpose of heads, that gives this value alone reads; None where it is none."""
    node = value.producer()
    if node is None or not graph.is_op(node, kind):
        return None
    if kind == "Transpose" and tuple(graph.attribute(node, "perm", ())) != _HEADS:
        return None
    source = node.inputs[0]
    return source if source is not None and graph.only_user(source) is node else None
