"""Which operators are one unit."""

from __future__ import annotations

import pytest
import quantized
import small_graphs as small

from qcomp import units


def built(*, shared: bool = False, limit: float | None = 6.0):
    """MatMul, the Add of its bias and a clamp of ``x`` [N, 4]; a second reader of the sum where it is shared."""
    b = small.Builder()
    product = b.op("MatMul", b.input("x", ["N", 4]), b.random(4, 3), name="product")
    total = b.op("Add", product, b.random(3), name="total")
    y = (
        b.op("Relu", total, name="y")
        if limit is None
        else b.op("Clip", total, b.constant(0.0), b.constant(limit), name="y")
    )
    model = quantized.loaded(b.model(y, *([total] if shared else [])))
    return {str(n.outputs[0].name): n for n in model.graph}


@pytest.mark.parametrize("limit", [None, 6.0])
def test_a_product_its_bias_and_its_clamp_are_one(limit):
    nodes = built(limit=limit)
    assert units.bias_add(nodes["product"]) is nodes["total"]
    assert units.clamp_behind(nodes["total"].outputs[0]) is nodes["y"]
    assert units.clamped(nodes["total"].outputs[0])
    assert {units.head(node).op_type for node in nodes.values()} == {"MatMul"}


def test_what_others_read_too_is_not_clamped():
    nodes = built(shared=True)
    assert units.clamp_behind(nodes["total"].outputs[0]) is None
    assert not units.clamped(nodes["total"].outputs[0])
    assert units.head(nodes["y"]) is nodes["y"]
    assert units.head(nodes["total"]) is nodes["product"]
