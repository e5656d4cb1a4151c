"""What is kept in float between integers must not be quantized by ONNX Runtime behind our back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import small_graphs as small

import qcomp
from qcomp import qdq, runtime
from qcomp.report.outputs import sqnr


def uneven(b, *shape):
    """Random weights whose output channels (the first axis) differ so much that one scale for all loses most."""
    factors = np.geomspace(1e-3, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return b.constant((np.random.default_rng(1).standard_normal(shape) * factors).astype(np.float32))


def between(kind: str, clamp: str) -> onnx.ModelProto:
    """An integer convolution, the operator called ``kept``, and what computes in integers again."""
    b = small.Builder(3)
    x = b.op("Relu", b.conv(b.input("x", [2, 3, 6, 6]), 3, 8, pads=[1, 1, 1, 1]))
    if kind == "Gemm":
        x = b.op("Flatten", b.op("GlobalAveragePool", x))
        y = b.op("Gemm", x, uneven(b, 8, 8), transB=1, name="kept")
    elif kind == "Conv":
        y = b.op("Conv", x, uneven(b, 8, 1, 3, 3), group=8, pads=[1, 1, 1, 1], name="kept")
    else:
        y = b.op("ConvTranspose", x, uneven(b, 8, 8, 2, 2), strides=[2, 2], name="kept")
    y = b.op(clamp, y) if clamp else y
    scale = b.constant(np.geomspace(1e3, 1, 8).astype(np.float32).reshape([1, 8] if kind == "Gemm" else [1, 8, 1, 1]))
    y = b.op("Softmax" if kind == "Gemm" else "MaxPool", y, **({} if kind == "Gemm" else {"kernel_shape": [2, 2]}))
    b.op("Mul", y, scale, name="y")
    return b.model("y")


@pytest.mark.parametrize("clamp", ["", "Relu"])
@pytest.mark.parametrize("kind", ["Conv", "Gemm", "ConvTranspose"])
def test_kept_operators_run_in_float(kind, clamp):
    model = between(kind, clamp)
    samples = np.random.default_rng(0).standard_normal((32, 3, 6, 6)).astype(np.float32)
    line = "choose-precision{by=all},insert-qdq,round-weights"
    compiled = qcomp.compile(model, [{"x": samples}], passes=line, keep=["node_kept"])
    node = next(n for n in compiled.model.graph if n.name == "node_kept")
    assert qdq.read(node.inputs[1]) is None
    feeds = {"x": samples[:2]}
    as_written = runtime.run_batches(runtime.session(compiled.model, optimize=False), [feeds])["y"]
    optimized = runtime.run_batches(runtime.session(compiled.model), [feeds])["y"]
    assert sqnr(as_written, optimized) > (30 if kind == "Gemm" else 50)
