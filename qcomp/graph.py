"""The few helpers over onnx_ir that passes share: constants, edits, names, shapes and the check of structure.

Every helper is linear: onnx_ir's own ``CheckerPass`` is quadratic in the initializers, so structure is checked by a
walk of our own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from qcomp.errors import ModelError

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")

QUANTIZED = "_quantized"
DEQUANTIZED = "_dequantized"
"""Suffixes: the value ``x`` becomes ``x_quantized`` after its QuantizeLinear, ``x_dequantized`` after its DQ."""

_DEFAULT = {"ai.onnx": ""}


def is_op(node: ir.Node | None, *kinds: str, domain: str = "") -> bool:
    """Whether the node is one of these operators of the domain (the default one is ``""`` or ``"ai.onnx"``)."""
    return node is not None and node.op_type in kinds and _DEFAULT.get(node.domain, node.domain) == domain


def describe(node: ir.Node) -> str:
    """The node as an error names it: operator type and name, as Netron shows them."""
    return f"{node.op_type} {node.name!r}"


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer or Constant node's output; None where the value is not constant.

    The array may be a read-only view of a memory-mapped file.
    """
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """As `constant`, without loading it: shape and dtype of a lazy or external tensor cost nothing."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if is_op(node, "Constant") and node is not None:
        return ir.convenience.get_const_tensor(value)
    return None


def shape_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a constant, whose dimensions are all numbers."""
    return tuple(d for d in tensor.shape if isinstance(d, int))


