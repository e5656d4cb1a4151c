"""The convolutional network of the digits: small, but with every structure that quantization cares about."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qcomp.models.blocks import basic_block, conv_bn, pooled_classifier, separable
from qcomp.models.net import Array, Net


def digits_cnn(seed: int = 0, *, weights: Mapping[str, Array] | None = None) -> ir.Model:
    """Build the network: stem, residual block, strided Conv, residual block, separable convolution, Gemm.

    The model takes `image` float32 ``[N, 1, 8, 8]`` in 0..1 and gives `logits` float32 ``[N, 10]``. The blocks
    are those of He et al. 2016 (ReLU) and Howard et al. 2017 (ReLU6 as Clip); BatchNormalization stays a node
    after each Conv.

    Args:
        seed: of random weights.
        weights: trained weights instead, by name.
    """
    net = Net("digits_cnn", seed=seed, weights=weights)
    x = conv_bn(net, net.input("image", ["N", 1, 8, 8]), "stem", 1, 32, act="relu")
    x = basic_block(net, x, "block1", 32, 32)
    x = conv_bn(net, x, "down", 32, 48, stride=(2, 2), act="relu")
    x = basic_block(net, x, "block2", 48, 48)
    x = separable(net, x, "separable", 48, 64, act="relu6")
    return net.model(pooled_classifier(net, x, "fc", 64, 10), "logits", ["N", 10])
