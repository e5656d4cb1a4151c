"""The operators whose costs are measured, each as small models of several copies, in float and in integers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SCALE, ZERO = 0.05, 128

Shape = tuple[int, ...]


@dataclass
class Graph:
    """An ONNX graph under construction; ``integer`` puts a Q/DQ pair behind every operator."""

    integer: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    count: int = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def constant(self, array: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), self.name()))
        return self.constants[-1].name

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [self.name()], domain=domain, **attributes))
        return str(self.nodes[-1].output[0])

    def scale(self, scale: float = SCALE) -> tuple[str, str]:
        return self.constant(np.float32(scale)), self.constant(np.uint8(ZERO))

    def input(self, shape: Shape) -> str:
        """A graph input: float, or uint8 and dequantized."""
        self.inputs.append(helper.make_tensor_value_info(self.name(), self._type(), shape))
        name = self.inputs[-1].name
        return self.node("DequantizeLinear", name, *self.scale()) if self.integer else name

    def quantized(self, value: str) -> str:
        """Behind an operator: a Q/DQ pair in an integer graph."""
        if not self.integer:
            return value
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, *self.scale()), *self.scale())

    def weight(self, array: Any, axis: int) -> str:
        """float32, or int8 per channel behind a DequantizeLinear."""
        if not self.integer:
            return self.constant(array.astype(np.float32))
        scales = self.constant(np.full(array.shape[axis], 0.01, np.float32))
        integers = self.constant(np.clip(array * 20, -127, 127).astype(np.int8))
        return self.node(
            "DequantizeLinear", integers, scales, self.constant(np.zeros(array.shape[axis], np.int8)), axis=axis
        )

    def bias(self, size: int) -> str:
        if not self.integer:
            return self.constant(np.zeros(size, np.float32))
        scales = self.constant(np.full(size, 0.01 * SCALE, np.float32))
        return self.node(
            "DequantizeLinear",
            self.constant(np.zeros(size, np.int32)),
            scales,
            self.constant(np.zeros(size, np.int32)),
            axis=0,
        )

    def output(self, value: str, shape: Shape) -> None:
        if self.integer:
            value = self.nodes[-1].input[0]  # the integers before the last DequantizeLinear
        self.outputs.append(helper.make_tensor_value_info(value, self._type(), shape))

    def model(self) -> onnx.ModelProto:
        made = helper.make_graph(self.nodes, "costs", self.inputs, self.outputs, self.constants)
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(made, opset_imports=imports, ir_version=10)

    def _type(self) -> int:
        return TensorProto.UINT8 if self.integer else TensorProto.FLOAT


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Args:
        operator: its kind, as fits are grouped.
        size: as printed.
        real, integer: build a model of that many copies.
        counts: what the time is linear in: of a Conv multiply-accumulates, taps (kernel positions of all output
            pixels, which the integer kernel gathers one by one) and outputs; of a MatMul multiply-accumulates and
            outputs; of the others elements.
    """

    operator: str
    size: str
    real: Callable[[int], onnx.ModelProto]
    integer: Callable[[int], onnx.ModelProto]
    counts: tuple[int, ...]


def chained(shape: Shape, step: Callable[[Graph, str, str], str]) -> tuple[Any, Any]:
    """Builders of copies in a row; ``step`` gets the graph, the value and another value of the same shape."""

    def build(copies: int, *, integer: bool) -> onnx.ModelProto:
        made = Graph(integer)
        value = other = made.input(shape)
        for _ in range(copies):
            value = made.quantized(step(made, value, other))
        made.output(value, shape)
        return made.model()

    return functools.partial(build, integer=False), functools.partial(build, integer=True)


def side_by_side(
    shape: Shape, out: Shape, step: Callable[[Graph, str], str], types: tuple[int, int] | None = None
) -> Callable[[int], onnx.ModelProto]:
    """A builder of copies side by side, each on an input of its own; types are those of inputs and outputs."""
    source, result = types or (TensorProto.FLOAT, TensorProto.FLOAT)

    def build(copies: int) -> onnx.ModelProto:
        made = Graph(integer=False)
        for _ in range(copies):
            made.inputs.append(helper.make_tensor_value_info(made.name(), source, shape))
            value = step(made, made.inputs[-1].name)
            made.outputs.append(helper.make_tensor_value_info(value, result, out))
        return made.model()

    return build


_BYTES = (TensorProto.UINT8, TensorProto.UINT8)
_RANDOM = np.random.default_rng(0)


