"""Small quantized models made by hand: one layer in every form, and single products of integers.

`tests/conftest.py` puts this folder on the path: ``import integer_forms``.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from protos import FLOAT, const, info, model_of, node

KINDS = {name: getattr(TensorProto, name.upper()) for name in ("uint8", "int8", "uint16", "int32")}
SCALE, ZERO = np.float32(1 / 16), 128
"""Of the input and the output of `layer`."""
WEIGHT_SCALE = np.float32(1 / 64)
SHIFT = 6
FORMS = ("qdq", "qlinear", "integer")


def layer(form: str, weights: np.ndarray) -> onnx.ModelProto:
    """``y = x W + x`` of ``x`` float32 [N, n] and int8 weights [n, n]: "float", or quantized in one of `FORMS`.

    ``qlinear`` holds an operator of com.microsoft, ``integer`` a function of the domain qcomp.
    """
    quantize, dequantize = node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "r scale zero")
    nodes, constants, more = _BODIES[form](weights)
    if form != "float":
        nodes = [quantize, *nodes, dequantize]
        constants += [const("scale", SCALE), const("zero", np.uint8(ZERO))]
    size = len(weights)
    return model_of(nodes, [info("x", FLOAT, ["N", size])], [info("y", FLOAT, ["N", size])], constants, **more)


def _float(weights):
    nodes = [node("MatMul", "x w", "h"), node("Add", "h x")]
    return nodes, [const("w", weights * WEIGHT_SCALE)], {}


def _qdq(weights):
    nodes = [
        node("DequantizeLinear", "q scale zero", "x_dequantized"),
        node("DequantizeLinear", "w step", "w_dequantized"),
        node("MatMul", "x_dequantized w_dequantized", "h"),
        node("QuantizeLinear", "h scale zero", "h_quantized"),
        node("DequantizeLinear", "h_quantized scale zero", "h_dequantized"),
        node("Add", "h_dequantized x_dequantized", "a"),
        node("QuantizeLinear", "a scale zero", "r"),
    ]
    return nodes, [const("w", weights), const("step", WEIGHT_SCALE)], {}


def _qlinear(weights):
    add = helper.make_node(
        "QLinearAdd",
        ["h", "scale", "zero", "q", "scale", "zero", "scale", "zero"],
        ["r"],
        "n_r",
        domain="com.microsoft",
    )
    nodes = [node("QLinearMatMul", "q scale zero w step none scale zero", "h"), add]
    constants = [const("w", weights), const("step", WEIGHT_SCALE), const("none", np.int8(0))]
    return nodes, constants, {"domains": ["com.microsoft"]}


def _integer(weights):
    nodes = [
        node("MatMulInteger", "q w zero", "h"),
        helper.make_node("Finish", ["h", "q"], ["r"], "n_r", domain="qcomp"),
    ]
    return nodes, [const("w", weights)], {"domains": ["qcomp"], "functions": [finish()]}


_BODIES = {"float": _float, "qdq": _qdq, "qlinear": _qlinear, "integer": _integer}


def finish() -> onnx.FunctionProto:
    """``clamp((h + 64 q + 32) >> 6, 0, 255)``: ``h`` on the grid of ``q``, half up, in standard operators."""
    numbers = {"factor": np.int32(1 << SHIFT), "offset": np.int32(1 << SHIFT - 1), "least": np.int32(0)}
    numbers |= {"most": np.int32((256 << SHIFT) - 1), "shift": np.uint32(SHIFT)}
    nodes = [helper.make_node("Constant", [], [name], value=const("", array)) for name, array in numbers.items()]
    nodes += [
        node("Cast", "q", "q32", to=TensorProto.INT32),
        node("Mul", "q32 factor", "scaled"),
        node("Add", "h scaled", "sum"),
        node("Add", "sum offset", "shifted"),
        node("Clip", "shifted least most", "clipped"),
        node("Cast", "clipped", "unsigned", to=TensorProto.UINT32),
        node("BitShift", "unsigned shift", "small", direction="RIGHT"),
        node("Cast", "small", "r", to=TensorProto.UINT8),
    ]
    return helper.make_function("qcomp", "Finish", ["h", "q"], ["r"], nodes, [helper.make_opsetid("", 21)])


def product(kind: str, weights: np.ndarray, data: str = "uint8", *, shape=(1, 20), **attributes) -> onnx.ModelProto:
    """``x -> y``: one operator that multiplies integers ``x`` by constant ones.

    Args:
        kind: MatMulInteger, ConvInteger, QLinearConv, QLinearMatMul or QGemm; with ``qdq `` in front, an operator
            between DequantizeLinear and QuantizeLinear.
        weights: int8 or uint8.
        data: the type of ``x``.
        shape: of ``x``.
    """
    zeros = [const("zero", np.zeros((), data)), const("none", np.zeros((), weights.dtype))]
    step = step_of(weights.size // (weights.shape[0] if "Conv" in kind else weights.shape[-1]))
    zeros += [
        const("one", np.float32(1)),
        const("step", step),
        const("middle", np.asarray(128 * (data[0] == "u"), data)),
    ]
    out = TensorProto.INT32 if kind.endswith("Integer") else KINDS[data]
    ends = [info("x", KINDS[data], shape)], [info("y", out, None)], [const("w", weights), *zeros]
    return model_of(_product_nodes(kind, attributes), *ends, domains=["com.microsoft"])


def _product_nodes(kind, attributes):
    if kind.endswith("Integer"):
        return [node(kind, "x w", **attributes)]
    if kind.startswith("qdq"):
        return [
            node("DequantizeLinear", "x one zero", "x_real"),
            node("DequantizeLinear", "w step none", "w_real"),
            node(kind.removeprefix("qdq "), "x_real w_real", "h", **attributes),
            node("QuantizeLinear", "h one middle"),
        ]
    inputs = ["x", "one", "zero", "w", "step", "none", *([""] if kind == "QGemm" else []), "one", "middle"]
    return [helper.make_node(kind, inputs, ["y"], domain="com.microsoft" * (kind == "QGemm"), **attributes)]


def step_of(depth: int, gain: int = 1) -> np.float32:
    """A power of two that brings the sum of so many products to 128 at most, or to ``gain`` times that."""
    return np.float32(gain * 2.0 ** -np.ceil(np.log2(255 * 127 * depth / 128)))


def balanced(rng: np.random.Generator, channels: int, depth: int) -> np.ndarray:
    """int8 weights that saturate in pairs, of one sign and then of the other, and add up to little."""
    signs = np.resize([1, 1, -1, -1], depth)
    return (signs * rng.integers(100, 128, (channels, depth))).astype(np.int8)


def full_range(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """int8 weights that saturate: all of 100 and above, of one sign a channel (the first axis)."""
    signs = rng.choice([-1, 1], (shape[0], *(1,) * (len(shape) - 1)))
    return (signs * rng.integers(100, 128, shape)).astype(np.int8)


def at_the_bound(rng: np.random.Generator, *shape: int, excess: int = 0) -> np.ndarray:
    """int8 weights: in each channel (the first axis) the two largest add up to 128, the two least to -128.

    Args:
        shape: with four or more weights a channel.
        excess: added to the magnitude of both sums.
    """
    rows = np.empty((shape[0], int(np.prod(shape[1:]))), np.int8)
    for row in rows:
        high, low = rng.integers(64 + excess, 128, 2)
        next_high, next_low = 128 + excess - high, 128 + excess - low
        row[:] = rng.choice([-next_low, next_high], row.shape)
        start = 2 * rng.integers(0, len(row) // 2 - 1)
        row[start : start + 4] = rng.permutation([[high, next_high], [-low, -next_low]]).ravel()
    return rows.reshape(shape)
