"""Fold what is constant and remove what does nothing, so that later passes meet plain operators.

- constants: operators with constant inputs, shapes that are static, If with a constant condition, Identity, Dropout,
  Cast and Reshape that change nothing (onnxscript's constant folding, within limits of size),
- ``Reshape(x, Concat(Shape(x)[0], [64]))`` becomes ``Reshape(x, [0, 64])``,
- ``auto_pad`` becomes explicit pads: ``total = max((ceil(n / stride) - 1) * stride + (k - 1) * dilation + 1 - n, 0)``,
- Max or Min with a number becomes Clip, which quantized ranges absorb,
- equal operators on equal inputs become one; what nothing reads goes.

No weights are loaded for it, and no output changes its name.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants

from qcomp import graph, shapes
from qcomp.calibration.observers import Statistics
from qcomp.pipeline import Pass
from qcomp.shape_values import ShapeValues, dims, static_target

logger = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20
"""Inputs above this are weights: they stay where they are."""
_GROWN_BYTES = 1 << 16
"""A folded constant is no larger than this, or than four times the inputs it comes from."""
_ROUNDS = 4
"""Constants make shapes static, and static shapes are constants: how often at most."""
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_KEPT = (*_RANDOM, "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_GROWING = ("ConstantOfShape", "EyeLike", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile")


@dataclass(frozen=True)
class CleanUp(Pass):
    """Fold constants, make shapes and pads explicit, and remove Identity, Dropout, duplicates and unread operators."""

    tolerance: ClassVar[float | None] = 1e-5

    def run(self, model: ir.Model, stats: Statistics) -> bool:
        before = _fingerprint(model)
        for _ in range(_ROUNDS):
            start = _fingerprint(model)
            self._round(model)
            if _fingerprint(model) == start:
                break
            shapes.infer_shapes(model)
        return _fingerprint(model) != before

    def _round(self, model: ir.Model) -> None:
        _transpose_weights(model.graph)
        _fold(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _resolve_reshapes(model.graph)
        for node in model.graph.all_nodes():
            _resolve_auto_pad(node)
        _remove_identities(model.graph)
        _clip_by_numbers(model.graph)
        _merge_equal(model.graph)
        common.RemoveUnusedNodesPass()(model)


def _fingerprint(model: ir.Model) -> list[Hashable]:
    """What a change would show in: every node with its inputs, outputs and attributes, and the outputs' names."""
    found: list[Hashable] = [(v, v.name) for v in model.graph.outputs]
    for node in model.graph.all_nodes():
        attributes = tuple((a.name, id(a)) for a in node.attributes.values())
        found.append((node, tuple(node.inputs), tuple(o.name for o in node.outputs), attributes))
    return [*found, *model.graph.initializers]


def _fold(model: ir.Model) -> None:
    """Fold constants by onnxscript, which gives up on sequences it does not understand; what is folded stays."""
    try:
        fold_constants(model, should_fold=_should_fold, output_size_limit=_MOST_BYTES)
    except RuntimeError as error:
        logger.info("constant folding ends early: %s", error)
        common.NameFixPass()(model)
    for value in graph.all_values(model.graph):
        value.metadata_props.pop("pkg.onnxscript.optimizer.folded_from", None)


def _should_fold(node: ir.Node) -> bool:
    """Whether to compute a node whose inputs are all constant."""
    if not graph.is_op(node, node.op_type) or graph.is_op(node, *_KEPT):
        return False
    if len(node.outputs) != 1 or not isinstance(node.outputs[0].type, (ir.TensorType, type(None))):
        return False
    read = sum(v.const_value.nbytes for v in node.inputs if v is not None and v.const_value is not None)
    result = node.outputs[0]
    shape = graph.static_shape(result)
    if shape is None or None in shape or result.dtype is None:
        return read <= _GROWN_BYTES and not graph.is_op(node, *_GROWING)
    written = int(np.prod([d or 0 for d in shape])) * result.dtype.itemsize
    return read <= _MOST_BYTES and written <= max(4 * read, _GROWN_BYTES)


def _transpose_weights(main: ir.Graph) -> None:
    """Transposes of weights too big to fold now are computed when the weights are read."""
    names, gone = graph.Names(main), []
    for node in main:
        tensor = graph.constant_tensor(node.inputs[0]) if graph.is_op(node, "Transpose") else None
        result = node.outputs[0]
        if tensor is None or tensor.nbytes <= _MOST_BYTES or result.is_graph_output() or not result.uses():
            continue
        perm = list(graph.attribute(node, "perm", range(len(tensor.shape))[::-1]))
        lazy = _lazy_transpose(tensor, perm, names.fresh(f"{result.name}_transposed"))
        graph.redirect(result, graph.initializer(main, names, str(lazy.name), lazy))
        gone.append(node)
    graph.remove(main, gone)


def _lazy_transpose(tensor: ir.TensorProtocol, perm: list[int], name: str) -> ir.LazyTensor:
    sizes = tensor.shape.numpy()
    shape = ir.Shape([sizes[p] for p in perm])

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().transpose(perm)), dtype=tensor.dtype, name=name)

    return ir.LazyTensor(compute, tensor.dtype, shape, name=name)


