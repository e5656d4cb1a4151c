"""DS-CNN for keyword spotting (Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers")."""

from __future__ import annotations

import onnx_ir as ir

from qcomp.models.blocks import conv_bn, pooled_classifier, separable
from qcomp.models.net import Net


def ds_cnn(channels: int = 64, blocks: int = 4, classes: int = 12, seed: int = 0) -> ir.Model:
    """Build the small DS-CNN of the paper (64 channels, 4 separable blocks) with random weights.

    The model takes `features` float32 ``[N, 1, 49, 10]`` (49 frames of 10 MFCCs) and gives `logits` float32
    ``[N, classes]``. The first Conv is 10x4 with stride 2; it is padded as TensorFlow's SAME, to 25x5.

    Args:
        channels: of all layers; 64, 172 and 276 in the paper's S, M and L.
        blocks: depthwise separable blocks.
        classes: number of classes: ten words, silence and unknown.
        seed: of the weights.
    """
    net = Net("ds_cnn", seed=seed)
    x = net.input("features", ["N", 1, 49, 10])
    x = conv_bn(net, x, "stem", 1, channels, kernel=(10, 4), stride=(2, 2), pads=(4, 1, 5, 1), act="relu")
    for index in range(blocks):
        x = separable(net, x, f"block{index + 1}", channels, channels)
    return net.model(pooled_classifier(net, x, "fc", channels, classes), "logits", ["N", classes])
