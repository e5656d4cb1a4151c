"""BERT-like encoder (Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers")."""

from __future__ import annotations

import onnx_ir as ir

from qcomp.errors import OptionError
from qcomp.models.blocks import around, attention, feed_forward, layer_norm
from qcomp.models.net import Net

MASKED = -3.4e38  # just above the lowest float32: a score plus this stays finite
EPSILON = 1e-12  # of the paper's LayerNormalization


def bert(
    vocabulary: int = 30522,
    positions: int = 512,
    dim: int = 128,
    depth: int = 2,
    heads: int = 2,
    seed: int = 0,
) -> ir.Model:
    """Build an encoder with random weights; the defaults are BERT-Tiny's sizes (Turc et al. 2019).

    The model takes `input_ids` and `attention_mask` (1 keeps, 0 hides), both int64 ``[N, L]`` with a dynamic
    L, and gives `last_hidden_state` float32 ``[N, L, dim]``. Blocks are post-LayerNormalization. There is one
    segment: its embedding counts as part of the positions'.

    Args:
        vocabulary: number of tokens.
        positions: largest L.
        dim: width of the tokens, a multiple of `heads`.
        depth: number of blocks.
        heads: of the attention.
        seed: of the weights.
    """
    if dim % heads:
        raise OptionError(f"dim {dim} is not a multiple of heads {heads}")
    net = Net("bert", seed=seed)
    ids = net.input("input_ids", ["N", "L"], ir.DataType.INT64)
    mask = _additive_mask(net, net.input("attention_mask", ["N", "L"], ir.DataType.INT64))
    x = _embed(net, ids, vocabulary, positions, dim)
    for index in range(depth):
        x = _block(net, x, mask, f"layers.{index}", dim, heads)
    return net.model(x, "last_hidden_state", ["N", "L", dim])


def _additive_mask(net: Net, mask: ir.Value) -> ir.Value:
    """0 where the mask is 1, the lowest number where it is 0: float32 ``[N, 1, 1, L]``."""
    with net.scope("mask"):
        kept = net.op("Cast", net.op("Unsqueeze", mask, net.constant([1, 2])), to=int(ir.DataType.FLOAT))
        return net.op("Mul", net.op("Sub", net.constant(1.0), kept), net.constant(MASKED))


def _embed(net: Net, ids: ir.Value, vocabulary: int, positions: int, dim: int) -> ir.Value:
    with net.scope("embed"):
        words = net.op("Gather", net.weight("words", [vocabulary, dim], around(0.0, 0.5)), ids, axis=0)
        table = net.weight("positions", [1, positions, dim], around(0.0, 0.2))
        length = net.op("Shape", ids, start=1, end=2)
        position = net.op("Slice", table, net.constant([0]), length, net.constant([1]))
        return layer_norm(net, net.op("Add", words, position), "norm", dim, EPSILON)


def _block(net: Net, x: ir.Value, mask: ir.Value, name: str, dim: int, heads: int) -> ir.Value:
    with net.scope(name):
        y = net.op("Add", x, attention(net, x, "attention", dim, heads, mask))
        x = layer_norm(net, y, "norm1", dim, EPSILON)
        y = net.op("Add", x, feed_forward(net, x, "mlp", dim, 4 * dim))
        return layer_norm(net, y, "norm2", dim, EPSILON)
