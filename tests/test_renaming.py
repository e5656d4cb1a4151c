"""Values that hold something else get new names."""

from __future__ import annotations

import small_graphs as small

from qcomp import files, graph
from qcomp.renaming import rename_between


def test_what_lies_between_two_operators():
    b = small.Builder()
    x = b.input("x", ["N", 4, 6, 6])
    first = b.op("Conv", x, b.random(4, 4, 1, 1), name="first")
    b.op("Relu", first, name="seen")
    inner = b.op("Add", b.op("Relu", first, name="inner"), b.op("Relu", x, name="other"), name="sum")
    b.op("Conv", inner, b.random(4, 4, 1, 1), name="last")
    model = files.load(b.model("last", "seen"))
    nodes = {node.outputs[0].name: node for node in model.graph}
    renamed = rename_between([nodes["first"]], [nodes["last"]], graph.Names(model.graph), "_moved")
    assert {v.name for v in renamed} == {"first_moved", "inner_moved", "sum_moved"}
    assert {v.name for node in model.graph for v in node.outputs} == {v.name for v in renamed} | {
        "seen",
        "other",
        "last",
    }
    graph.verify(model)
