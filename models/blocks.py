"""Layers and blocks that the families share.

Every function appends nodes to a `Net` and returns the float32 output; images are ``[N, C, H, W]``, sequences
``[N, L, D]``. Random weights follow He et al. 2015 ("Delving Deep into Rectifiers"); the parameters of a
normalization spread around their neutral values as those of trained networks do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcomp.models.net import Array, Init, Net


def he(fan_in: int, gain: float = 2.0) -> Init:
    """Normal weights that keep the variance: `gain` 2 in front of a ReLU, 1 in front of nothing."""
    deviation = math.sqrt(gain / fan_in)
    return lambda rng, shape: (rng.standard_normal(shape) * deviation).astype(np.float32)


def around(centre: float, spread: float) -> Init:
    """Normal numbers around `centre`."""
    return lambda rng, shape: rng.normal(centre, spread, shape).astype(np.float32)


def positive(median: float, spread: float = 0.25) -> Init:
    """Log-normal, therefore positive, numbers around `median`."""
    return lambda rng, shape: (median * rng.lognormal(0.0, spread, shape)).astype(np.float32)


def zeros(_: np.random.Generator, shape: Sequence[int]) -> Array:
    """Zeros, for the biases."""
    return np.zeros(shape, np.float32)


def relu(net: Net, x: ir.Value) -> ir.Value:
    """max(x, 0)."""
    return net.op("Relu", x)


def relu6(net: Net, x: ir.Value) -> ir.Value:
    """min(max(x, 0), 6), as a Clip."""
    return net.op("Clip", x, net.constant(0.0), net.constant(6.0))


def gelu(net: Net, x: ir.Value) -> ir.Value:
    """x * (1 + erf(x / sqrt 2)) / 2, in single operators (Hendrycks and Gimpel 2016)."""
    erf = net.op("Erf", net.op("Div", x, net.constant(math.sqrt(2))))
    return net.op("Mul", net.op("Mul", x, net.op("Add", erf, net.constant(1.0))), net.constant(0.5))


ACTIVATIONS = {"relu": relu, "relu6": relu6}


def batch_norm(net: Net, x: ir.Value, name: str, channels: int, *, gamma: float = 1.0) -> ir.Value:
    """BatchNormalization (Ioffe and Szegedy 2015) in its inference form; `gamma` is the median scale."""
    with net.scope(name):
        scale = net.weight("weight", [channels], positive(gamma))
        shift = net.weight("bias", [channels], around(0.0, 0.1))
        mean = net.weight("running_mean", [channels], around(0.0, 0.2))
        variance = net.weight("running_var", [channels], positive(1.0))
        return net.op("BatchNormalization", x, scale, shift, mean, variance, epsilon=1e-5)


def conv_bn(
    net: Net,
    x: ir.Value,
    name: str,
    cin: int,
    cout: int,
    *,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] | None = None,
    groups: int = 1,
    act: str = "",
    gamma: float = 1.0,
) -> ir.Value:
    """Convolution without bias, BatchNormalization and perhaps an activation ('relu' or 'relu6').

    ``[N, cin, H, W]`` becomes ``[N, cout, ceil(H / stride), ceil(W / stride)]`` with the default `pads` (top,
    left, bottom, right) of an odd kernel.
    """
    up, left = kernel[0] // 2, kernel[1] // 2
    init = he(cin // groups * kernel[0] * kernel[1], gain=2.0 if act else 1.0)
    with net.scope(name):
        with net.scope("conv"):
            weight = net.weight("weight", [cout, cin // groups, *kernel], init)
            y = net.op(
                "Conv",
                x,
                weight,
                strides=stride,
                pads=pads or (up, left, up, left),
                kernel_shape=kernel,
                group=groups,
            )
        y = batch_norm(net, y, "bn", cout, gamma=gamma)
        return ACTIVATIONS[act](net, y) if act else y


def basic_block(net: Net, x: ir.Value, name: str, cin: int, cout: int, stride: int = 1) -> ir.Value:
    """Two 3x3 convolutions around a shortcut (He et al. 2016, fig. 2).

    The shortcut is a 1x1 projection (option B) where `stride` or the number of channels changes.
    """
    with net.scope(name):
        y = conv_bn(net, x, "conv1", cin, cout, stride=(stride, stride), act="relu")
        y = conv_bn(net, y, "conv2", cout, cout, gamma=0.5)
        if stride != 1 or cin != cout:
            x = conv_bn(net, x, "shortcut", cin, cout, kernel=(1, 1), stride=(stride, stride))
        return relu(net, net.op("Add", y, x))


def separable(net: Net, x: ir.Value, name: str, cin: int, cout: int, stride: int = 1, act: str = "relu") -> ir.Value:
    """Depthwise 3x3 and pointwise 1x1 convolution, each with its activation (Howard et al. 2017)."""
    with net.scope(name):
        y = conv_bn(net, x, "depthwise", cin, cin, stride=(stride, stride), groups=cin, act=act)
        return conv_bn(net, y, "pointwise", cin, cout, kernel=(1, 1), act=act)


def classifier(net: Net, x: ir.Value, name: str, features: int, classes: int) -> ir.Value:
    """A Gemm from ``[N, features]`` to ``[N, classes]``."""
    with net.scope(name):
        weight = net.weight("weight", [classes, features], he(features, gain=1.0))
        bias = net.weight("bias", [classes], around(0.0, 0.1))
        return net.op("Gemm", x, weight, bias, transB=1)


def pooled_classifier(net: Net, x: ir.Value, name: str, channels: int, classes: int) -> ir.Value:
    """Global average pooling of ``[N, channels, H, W]`` and a Gemm to ``[N, classes]``."""
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    return classifier(net, pooled, name, channels, classes)


def linear(net: Net, x: ir.Value, name: str, cin: int, cout: int, gain: float = 1.0) -> ir.Value:
    """MatMul and Add from ``[N, L, cin]`` to ``[N, L, cout]``; the given weight is ``[cout, cin]``."""
    with net.scope(name):
        weight = net.weight("weight", [cout, cin], he(cin, gain), transposed=True)
        return net.op("Add", net.op("MatMul", x, weight), net.weight("bias", [cout], around(0.0, 0.02)))


def layer_norm(net: Net, x: ir.Value, name: str, dim: int, epsilon: float = 1e-5) -> ir.Value:
    """LayerNormalization over the last axis (Ba et al. 2016)."""
    with net.scope(name):
        scale = net.weight("weight", [dim], positive(1.0))
        shift = net.weight("bias", [dim], around(0.0, 0.1))
        return net.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=epsilon)


def attention(net: Net, x: ir.Value, name: str, dim: int, heads: int, mask: ir.Value | None = None) -> ir.Value:
    """Multi-head self-attention (Vaswani et al. 2017) on ``[N, L, dim]``.

    `mask` is added to the scores ``[N, heads, L, L]`` and must broadcast to them.
    """
    with net.scope(name):
        query = _split_heads(net, linear(net, x, "query", dim, dim), dim, heads, perm=(0, 2, 1, 3))
        key = _split_heads(net, linear(net, x, "key", dim, dim), dim, heads, perm=(0, 2, 3, 1))
        value = _split_heads(net, linear(net, x, "value", dim, dim), dim, heads, perm=(0, 2, 1, 3))
        scores = net.op("Mul", net.op("MatMul", query, key), net.constant((dim // heads) ** -0.5))
        scores = net.op("Add", scores, mask) if mask is not None else scores
        mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), value)
        joined = net.op("Reshape", net.op("Transpose", mixed, perm=(0, 2, 1, 3)), net.constant([0, 0, dim]))
        return linear(net, joined, "out", dim, dim)


def feed_forward(net: Net, x: ir.Value, name: str, dim: int, hidden: int) -> ir.Value:
    """The two-layer perceptron of a transformer block, with GELU, on ``[N, L, dim]``."""
    with net.scope(name):
        y = gelu(net, linear(net, x, "fc1", dim, hidden, gain=2.0))
        return linear(net, y, "fc2", hidden, dim)


def _split_heads(net: Net, x: ir.Value, dim: int, heads: int, perm: Sequence[int]) -> ir.Value:
    split = net.op("Reshape", x, net.constant([0, 0, heads, dim // heads]))
    return net.op("Transpose", split, perm=perm)
