"""The ends of a quantized model: the scales of its inputs and outputs, and the model without the float ends.

With ``real = scale * (integer - zero_point)``, the integers of a sample are
``clip(round(sample / scale) + zero_point, 0, 255)`` for uint8, halves rounded to even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcomp import graph, shapes
from qcomp.errors import ModelError
from qcomp.graph import Array, Names
from qcomp.quantization import qtype
from qcomp.quantization.qparams import QParams

_FLOATS_HINT = "run it on floats, without --integer-input"


@dataclass(frozen=True)
class Grid:
    """How the integers of an input or output stand for real numbers.

    Args:
        scale: the step, per tensor.
        zero_point: the integer that stands for 0.
        dtype: of the integers.
    """

    scale: np.float32
    zero_point: int
    dtype: str

    def integers(self, real: Array) -> Array:
        """As QuantizeLinear makes them of float32."""
        return self._params.quantize(np.asarray(real))

    def real(self, integers: Array) -> Array:
        """As DequantizeLinear makes them, float32."""
        return self._params.dequantize(integers)

    @property
    def _params(self) -> QParams:
        return QParams(qtype.parse(self.dtype, ""), np.asarray(self.scale), np.asarray(self.zero_point, self.dtype))


def check_scales(model: ir.Model) -> None:
    """Refuse a model whose inputs or outputs have scales that make no sense.

    Raises:
        ModelError: names the operator.
    """
    grids(model)


def grids(model: ir.Model) -> dict[str, Grid]:
    """The grids of the inputs and outputs that have one scale for the tensor, by name.

    Raises:
        ModelError: a scale is not positive, or not finite.
    """
    found = {}
    for value in (*model.graph.inputs, *model.graph.outputs):
        node = _quantizer(value) if value.is_graph_input() else _dequantizer(value)
        grid = None if node is None else grid_of(node)
        if grid is not None:
            found[str(value.name)] = grid
    return found


def grid_of(node: ir.Node) -> Grid | None:
    """The grid of a QuantizeLinear or DequantizeLinear."""
    scale, dtype = graph.constant_tensor(node.inputs[1]), _integers(node)
    zero_point = 0.0 if len(node.inputs) < 3 else graph.scalar(node.inputs[2])
    if scale is None or scale.size != 1 or zero_point is None or dtype is None:
        return None
    step = np.float32(scale.numpy().reshape(()))
    if not 0 < step < np.inf:
        what = f"its scale {scale.name!r} is {step}, and must be a positive number"
        raise ModelError(what, where=graph.describe(node), hint="the file is damaged: make it again")
    return Grid(step, int(zero_point), str(dtype.numpy()))


def strip(model: ir.Model) -> ir.Model:
    """The model without its outer QuantizeLinear and DequantizeLinear: integers go in and come out.

    Inputs and outputs keep their names, order and shapes. Inputs that are no floats stay as they are, and so do
    outputs that no DequantizeLinear makes.

    Args:
        model: stays unchanged.

    Raises:
        ModelError: a float input is read by something else than one QuantizeLinear, or there is nothing to strip.
    """
    copy = model.clone()
    shapes.infer_shapes(copy)
    names = Names(copy.graph)
    ends = [v for v in copy.graph.inputs if not v.is_initializer() and _is_float(v)]
    made = [(i, node) for i, v in enumerate(copy.graph.outputs) if (node := _dequantizer(v)) is not None]
    if not ends and not made:
        what = "no QuantizeLinear behind its inputs, no DequantizeLinear before its outputs: nothing to leave out"
        raise ModelError(what, where="the model", hint=_FLOATS_HINT)
    for value in ends:
        _strip_input(copy.graph, value, names)
    for index, node in made:
        _strip_output(copy.graph, index, node, names)
    graph.verify(copy)
    return copy


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _integers(node: ir.Node) -> ir.DataType | None:
    """The type of the integers of a QuantizeLinear or DequantizeLinear; None where it is not known."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return node.inputs[2].dtype
    if graph.is_op(node, "DequantizeLinear"):
        return None if node.inputs[0] is None else node.inputs[0].dtype
    return ir.DataType(graph.attribute(node, "output_dtype", 0) or ir.DataType.UINT8)


def _quantizer(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear that reads a graph input, or the first of several that agree; None if others read it."""
    readers = [user for user, index in value.uses() if index == 0 and graph.is_op(user, "QuantizeLinear")]
    if not readers or len(readers) < len(value.uses()) or value.is_graph_output():
        return None
    agree = all(user.inputs[1:] == readers[0].inputs[1:] for user in readers)
    return readers[0] if agree else None


def _dequantizer(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if graph.is_op(node, "DequantizeLinear") else None


def _strip_input(target: ir.Graph, value: ir.Value, names: Names) -> None:
    quantize = _quantizer(value)
    if quantize is None:
        raise _unquantized(value)
    value.type = ir.TensorType(_integers(quantize) or ir.DataType.UINT8)
    gone = [user for user, _ in value.uses()]
    for node in gone:
        integers = node.outputs[0]
        if integers.is_graph_output():
            _make_output(target, list(target.outputs).index(integers), value, names)
        graph.redirect(integers, value)
    graph.remove(target, gone)


def _unquantized(value: ir.Value) -> ModelError:
    other = next((user for user, _ in value.uses() if not graph.is_op(user, "QuantizeLinear")), None)
    if other is None:
        what = f"the input {value.name!r} is not read by one QuantizeLinear alone"
        return ModelError(what, where="the model", hint=_FLOATS_HINT)
    return ModelError(f"reads the input {value.name!r} as floats", where=graph.describe(other), hint=_FLOATS_HINT)


def _strip_output(target: ir.Graph, index: int, dequantize: ir.Node, names: Names) -> None:
    real, integers = target.outputs[index], dequantize.inputs[0]
    assert integers is not None
    if integers.dtype is None and (dtype := _integers(dequantize)) is not None:
        integers.type = ir.TensorType(dtype)
    integers.shape = integers.shape or real.shape
    _make_output(target, index, integers, names)
    if not real.uses() and not real.is_graph_output():
        graph.remove(target, [dequantize])


def _make_output(target: ir.Graph, index: int, value: ir.Value, names: Names) -> None:
    """Let a value be that graph output, under the name of the old one; a copy of it where it cannot be renamed."""
    old = target.outputs[index]
    name, old.name = old.name, names.fresh(f"{old.name}_inner")
    if value.producer() is None or value.is_graph_output():
        copied = ir.node("Identity", [value], name=names.fresh(f"{name}_Identity"))
        target.append(copied)
        copied.outputs[0].type, copied.outputs[0].shape = value.type, value.shape
        value = copied.outputs[0]
    value.name = name
    target.outputs[index] = value
