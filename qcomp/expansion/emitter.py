"""Adds nodes and constants to a graph, in front of the node that is being replaced."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp import graph
from qcomp.graph import Array

TO_THE_END = int(np.iinfo(np.int64).max)


class Emitter:
    """One a pass. Equal constants are one initializer."""

    def __init__(self, target: ir.Graph) -> None:
        self.graph = target
        self.names = graph.Names(target)
        self._constants: dict[Hashable, ir.Value] = {}
        self._pending: list[ir.Node] = []

    def op(self, kind: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        """The output of a new standard operator.

        Args:
            name: of the value, which gets a number where the name is taken.
        """
        out = ir.Value(name=self.names.fresh(name))
        node = ir.node(kind, inputs, attributes, outputs=[out], name=self.names.fresh(f"{out.name}_{kind}"))
        self._pending.append(node)
        return out

    def constant(self, array: Array | np.generic, name: str) -> ir.Value:
        """An initializer."""
        array = np.asarray(array)
        key = graph.contents(array)
        if key not in self._constants:
            self._constants[key] = graph.initializer(self.graph, self.names, name, array)
        return self._constants[key]

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector: a shape, axes, starts or ends."""
        return self.constant(np.array(numbers, np.int64), "_".join(["ints", *(str(n) for n in numbers[:6])]))

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """``Cast``."""
        return self.op("Cast", [value], name, to=int(dtype))

    def reshape(self, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        """``Reshape``; 0 keeps a dimension, -1 takes the rest."""
        return self.op("Reshape", [value, self.ints(*shape)], name)

    def transpose(self, value: ir.Value, perm: Sequence[int], name: str) -> ir.Value:
        """``Transpose``."""
        return self.op("Transpose", [value], name, perm=list(perm))

    def place(self, before: ir.Node | None) -> None:
        """Put the new nodes into the graph, in front of a node or at the end."""
        if before is None:
            self.graph.extend(self._pending)
        else:
            self.graph.insert_before(before, self._pending)
        self._pending = []
