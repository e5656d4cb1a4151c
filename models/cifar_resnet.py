"""The CIFAR ResNets of He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2."""

from __future__ import annotations

import onnx_ir as ir

from qcomp.errors import OptionError
from qcomp.models.blocks import basic_block, conv_bn, pooled_classifier
from qcomp.models.net import Net


def cifar_resnet(depth: int = 20, classes: int = 10, width: int = 16, size: int = 32, seed: int = 0) -> ir.Model:
    """Build a ResNet of 6n + 2 layers with 1x1 projection shortcuts (option B) and random weights.

    The model takes `image` float32 ``[N, 3, size, size]`` and gives `logits` float32 ``[N, classes]``;
    BatchNormalization stays a node after each Conv.

    Args:
        depth: 20, 32, 44, 56, 110, ... (8 is the smallest).
        classes: number of classes.
        width: channels of the first stage; the next two have twice and four times as many.
        size: height and width of the image, a multiple of 4.
        seed: of the weights.
    """
    if depth < 8 or (depth - 2) % 6:
        raise OptionError(f"a CIFAR ResNet has 6n + 2 layers, not {depth}", hint="depth 20, 32, 44, 56, 110")
    net = Net(f"cifar_resnet{depth}", seed=seed)
    x = conv_bn(net, net.input("image", ["N", 3, size, size]), "stem", 3, width, act="relu")
    cin = width
    for stage, cout in enumerate([width, 2 * width, 4 * width], start=1):
        for index in range((depth - 2) // 6):
            stride = 2 if stage > 1 and index == 0 else 1
            x = basic_block(net, x, f"layer{stage}.{index}", cin, cout, stride)
            cin = cout
    return net.model(pooled_classifier(net, x, "fc", cin, classes), "logits", ["N", classes])