def _resolve_reshapes(main: ir.Graph) -> None:
    """Give Reshape a constant shape where the computed one only passes dynamic dimensions on."""
    names, values = graph.Names(main), ShapeValues()
    for node in main:
        values.visit(node)
        if not graph.is_op(node, "Reshape") or graph.constant_tensor(node.inputs[1]) is not None:
            continue
        target, data = values.read(node.inputs[1]), dims(node.inputs[0])
        constant = static_target(data, target) if target is not None and data is not None else None
        if constant is None:
            logger.info("%s: its shape stays computed", graph.describe(node))
            continue
        array = np.array(constant, dtype=np.int64)
        node.replace_input_with(1, graph.initializer(main, names, f"{node.outputs[0].name}_shape", array))
        node.attributes.pop("allowzero", None)


def _resolve_auto_pad(node: ir.Node) -> None:
    """Write the pads that ``auto_pad`` stands for; the last of an odd number of them goes where it says."""
    mode = graph.attribute(node, "auto_pad", "NOTSET")
    if not graph.is_op(node, "Conv", "AveragePool", "MaxPool", "LpPool") or "auto_pad" not in node.attributes:
        return
    totals = [] if mode == "NOTSET" else _total_pads(node, mode)
    if totals is None or graph.attribute(node, "ceil_mode", 0):
        logger.info("%s: its auto_pad stays: its size is dynamic, or rounded up", graph.describe(node))
        return
    node.attributes.pop("auto_pad")
    if totals:
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _total_pads(node: ir.Node, mode: str) -> list[int] | None:
    """How many zeros each spatial axis gets in all."""
    size = graph.static_shape(node.inputs[0])
    kernel = graph.attribute(node, "kernel_shape", None)
    if kernel is None and node.op_type == "Conv":
        weight = graph.static_shape(node.inputs[1])
        kernel = weight[2:] if weight is not None else None
    if kernel is None or None in kernel:
        return None
    if mode == "VALID":
        return [0] * len(kernel)
    if size is None or None in size[2:]:
        return None
    strides = graph.attribute(node, "strides", [1] * len(kernel))
    dilations = graph.attribute(node, "dilations", [1] * len(kernel))
    spatial = [n or 0 for n in size[2:]]
    return [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(spatial, kernel, strides, dilations, strict=True)
    ]


def _graphs(main: ir.Graph) -> Iterator[ir.Graph]:
    yield main
    for node in main.all_nodes():
        yield from graph.subgraphs(node)


def _remove_identities(main: ir.Graph) -> None:
    """Remove each Identity but one between an input or another output of a graph and an output."""
    for home in _graphs(main):
        gone = [node for node in home if graph.is_op(node, "Identity") and _bypass(node)]
        graph.remove(home, gone)


def _bypass(node: ir.Node) -> bool:
    data, result = node.inputs[0], node.outputs[0]
    if data is None:
        return False
    if not result.is_graph_output():
        graph.redirect(result, data)
        return True
    producer = data.producer()
    if producer is None or producer.graph is not node.graph or data.is_graph_output():
        return False
    graph.take_over(result, data)
    return True


def _clip_by_numbers(main: ir.Graph) -> None:
    """Write Max and Min of a float32 activation and one number as Clip."""
    names = graph.Names(main)
    for node in main:
        found = _number_and_data(node) if graph.is_op(node, "Max", "Min") and len(node.inputs) == 2 else None
        if found is None:
            continue
        number, data = found
        bound = graph.initializer(main, names, f"{node.outputs[0].name}_bound", np.asarray(number, np.float32))
        inputs = [data, bound] if node.op_type == "Max" else [data, None, bound]
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        node.op_type = "Clip"


def _number_and_data(node: ir.Node) -> tuple[float, ir.Value] | None:
    """The number among two inputs and the other one, where that gives the result its shape."""
    for value, data in (tuple(node.inputs), tuple(reversed(node.inputs))):
        number, rank = graph.scalar(value), graph.rank(value)
        if number is None or data is None or np.isnan(number) or not graph.is_float(node.outputs[0]):
            continue
        if graph.constant_tensor(data) is None and rank is not None and rank <= (graph.rank(data) or 0):
            return number, data
    return None


def _merge_equal(main: ir.Graph) -> None:
    """Let one of several equal operators on equal inputs serve all their readers."""
    first: dict[Hashable, ir.Node] = {}
    gone = []
    for node in main:
        key = None if any(o.is_graph_output() for o in node.outputs) else _key(node)
        kept = node if key is None else first.setdefault(key, node)
        if kept is not node:
            for old, new in zip(node.outputs, kept.outputs, strict=True):
                graph.redirect(old, new)
            graph.detach([node])
            gone.append(node)
    graph.remove(main, gone)


def _key(node: ir.Node) -> Hashable:
    """What is equal for equal operators; None for one that is not to be merged."""
    if not graph.is_op(node, node.op_type) or graph.is_op(node, *_KEPT, "Dropout") or any(graph.subgraphs(node)):
        return None
    attributes = sorted((name, _attribute_key(attr)) for name, attr in node.attributes.items())
    names = tuple(bool(o.name) for o in node.outputs)
    return (node.op_type, names, tuple(_input_key(v) for v in node.inputs), tuple(attributes))


def _attribute_key(attr: ir.Attr) -> bytes:
    return bytes(ir.to_proto(attr).SerializeToString(deterministic=True))


def _input_key(value: ir.Value | None) -> Any:
    """The value itself, or the content of a small constant."""
    tensor = graph.constant_tensor(value)
    if tensor is None or tensor.size > 64 or tensor.dtype == ir.DataType.STRING:
        return id(value)
    return (tensor.dtype.name, tuple(tensor.shape), tensor.tobytes())
