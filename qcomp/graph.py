"""The few helpers over onnx_ir that passes share: constants, edits, names, shapes and the check of structure.

Every helper is linear: onnx_ir's own ``CheckerPass`` and ``ShapeInferencePass`` are quadratic in the initializers,
so structure is checked by a walk of our own and shapes are inferred by onnx on a copy without big tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from qcomp.errors import ModelError

Array = np.ndarray[Any, np.dtype[Any]]

QUANTIZED = "_quantized"
DEQUANTIZED = "_dequantized"
"""Suffixes: the value ``x`` becomes ``x_quantized`` after its QuantizeLinear, ``x_dequantized`` after its DQ."""

_SMALL_BYTES = 1024
"""Tensors up to this size travel with a model to onnx's C++ functions: shapes, axes, scales."""


def is_op(node: ir.Node | None, *kinds: str, domain: str = "") -> bool:
    """Whether the node is one of these operators of the domain (the default one is ``""`` or ``"ai.onnx"``)."""
    return node is not None and node.op_type in kinds and node.domain.replace("ai.onnx", "") == domain


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


def reading(tensor: ir.TensorProtocol, function: Callable[[Array], Array]) -> Array:
    """What a function makes of a tensor's array; a file that was mapped for it is unmapped again.

    The function must not give back a view of the array.
    """
    result = function(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return result


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
    """The single node that reads the value once, if it is no graph output."""
    uses = tuple(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


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
    return value is not None and value.dtype == ir.DataType.FLOAT


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

    def fresh(self, wanted: str) -> str:
        """The wanted name, or the first free one with a number behind it."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
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
    tensor = (
        ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=unique)
        if isinstance(array, np.ndarray)
        else array
    )
    value = ir.Value(
        name=unique, const_value=tensor, shape=ir.Shape(shape_of(tensor)), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value


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
        old.const_value = ir.Tensor(np.ascontiguousarray(array), name=old.name)
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

    ``old`` must be removed by the caller; ``new`` keeps ``old``'s name, so that outputs and statistics are found.
    """
    name, shape, kind = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}_removed"
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
    """Check the structure: names unique, every input known before its use, initializers registered.

    Raises:
        ModelError: names the operator and the value.
    """
    _verify_graph(model.graph, set())


def _verify_graph(graph: ir.Graph, outer: set[int]) -> None:
    known, names = set(outer), set[str]()

    def define(value: ir.Value, where: str) -> None:
        if not value.name or value.name in names:
            raise ModelError(f"the value {value.name!r} is defined twice or has no name", where=where)
        names.add(value.name)
        known.add(id(value))

    for value in graph.inputs:
        define(value, "graph input")
    for name, value in graph.initializers.items():
        if value.name != name:
            raise ModelError(f"the initializer {name!r} is named {value.name!r}")
        if id(value) not in known:
            define(value, "initializer")
    for node in graph:
        for read in node.inputs:
            if read is not None and id(read) not in known:
                raise ModelError(f"reads {read.name!r}, which nothing before it defines", where=describe(node))
        for sub in subgraphs(node):
            _verify_graph(sub, known)
        for value in node.outputs:
            if value.name:
                define(value, describe(node))
    for value in graph.outputs:
        if id(value) not in known:
            raise ModelError(f"nothing defines the output {value.name!r}")


def call_onnx(model: ir.Model, function: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """Run one of onnx's C++ functions on a copy without big tensors (protobuf ends at 2 GB).

    Big initializers travel as graph inputs; the model itself is unchanged afterwards.
    """
    graph = model.graph
    big = [v for v in graph.initializers.values() if v.const_value is not None and v.const_value.nbytes > _SMALL_BYTES]
    as_inputs = [v for v in big if not v.is_graph_input()]
    tensors = [v.const_value for v in big]
    count = len(graph.inputs)
    for value in big:
        graph.initializers.pop(str(value.name))
        value.const_value = None
    graph.inputs.extend(as_inputs)
    try:
        return function(ir.to_proto(model))
    finally:
        while len(graph.inputs) > count:
            graph.inputs.pop()  # `del inputs[count:]` would leave the values marked as inputs
        for value, tensor in zip(big, tensors, strict=True):
            value.const_value = tensor
            graph.register_initializer(value)


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and types that onnx can infer, in place."""
    infer = functools.partial(onnx.shape_inference.infer_shapes, data_prop=True)
    inferred = call_onnx(model, infer)
    values = {v.name: v for v in all_values(model.graph)}
    for info in inferred.graph.value_info:
        value = values.get(info.name)
        if value is not None and info.type.HasField("tensor_type"):
            _merge_type(value, info)
    for output, info in zip(model.graph.outputs, inferred.graph.output, strict=True):
        _merge_type(output, info)


def _merge_type(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    tensor = info.type.tensor_type
    if value.dtype is None and tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if not tensor.HasField("shape"):
        return
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    old = value.shape
    if old is None or len(old) != len(dims):
        value.shape = ir.Shape(dims)
    else:
        value.shape = ir.Shape([o if isinstance(o, int) else d for o, d in zip(old, dims, strict=True)])
