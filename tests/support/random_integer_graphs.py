"""Random small float models whose every operator has an integer form, with samples and a line of passes for each;
and single operators of the integer graph.

`tests/conftest.py` puts this folder on the path: ``import random_integer_graphs``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import quantized
import random_layers as layers
from onnx import TensorProto, helper
from protos import const, info, model_of
from random_layers import Generator

BATCH = 4
LEAST = 1e-3
"""Smaller activations are multiplied: ONNX Runtime's float32 Elu, for one, has no digits left there."""


@dataclass(frozen=True)
class Case:
    """A float model, calibration samples, samples that reach beyond them, and the passes up to Q/DQ."""

    model: onnx.ModelProto
    calibration: dict[str, np.ndarray]
    feeds: dict[str, np.ndarray]
    line: str


IMAGES = ((4, 6, 7), (3, 5, 5), (2, 8, 8), (3, 12), (4, 9))
SHAPES = {
    "image": IMAGES,
    "image of any size": IMAGES,
    "sequence": ((3, 12), (4, 9), (5, 6)),
    "rows": ((8,), (13,)),
}
KINDS = ("image",) * 5 + ("image of any size", "sequence", "sequence", "rows", "rows")


def case(seed: int) -> Case:
    """The model of a seed."""
    g = Generator(seed)
    kind = g.pick(*KINDS)
    shape, center, spread = g.pick(*SHAPES[kind]), g.pick(0, 0, -3, 5), g.magnitude(2)
    g.sized = kind != "image of any size"
    dims = shape if g.sized else [*shape[:1], *"HW"[: len(shape) - 1]]
    y = g.b.input("x", [g.pick("N", BATCH), *dims])
    samples = g.arrays["x"] = ((g.normal(BATCH, *shape) + center) * spread).astype("f4")
    for _ in range(g.pick(1, 2, 3, 4)):
        y = _of_size(g, g.pick(*layers.BY_KIND[kind])(g, y))
    if kind == "image" and g.chance(0.2):
        y, kind = g.pick(*layers.BY_KIND["sequence"])(g, layers.to_sequence(g, y)), "sequence"
    if kind in ("image", "sequence") and g.chance(0.4):
        y = g.pick(*layers.BY_KIND["rows"])(g, (layers.to_rows if kind == "image" else layers.mean_to_rows)(g, y))
    y = layers.relu(g, y) if y == "x" else y
    return Case(_finished(g, y), {"x": samples}, {"x": _beyond(g, samples)}, _line(g))


def _of_size(g: Generator, y: str) -> str:
    return g.op("Mul", y, g.constant(1 / g.reach(y))) if g.reach(y) < LEAST else y


def _finished(g: Generator, y: str) -> onnx.ModelProto:
    """The model with that result; sometimes with another one, or with the position of the largest element."""
    inner = [name for node in g.b.nodes for name in node.output if name != y]
    outputs: list = [y, *([g.pick(*inner)] if inner and g.chance(0.3) else [])]
    if g.chance(0.2):
        best = g.op("ArgMax", y, axis=g.pick(-1, 1), keepdims=g.pick(0, 1))
        outputs = [*g.pick(outputs, []), helper.make_tensor_value_info(best, TensorProto.INT64, None)]
    return g.b.model(*outputs)


def _beyond(g: Generator, x: np.ndarray) -> np.ndarray:
    """Samples like the calibration's, larger, spread over its range, and of extremes."""
    fresh = g.rng.permutation(x.ravel()).reshape(x.shape)
    fresh[1] *= 3
    fresh[2] = g.rng.uniform(x.min(), x.max(), x[2].shape)
    far = 1e4 * np.abs(x).max()  # onnx's reference QuantizeLinear overflows at 2^31 steps
    fresh[3] = g.rng.choice([-far, x.min(), 0, x.max(), far], x[3].shape)
    return fresh


def _line(g: Generator) -> str:
    """The passes of `quantized.WITHOUT_CHOICE`, with options of many kinds."""
    options = {
        "ranges": g.pick("minmax", "minmax", "mse", "percentile"),
        "activations": g.pick("uint8", "uint8", "uint8", "uint8", "uint6", "uint4"),
        "weights": g.pick("int8", "int8", "int8", "int4", "int6"),
        "per_channel": g.pick("true", "true", "true", "false"),
        "portable": g.pick("false", "false", "false", "true"),
    }
    written = " ".join(f"{key}={value}" for key, value in options.items())
    return quantized.WITHOUT_CHOICE.replace("ranges=minmax", written) + g.pick("", "", ",correct-bias")


OPERATORS = {
    "QLinearConv": ("x one zx w factors zw one zy bias", lambda k: ((BATCH, k, 3, 4), (5, k, 2, 2))),
    "QLinearMatMul": ("x one zx w factors zw one zy", lambda k: ((BATCH, 3, k), (k, 5))),
    "QGemm": ("x one zx w factors zw bias one zy", lambda k: ((BATCH, k), (k, 5))),
    "QLinearAdd": ("x f zx z g zz one zy", lambda k: ((BATCH, k, 9), ())),
    "QLinearMul": ("x f zx z one zz one zy", lambda k: ((BATCH, k, 9), ())),
    "QLinearConcat": ("one zy x f zx z g zz", lambda k: ((BATCH, k, 9), ())),
    "QLinearGlobalAveragePool": ("x mean zx one zy", lambda k: ((BATCH, 5, 2, k), ())),
}
"""The inputs of each, and the shapes of x (and z) and w by the number of terms of a sum."""


def operator(kind: str, seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One operator on uint8, ``x`` (and ``z``) to ``y``; many results lie half-way, or the accumulators are large."""
    rng = np.random.default_rng(seed)
    inputs, shapes = OPERATORS[kind]
    large = "w" in inputs.split() and seed % 3 == 0
    shape, weights = shapes(1000 if large else int(rng.integers(1, 6)))
    shift = (
        16
        if large
        else int(rng.integers(4, 9) if "w" in inputs.split() or kind == "QLinearMul" else rng.integers(1, 6))
    )
    steps = rng.integers(1, 100 if large else 4, 5)
    factors = (steps / 2.0**shift).astype("f4")
    tensors = {
        "one": np.float32(1),
        "factors": factors,
        **dict(zip("fg", factors, strict=False)),
        "mean": np.float32(factors[0] * np.prod(shape[2:])),
        **{name: np.uint8(2 * rng.integers(128)) for name in ("zx", "zz", "zy")},
        "w": rng.integers(-127, 128, weights).astype("i1"),
        "zw": np.zeros(5, np.int8),
        "bias": rng.integers(-(1 << shift), 1 << shift, 5).astype("i4"),
    }
    domain = "" if kind in ("QLinearConv", "QLinearMatMul") else "com.microsoft"
    attributes = {"QLinearConcat": {"axis": 1}, "QLinearGlobalAveragePool": {"channels_last": 0}}.get(kind, {})
    made = helper.make_node(kind, inputs.split(), ["y"], "n_y", domain=domain, **attributes)
    read = [name for name in ("x", "z") if name in made.input]
    ends = [info(name, TensorProto.UINT8, shape) for name in read], [info("y", TensorProto.UINT8, None)]
    constants = [const(name, array) for name, array in tensors.items() if name in made.input]
    feeds = {name: rng.integers(0, 256, shape).astype("u1") for name in read}
    return model_of([made], *ends, constants, domains=["com.microsoft"]), feeds