def conv(kind: str, channels: int, size: int, kernel: int) -> Case:
    """A convolution that keeps its shape."""
    group = channels if kind == "depthwise" else 1
    weight = _RANDOM.standard_normal((channels, channels // group, kernel, kernel)) * 0.1
    shape = (1, channels, size, size)

    def step(g: Graph, x: str, _: str) -> str:
        pads = [kernel // 2] * 4
        return g.node(
            "Conv", x, g.weight(weight, 0), g.bias(channels), pads=pads, group=group, kernel_shape=[kernel] * 2
        )

    outputs = channels * size * size
    label = f"{channels} x {size}^2, {kernel}x{kernel}"
    return Case(
        f"Conv {kind}", label, *chained(shape, step), (outputs * weight[0].size, size * size * kernel**2, outputs)
    )


def stem(inputs: int, outputs: int, size: int, kernel: int, stride: int = 1) -> Case:
    """The first convolution of a network, with the Transpose to channels-last that the integer one needs."""
    weight = _RANDOM.standard_normal((outputs, inputs, kernel, kernel)) * 0.1
    out = size // stride
    attributes = {"pads": [kernel // 2] * 4, "kernel_shape": [kernel] * 2, "strides": [stride] * 2}

    def real(g: Graph, x: str) -> str:
        return g.node("Conv", x, g.constant(weight.astype(np.float32)), g.bias(outputs), **attributes)

    def integer(g: Graph, x: str) -> str:
        turned = g.node("Transpose", x, perm=(0, 2, 3, 1))
        scales = [g.constant(np.full(outputs, 0.01, np.float32)), g.constant(np.zeros(outputs, np.int8))]
        filters = [g.constant((weight * 20).astype(np.int8)), *scales]
        everything = (turned, *g.scale(), *filters, *g.scale(), g.constant(np.zeros(outputs, np.int32)))
        return g.node("QLinearConv", *everything, domain="com.microsoft", channels_last=1, **attributes)

    before, after, last = (1, inputs, size, size), (1, outputs, out, out), (1, out, out, outputs)
    pixels = out * out
    counts = (pixels * weight.size, pixels * kernel**2, pixels * outputs)
    builders = side_by_side(before, after, real), side_by_side(before, last, integer, _BYTES)
    return Case("Conv stem", f"{inputs}->{outputs} x {out}^2, {kernel}x{kernel}", *builders, counts)


def clamp(count: int) -> Case:
    """A Relu in float, and the Clip of uint8 that stands for one that no range absorbs."""

    def integer(g: Graph, x: str) -> str:
        return g.node("Clip", x, g.constant(np.uint8(ZERO)), g.constant(np.uint8(255)))

    real = side_by_side((1, count), (1, count), lambda g, x: g.node("Relu", x))
    return Case("Relu | Clip", str(count), real, side_by_side((1, count), (1, count), integer, _BYTES), (count,))


def pad(channels: int, size: int) -> Case:
    """One pixel around an image, of float32 and of uint8."""
    shape, out = (1, channels, size, size), (1, channels, size + 2, size + 2)
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])

    def step(g: Graph, x: str, value: Any) -> str:
        return g.node("Pad", x, g.constant(pads), g.constant(value))

    real = side_by_side(shape, out, lambda g, x: step(g, x, np.float32(0)))
    integer = side_by_side(shape, out, lambda g, x: step(g, x, np.uint8(ZERO)), _BYTES)
    return Case("Pad", f"{channels} x {size}^2", real, integer, (int(np.prod(out)),))


def matmul(rows: int, dim: int) -> Case:
    """Tokens by a constant matrix, integers out."""
    weight = _RANDOM.standard_normal((dim, dim)) * 0.1
    step = lambda g, x, _: g.node("MatMul", x, g.weight(weight, 1))  # noqa: E731
    return Case(
        "MatMul weight", f"{rows} x {dim} x {dim}", *chained((1, rows, dim), step), (rows * dim * dim, rows * dim)
    )


def matmul_to_float(rows: int, dim: int) -> Case:
    """The same with a bias, integers in and float out, and the QuantizeLinear that the next one needs."""
    weight, shape = _RANDOM.standard_normal((dim, dim)) * 0.1, (1, rows, dim)

    def build(copies: int, *, integer: bool) -> onnx.ModelProto:
        made = Graph(integer)
        made.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
        value = "x"
        for _ in range(copies):
            value = made.node("MatMul", made.quantized(value), made.weight(weight, 1))
            value = made.node("Add", value, made.constant(np.zeros(dim, np.float32)))
        made.outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, shape))
        return made.model()

    builders = [functools.partial(build, integer=integer) for integer in (False, True)]
    return Case("Q + MatMul + bias, float out", f"{rows} x {dim} x {dim}", *builders, (rows * dim * dim, rows * dim))


def matmul_of_two(heads: int, size: int) -> Case:
    """Two activations, square."""
    step = lambda g, x, y: g.node("MatMul", x, y)  # noqa: E731
    label = f"{heads} x {size}^3"
    return Case("MatMul two", label, *chained((1, heads, size, size), step), (heads * size**3, heads * size * size))


def elementwise(op: str, count: int) -> Case:
    """One of Add, Mul (of two activations) and functions of one."""
    two = op in ("Add", "Mul")
    step = lambda g, x, y: g.node(op, x, *([y] if two else []))  # noqa: E731
    return Case(op, str(count), *chained((1, count), step), (count,))


def softmax(rows: int, size: int) -> Case:
    """Over the last axis."""
    step = lambda g, x, _: g.node("Softmax", x, axis=-1)  # noqa: E731
    return Case("Softmax", f"{rows} x {size}", *chained((rows, size), step), (rows * size,))


def pool(op: str, channels: int, size: int) -> Case:
    """3x3 pools that keep their shape, and GlobalAveragePool; integers channels-last."""
    first, last = (1, channels, size, size), (1, size, size, channels)
    everything = op == "GlobalAveragePool"
    attributes = {} if everything else {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    out, out_last = ((1, channels, 1, 1), (1, 1, 1, channels)) if everything else (first, last)

    def integer(g: Graph, x: str) -> str:
        if op == "MaxPool":
            return g.node("NhwcMaxPool", x, domain="com.microsoft", **attributes)
        scales = (*g.scale(), *g.scale())
        return g.node(f"QLinear{op}", x, *scales, domain="com.microsoft", channels_last=1, **attributes)

    real = side_by_side(first, out, lambda g, x: g.node(op, x, **attributes))
    count = channels * size * size
    return Case(op, f"{channels} x {size}^2", real, side_by_side(last, out_last, integer, _BYTES), (count,))


def concat(count: int) -> Case:
    """Two inputs of half the size, each with its scale."""
    half, whole = (1, count // 2), (1, 2 * (count // 2))

    def integer(g: Graph, x: str) -> str:
        other = [x, *g.scale(2 * SCALE)]
        return g.node("QLinearConcat", *g.scale(2 * SCALE), x, *g.scale(), *other, domain="com.microsoft", axis=1)

    real = side_by_side(half, whole, lambda g, x: g.node("Concat", x, x, axis=1))
    return Case("Concat", str(count), real, side_by_side(half, whole, integer, _BYTES), (count,))


def transpose(label: str, shape: Shape, perm: Sequence[int]) -> Case:
    """A Transpose of float32 and of uint8."""
    out = tuple(shape[i] for i in perm)
    step = lambda g, x: g.node("Transpose", x, perm=perm)  # noqa: E731
    real, integer = side_by_side(shape, out, step), side_by_side(shape, out, step, _BYTES)
    return Case(f"Transpose {label}", " x ".join(map(str, shape[1:])), real, integer, (int(np.prod(shape)),))


def conversions(count: int) -> Case:
    """QuantizeLinear in the float column, DequantizeLinear in the integer one."""
    quantize = side_by_side(
        (1, count),
        (1, count),
        lambda g, x: g.node("QuantizeLinear", x, *g.scale()),
        (TensorProto.FLOAT, TensorProto.UINT8),
    )
    dequantize = side_by_side(
        (1, count),
        (1, count),
        lambda g, x: g.node("DequantizeLinear", x, *g.scale()),
        (TensorProto.UINT8, TensorProto.FLOAT),
    )
    return Case("Quantize | Dequantize", str(count), quantize, dequantize, (count,))


def cases() -> list[Case]:
    """Everything that is measured."""
    counts = (16, 1024, 16384, 131072)
    found = [
        conv("dense", c, s, 3) for c, s in ((4, 4), (8, 8), (16, 8), (16, 32), (32, 16), (64, 8), (64, 28), (128, 14))
    ]
    found += [conv("dense", c, s, 5) for c, s in ((8, 14), (16, 14))]
    stems = ((1, 8, 28, 5), (1, 16, 8, 3), (3, 16, 32, 3), (3, 32, 224, 3, 2), (8, 16, 14, 5))
    found += [stem(*size) for size in stems]
    found += [
        conv("1x1", c, s, 1) for c, s in ((4, 4), (16, 8), (32, 28), (64, 14), (64, 28), (128, 28), (256, 14), (512, 7))
    ]
    found += [
        conv("depthwise", c, s, 3) for c, s in ((8, 4), (32, 14), (64, 5), (64, 28), (192, 28), (384, 14), (960, 7))
    ]
    sizes = ((1, 16), (1, 256), (32, 64), (64, 64), (98, 64), (32, 256), (32, 384), (64, 384), (128, 768))
    found += [matmul(*size) for size in sizes] + [matmul_to_float(*size) for size in sizes]
    found += [matmul_of_two(*size) for size in ((1, 4), (2, 32), (4, 32), (12, 64), (8, 98))]
    found += [elementwise(op, n) for op in ("Add", "Mul", "Sigmoid", "LeakyRelu") for n in counts]
    found += [clamp(n) for n in counts] + [pad(*size) for size in ((4, 4), (64, 14), (64, 28))]
    found += [softmax(*size) for size in ((1, 16), (98, 98), (384, 32), (784, 98))]
    pools = ("MaxPool", "AveragePool", "GlobalAveragePool")
    found += [pool(op, *size) for op in pools for size in ((16, 2), (16, 14), (64, 14), (64, 56), (320, 7))]
    found += [concat(n) for n in counts]
    heads, images = ((1, 4, 2, 4), (1, 32, 4, 16), (1, 98, 8, 64)), ((1, 4, 2, 4), (1, 16, 14, 14), (1, 64, 28, 28))
    found += [transpose("heads", shape, (0, 2, 1, 3)) for shape in heads]
    found += [transpose("to channels-last", shape, (0, 2, 3, 1)) for shape in images]
    return found + [conversions(n) for n in counts]