def reading(tensor: ir.TensorProtocol, function: Callable[[Array], T]) -> T:
    """What a function makes of a tensor's array; a file that was mapped for it is unmapped again.

    The function must not give back a view of the array.
    """
    result = function(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return result


def contents(array: Array) -> Hashable:
    """A key that arrays of one dtype, shape and contents share; of few bytes, however large they are."""
    flat = _contiguous(array).reshape(-1).view(np.uint8)
    return array.dtype.str, array.shape, hashlib.sha256(flat.data).digest()


def scalar(value: ir.Value | None) -> float | None:
    """The only element of a constant; None where it is not constant or has several elements."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    return float(tensor.numpy().reshape(()))


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The attribute's value, or the default the caller takes from the operator's specification."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def only_user(value: ir.Value) -> ir.Node | None:
    """The single node that reads the value once, if it is no graph output and the node is no part of a subgraph."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    user = uses[0][0]
    return user if user.graph is value.graph else None


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, where known."""
    return None if value is None or value.shape is None else len(value.shape)


def static_shape(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape with None for dynamic dimensions; None where even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is known to be a float32 tensor."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def main_graph(node: ir.Node) -> ir.Graph:
    """The graph that holds the node.

    Raises:
        ModelError: the node is in no graph, or in a function.
    """
    if not isinstance(node.graph, ir.Graph):
        raise ModelError("the node is in no graph", where=describe(node))
    return node.graph


class Names:
    """Hands out value names that a graph does not use yet; build one a pass, in linear time."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = {v.name for v in all_values(graph)}
        self._next: dict[str, int] = {}

    def fresh(self, wanted: str) -> str:
        """The wanted name, or the first free one with a number behind it."""
        name, number = wanted, self._next.get(wanted, 1)
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        self._next[wanted] = number
        return name


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs, initializers and node outputs of the graph and its subgraphs."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield from node.outputs
        for sub in subgraphs(node):
            yield from sub.inputs
            yield from sub.initializers.values()


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of If, Loop, Scan and the like."""
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            yield attr.value
        elif attr.type == ir.AttributeType.GRAPHS:
            yield from attr.value


def initializer(graph: ir.Graph, names: Names, name: str, array: Array | ir.TensorProtocol) -> ir.Value:
    """Register a new initializer under a free name (onnx_ir silently replaces one whose name is taken)."""
    unique = names.fresh(name)
    tensor = ir.Tensor(_contiguous(array), name=unique) if isinstance(array, np.ndarray) else array
    value = ir.Value(
        name=unique, const_value=tensor, shape=ir.Shape(shape_of(tensor)), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value


def _contiguous(array: Array) -> Array:
    """In memory as a tensor needs it; unlike NumPy's own function it leaves a scalar a scalar."""
    return np.ascontiguousarray(array).reshape(array.shape)


def redirect(old: ir.Value, new: ir.Value, *, keep: Iterable[ir.Node] = ()) -> None:
    """Let every reader of ``old`` read ``new`` instead, but for the nodes in ``keep``; graph outputs stay."""
    kept = set(map(id, keep))
    for user, index in tuple(old.uses()):
        if id(user) not in kept:
            user.replace_input_with(index, new)


def set_constant(node: ir.Node, index: int, array: Array, names: Names, role: str) -> None:
    """Let an input of a node of the main graph read this array, and no other reader of the old one see it.

    An initializer of the node's own keeps its name; a shared one, or none, gives way to a new one.

    Args:
        role: names a new initializer, behind the name of the node's output: ``"weight"``.
    """
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.Tensor(_contiguous(array), name=old.name)
        old.shape, old.type = ir.Shape(array.shape), ir.TensorType(old.const_value.dtype)
        return
    wanted = str(old.name) if old is not None else f"{node.outputs[0].name}_{role}"
    node.replace_input_with(index, initializer(main_graph(node), names, wanted, array))


def detach(nodes: Iterable[ir.Node]) -> None:
    """Let nodes that `remove` will take out read nothing more: uses tell the truth, unread initializers go."""
    for node in nodes:
        for index, value in enumerate(node.inputs):
            node.replace_input_with(index, None)
            if value is not None:
                drop_unread(value)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` stand for ``old`` everywhere, graph outputs and the name included.

    ``old`` must be removed by the caller; ``new`` keeps ``old``'s name and metadata, so that it is found.
    """
    name, shape, kind = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}_removed"
    new.metadata_props.update(old.metadata_props)
    new.name, new.shape, new.type = name, shape or new.shape, kind or new.type


def remove(graph: ir.Graph, nodes: Iterable[ir.Node]) -> None:
    """Remove nodes in one batch (each call of onnx_ir's costs the number of graph outputs), and unread initializers."""
    gone = list(nodes)
    inputs = {id(v): v for node in gone for v in node.inputs if v is not None}
    if gone:
        graph.remove(gone, safe=True)
    for value in inputs.values():
        drop_unread(value)


def drop_unread(value: ir.Value) -> None:
    """Remove an initializer of the main graph that nothing reads any more."""
    graph = value.graph
    if value.is_initializer() and isinstance(graph, ir.Graph) and not value.uses() and not value.is_graph_output():
        graph.initializers.pop(str(value.name))


def verify(model: ir.Model) -> None:
    """Check the structure: names unique, every input known before its use, initializers registered, with a tensor.

    Raises:
        ModelError: names the operator and the value.
    """
    _Scope().check(model.graph)


class _Scope:
    """What is defined so far, in a graph and those around it; one set for all of them, for linear cost."""

    def __init__(self) -> None:
        self._defined: list[tuple[int, str]] = []
        self._known = set[int]()
        self._names = set[str]()

    def check(self, graph: ir.Graph) -> None:
        """Walk through a graph; forget its values behind it."""
        outside = len(self._defined)
        for value in graph.inputs:
            self._define(value, "graph input")
        for name, value in graph.initializers.items():
            self._check_initializer(name, value)
        for node in graph:
            self._check_node(node)
        for value in graph.outputs:
            if id(value) not in self._known:
                raise ModelError(f"nothing defines the output {value.name!r}")
        self._known.difference_update(key for key, _ in self._defined[outside:])
        self._names.difference_update(name for _, name in self._defined[outside:])
        del self._defined[outside:]

    def _define(self, value: ir.Value, where: str) -> None:
        if not value.name or value.name in self._names:
            raise ModelError(f"the value {value.name!r} is defined twice or has no name", where=where)
        self._defined.append((id(value), value.name))
        self._known.add(id(value))
        self._names.add(value.name)

    def _check_initializer(self, name: str, value: ir.Value) -> None:
        if value.name != name:
            raise ModelError(f"the initializer {name!r} is named {value.name!r}")
        if value.const_value is None:
            raise ModelError(f"the initializer {name!r} has no tensor")
        if id(value) not in self._known:
            self._define(value, "initializer")

    def _check_node(self, node: ir.Node) -> None:
        for read in node.inputs:
            if read is not None and id(read) not in self._known:
                raise ModelError(f"reads {read.name!r}, which nothing before it defines", where=describe(node))
        for sub in subgraphs(node):
            self.check(sub)
        for value in node.outputs:
            if value.name:
                self._define(value, describe(node))
