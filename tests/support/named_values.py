"""A small chain of operators, and its values and operators by name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import small_graphs as small

from qcomp import graph


def chain() -> ir.Model:
    """x -> a (Relu) -> b (Mul by w) -> y (Add v); w is read twice."""
    b = small.Builder()
    w = b.constant(np.float32([2, 3]), "w")
    a = b.op("Relu", b.input("x", ["N", 2]), name="a")
    b.op("Add", b.op("Mul", a, w, name="b"), w, name="y")
    return ir.from_proto(b.model("y"))


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for v in graph.all_values(model.graph) if v.name == name)


def node_of(model: ir.Model, name: str) -> ir.Node:
    return value(model, name).producer()
