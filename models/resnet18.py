"""The ImageNet ResNets of basic blocks, ResNet-18 and -34 (He et al. 2016, table 1)."""

from __future__ import annotations

import onnx_ir as ir

from qcomp.errors import OptionError
from qcomp.models.blocks import basic_block, conv_bn, pooled_classifier
from qcomp.models.net import Net

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def resnet(depth: int = 18, size: int = 224, classes: int = 1000, seed: int = 0) -> ir.Model:
    """Build ResNet-18 or ResNet-34 with random weights.

    The model takes `image` float32 ``[N, 3, size, size]`` and gives `logits` float32 ``[N, classes]``;
    BatchNormalization stays a node after each Conv.

    Args:
        depth: 18 or 34.
        size: height and width of the image; 224 in the paper.
        classes: number of classes.
        seed: of the weights.
    """
    if depth not in BLOCKS:
        raise OptionError(f"there is no ResNet-{depth} of basic blocks", hint="depth 18 or 34")
    net = Net(f"resnet{depth}", seed=seed)
    image = net.input("image", ["N", 3, size, size])
    x = conv_bn(net, image, "stem", 3, 64, kernel=(7, 7), stride=(2, 2), act="relu")
    x = net.op("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    cin = 64
    for stage, count in enumerate(BLOCKS[depth], start=1):
        cout = 64 * 2 ** (stage - 1)
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            x = basic_block(net, x, f"layer{stage}.{index}", cin, cout, stride)
            cin = cout
    return net.model(pooled_classifier(net, x, "fc", cin, classes), "logits", ["N", classes])
