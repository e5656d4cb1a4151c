"""Vision transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qcomp.errors import OptionError
from qcomp.models.blocks import around, attention, classifier, feed_forward, he, layer_norm, zeros
from qcomp.models.net import Array, Net


def vit(
    size: int = 224,
    patch: int = 16,
    channels: int = 3,
    dim: int = 192,
    depth: int = 12,
    heads: int = 3,
    classes: int = 1000,
    seed: int = 0,
    *,
    weights: Mapping[str, Array] | None = None,
) -> ir.Model:
    """Build a ViT; the defaults are DeiT-Tiny's sizes (Touvron et al. 2021).

    The model takes `image` float32 ``[N, channels, size, size]`` and gives `logits` float32
    ``[N, classes]``. Blocks are pre-LayerNormalization, with MatMul attention and an Erf GELU.

    Args:
        size: height and width of the image, a multiple of `patch`.
        patch: height and width of a patch.
        channels: of the image.
        dim: width of the tokens, a multiple of `heads`.
        depth: number of blocks.
        heads: of the attention.
        classes: number of classes.
        seed: of random weights.
        weights: trained weights instead of random ones, by name; matrices are ``[out, in]``.
    """
    if size % patch or dim % heads:
        raise OptionError(f"size {size} / patch {patch} and dim {dim} / heads {heads} must divide")
    net = Net("vit", seed=seed, weights=weights)
    x = net.input("image", ["N", channels, size, size])
    x = _embed(net, x, size // patch, patch, channels, dim)
    for index in range(depth):
        x = _block(net, x, f"blocks.{index}", dim, heads)
    x = layer_norm(net, x, "norm", dim)
    token = net.op("Squeeze", net.op("Slice", x, *(net.constant([n]) for n in (0, 1, 1))), net.constant([1]))
    return net.model(classifier(net, token, "head", dim, classes), "logits", ["N", classes])


def _embed(net: Net, image: ir.Value, side: int, patch: int, channels: int, dim: int) -> ir.Value:
    """Project each patch, put the class token in front, add the positions: ``[N, 1 + side**2, dim]``."""
    with net.scope("embed"):
        with net.scope("project"):
            weight = net.weight("weight", [dim, channels, patch, patch], he(channels * patch**2, gain=1.0))
            bias = net.weight("bias", [dim], zeros)
            size = (patch, patch)
            x = net.op("Conv", image, weight, bias, kernel_shape=size, strides=size)
        x = net.op("Transpose", net.op("Reshape", x, net.constant([0, dim, -1])), perm=(0, 2, 1))
        batch = net.op("Shape", image, start=0, end=1)
        shape = net.op("Concat", batch, net.constant([1, dim]), axis=0)
        token = net.op("Expand", net.weight("token", [1, 1, dim], around(0.0, 0.5)), shape)
        position = net.weight("position", [1, 1 + side**2, dim], around(0.0, 0.2))
        return net.op("Add", net.op("Concat", token, x, axis=1), position)


def _block(net: Net, x: ir.Value, name: str, dim: int, heads: int) -> ir.Value:
    with net.scope(name):
        x = net.op("Add", x, attention(net, layer_norm(net, x, "norm1", dim), "attention", dim, heads))
        return net.op("Add", x, feed_forward(net, layer_norm(net, x, "norm2", dim), "mlp", dim, 4 * dim))
