"""MobileNetV2 (Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks")."""

from __future__ import annotations

import onnx_ir as ir

from qcomp.models.blocks import conv_bn, pooled_classifier
from qcomp.models.net import Net

# Table 2 of the paper: expansion t, output channels c, repetitions n, first stride s.
TABLE = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def mobilenet_v2(width: float = 1.0, size: int = 224, classes: int = 1000, seed: int = 0) -> ir.Model:
    """Build MobileNetV2 with random weights.

    The model takes `image` float32 ``[N, 3, size, size]`` and gives `logits` float32 ``[N, classes]``;
    BatchNormalization stays a node after each Conv and ReLU6 is a Clip to 0..6.

    Args:
        width: multiplier of the channels; 0.35 to 1.4 in the paper.
        size: height and width of the image; 224 in the paper.
        classes: number of classes.
        seed: of the weights.
    """
    net = Net("mobilenet_v2", seed=seed)
    cin = _round_channels(32 * width)
    x = conv_bn(net, net.input("image", ["N", 3, size, size]), "stem", 3, cin, stride=(2, 2), act="relu6")
    for stage, (expansion, channels, count, first_stride) in enumerate(TABLE, start=1):
        cout = _round_channels(channels * width)
        for index in range(count):
            stride = first_stride if index == 0 else 1
            x = _inverted_residual(net, x, f"stage{stage}.{index}", cin, cout, stride, expansion)
            cin = cout
    last = _round_channels(1280 * max(1.0, width))
    x = conv_bn(net, x, "head", cin, last, kernel=(1, 1), act="relu6")
    return net.model(pooled_classifier(net, x, "fc", last, classes), "logits", ["N", classes])


def _inverted_residual(net: Net, x: ir.Value, name: str, cin: int, cout: int, stride: int, expansion: int) -> ir.Value:
    """Expand, filter depthwise, project linearly; add the input where the shape stays (fig. 4)."""
    hidden = cin * expansion
    with net.scope(name):
        y = x
        if expansion != 1:
            y = conv_bn(net, y, "expand", cin, hidden, kernel=(1, 1), act="relu6")
        y = conv_bn(net, y, "depthwise", hidden, hidden, stride=(stride, stride), groups=hidden, act="relu6")
        y = conv_bn(net, y, "project", hidden, cout, kernel=(1, 1))
        return net.op("Add", x, y) if stride == 1 and cin == cout else y


def _round_channels(channels: float, multiple: int = 8) -> int:
    """Round to a multiple of 8, never more than 10 % down, as the authors' code does."""
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded
